"""The house stays one in which a stranger finds his way: short files, short functions, few entries."""

import ast
import statistics
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = [path for path in ROOT.rglob("*.py") if not {".venv", "runs"} & set(path.relative_to(ROOT).parts)]
KERNELS = ROOT / "modules" / "inference" / "kernels.py"  # one file, for numba's cache


def test_files_fit_in_one_reading():
    lengths = {path: len(path.read_text().splitlines()) for path in FILES}
    assert [str(path) for path, length in lengths.items() if length > 350 and path != KERNELS] == []
    assert statistics.median(lengths.values()) <= 120


def test_functions_fit_on_a_screen_and_take_few_parameters():
    found = []
    for path in FILES:
        if path == KERNELS or path.is_relative_to(ROOT / "tests"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                if node.end_lineno - node.lineno + 1 > 50:
                    found.append(f"{path}: {node.name} is long")
                arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
                if len(names) > 8 and not node.name.startswith("_") and node.name not in MANY:
                    found.append(f"{path}: {node.name} takes {len(names)} parameters")
    assert found == []


MANY = ("describe_network", "binary_conv2d")
"""What a network is has that many parts; an operator's schema names all that it reads."""


def test_utils_has_few_entries():
    entries = [path for path in (ROOT / "utils").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 14
