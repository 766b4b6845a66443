"""The pages of the documentation, and what tests read out of them."""

import re

from tests.conftest import ROOT

PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    )
}


def python_blocks(page: str) -> list[str]:
    """The blocks of Python code; those that the site takes from a file are marked otherwise."""
    return re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)


def commands(page: str) -> list[str]:
    """The indented command lines, those that end in a backslash joined to the next."""
    lines = page.replace("\\\n", " ").splitlines()
    return [
        re.split(r"  +#", line)[0].strip()
        for line in lines
        if re.match(r"    (python|make|scripts/|sbatch|lm_eval|pip|\.venv)", line)
    ]
