"""What the site takes from outside docs/: the changelog, the contributors' guide and the plots.

The pages are written to read well on a code host too, where links to files of the repository work.
On the site such a link becomes the file's name.
"""

import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent
PROJECT_PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
PLOTS = ROOT / "benchmarks" / "results"


def on_files(files, config):
    """Adds the pages and pictures that lie outside docs/."""
    for name, source in PROJECT_PAGES.items():
        text = (ROOT / source).read_text().replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    for plot in sorted(PLOTS.glob("*.png")):
        files.append(File.generated(config, f"results/{plot.name}", abs_src_path=str(plot)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Points pictures to their copies, and takes links out of the site to plain names."""
    markdown = re.sub(
        r"\]\((?:\.\./)+benchmarks/results/([^)/]+\.png)\)", r"](results/\1)", markdown
    )
    if page.file.src_uri in PROJECT_PAGES:
        return re.sub(r"\[([^\]]*)\]\((?!https?:|[\w/]+\.md)[^)]*\)", r"\1", markdown)
    return re.sub(r"(?<!!)\[([^\]]*)\]\((?:\.\./)+[^)]*\)", r"\1", markdown)
