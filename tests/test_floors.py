"""Each module imports only from the floors below its own, and no module needs itself."""

import ast
import pathlib

import pytest

from tests.conftest import ROOT

# From the lowest to the highest. A module belongs to the longest name that it begins with; modules
# of one name may import each other.
FLOORS = (
    ("pallas_kernels", "t6jax.errors", "t6jax._version"),
    ("t6jax.command_line", "t6jax.extras", "t6jax.fields", "t6jax.files"),
    ("t6jax.arguments", "t6jax.sealed_json"),
    ("t6jax.checksums", "t6jax.ops"),
    ("t6jax.parallel",),
    ("t6jax.layers",),
    ("t6jax.attention",),
    ("t6jax.config",),
    ("t6jax.model",),
    ("t6jax.data", "t6jax.runs"),
    ("t6jax.loading",),
    ("t6jax.generation",),
    ("t6jax.evaluation",),
    ("t6jax.training", "t6jax.interop"),
    ("t6jax.programs",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
# t6jax/__init__.py names what is public and imports each name when it is first used
TOP = "t6jax"


def modules() -> dict[str, pathlib.Path]:
    """Dotted name -> file, of each module of t6jax and pallas_kernels."""
    found = {}
    for top in ("t6jax", "pallas_kernels"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(source: str, known: set[str], *, late: bool) -> set[str]:
    """The modules among the known ones that a module's source imports.

    late: also inside functions, where nothing is imported yet when the module itself is.
    """
    found = set()
    nodes = list(ast.parse(source).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        if late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes += ast.iter_child_nodes(node)
    return {module for name in found if (module := known_module(name, known))}


def known_module(name: str, known: set[str]) -> str | None:
    """The module that a dotted name is, or is a name of; None for other packages."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def room(module: str) -> str:
    """The name in FLOORS that a module belongs to."""
    return max((name for name in FLOOR if f"{module}.".startswith(f"{name}.")), key=len, default="")


def violations(sources: dict[str, str]) -> list[str]:
    """What imports from its own floor or above, in modules given by name and source."""
    found = []
    for module, source in sources.items():
        if module == TOP:
            continue
        assert room(module), f"{module} has no floor: add it to FLOORS"
        for imported in imports(source, set(sources), late=True):
            here, there = room(module), TOP if imported == TOP else room(imported)
            assert there, f"{imported} has no floor: add it to FLOORS"
            if there == TOP or (here != there and FLOOR[there] >= FLOOR[here]):
                found.append(f"{module} imports {imported}")
    return sorted(found)


def circle(edges: dict[str, set[str]]) -> list[str] | None:
    """Modules that import each other around a circle, if there are any."""
    done: set[str] = set()

    def visit(module: str, above: list[str]) -> list[str] | None:
        if module in above:
            return [*above[above.index(module) :], module]
        if module not in done:
            for imported in sorted(edges[module]):
                if found := visit(imported, [*above, module]):
                    return found
            done.add(module)
        return None

    return next((found for module in sorted(edges) if (found := visit(module, []))), None)


def sources() -> dict[str, str]:
    return {module: path.read_text() for module, path in MODULES.items()}


def test_each_module_imports_only_from_the_floors_below():
    assert violations(sources()) == []


def test_no_module_imports_itself_through_others():
    texts = sources()
    edges = {
        module: imports(text, set(texts), late=False) - {module} for module, text in texts.items()
    }
    assert circle(edges) is None


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("t6jax.ops", "from t6jax.parallel import mesh"),
        ("t6jax.ops", "def f():\n    import t6jax.parallel.mesh"),
        ("t6jax.training", "if True:\n    from t6jax.interop import reference"),
        ("pallas_kernels", "from t6jax.errors import InputError"),
        ("t6jax.data", "from t6jax import InputError"),
    ],
)
def test_an_import_from_above_is_found(module, source):
    others = ("t6jax", "t6jax.parallel.mesh", "t6jax.errors", "t6jax.interop.reference")
    assert len(violations({f"{module}.new": source} | dict.fromkeys(others, ""))) == 1


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
