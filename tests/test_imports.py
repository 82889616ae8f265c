"""Who may import whom: one direction, no circles, imports inside functions included."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("modules", "models", "utils", "cifar", "imagenet")
# From the ground up: a module imports from its own floor and from those below. The longest prefix counts.
FLOORS = (
    ("modules",),
    ("models",),
    ("utils.command", "utils.files", "utils.images", "utils.complexity"),
    ("utils.checkpoint",),
    ("utils.training",),
    ("cifar", "imagenet"),
    ("utils", "hubconf"),  # the commands
)


def sources():
    """{module: source} of all of the project's code but the tests."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")] + [ROOT / "hubconf.py"]
    found = {}
    for path in paths:
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def imported(source, modules):
    """Names of those of `modules` that the source imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in modules else node.module for name in within}
    return names & modules.keys()


def floor(module):
    if module.endswith("__main__"):
        return len(FLOORS) - 1
    prefixes = {prefix: number for number, floor in enumerate(FLOORS) for prefix in floor}
    fitting = [prefix for prefix in prefixes if module == prefix or module.startswith(f"{prefix}.")]
    return prefixes[max(fitting, key=len)]


def faults(modules):
    """Sentences about imports upwards, and circles, in {module: source}."""
    graph = {name: sorted(imported(source, modules) - {name}) for name, source in modules.items()}
    found = [f"{a} imports {b}" for a, targets in graph.items() for b in targets if floor(b) > floor(a)]
    done = set()

    def visit(name, trail):
        if name in trail:
            found.append("circle: " + " -> ".join([*trail[trail.index(name) :], name]))
        elif name not in done:
            for target in graph[name]:
                visit(target, [*trail, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    return found


def test_imports_point_one_way():
    assert faults(sources()) == []


@pytest.mark.parametrize(
    "line", ["from utils.checkpoint import load_model\n", "def f():\n    from utils.checkpoint import load_model\n"]
)
def test_an_import_upwards_is_found(line):
    changed = sources()
    changed["modules.conv"] += line
    assert "modules.conv imports utils.checkpoint" in faults(changed)
    assert any(fault.startswith("circle") for fault in faults(changed))


def test_torchvision_is_imported_only_within_functions():
    """It takes as long as torch once more, for which neither --help nor a refusal should wait."""
    waiting = [name for name, source in sources().items() if re.search(r"^(from|import) torchvision", source, re.M)]
    assert waiting == []
