"""Write what commands print into Markdown files, between the marks that name them, so that no figure is typed by hand.

A mark is a comment that holds a command, and the line `<!-- end -->` after what it printed:

    <!-- python -m utils.tables 1 --runs results -->
    <!-- end -->
"""

import contextlib
import glob
import importlib.util
import io
import re
import shlex
from pathlib import Path

from utils.command import Parser, RunError, command
from utils.files import write_text

BLOCK = re.compile(
    r"^(<!-- python -m (utils\.[\w.]+)( [^\n]*?)? -->\n)(?:(?!<!-- python -m ).)*?^(<!-- end -->)$",
    re.MULTILINE | re.DOTALL,
)


def command_module(name):
    """The module that `python -m NAME` runs. Raises RunError if there is none, or it is no command."""
    try:
        found = importlib.util.find_spec(name)
        package = found is not None and found.submodule_search_locations is not None
        module = importlib.import_module(f"{name}.__main__" if package else name)
    except ImportError:
        module = None
    if not hasattr(module, "main"):
        raise RunError(f"there is no command {name}")
    return module


def refreshed(text):
    """`text` with the output of every command that it names, run from the current folder.

    Raises RunError if a mark has no end, or an end no mark, or a command is none.
    """
    blocks = len(BLOCK.findall(text))
    if not text.count("<!-- python -m ") == text.count("<!-- end -->") == blocks:
        raise RunError("every <!-- python -m utils.NAME ... --> needs its own <!-- end -->, each on a line of its own")

    def run(block):
        start, module, flags, end = block.groups()
        try:
            words = shlex.split(flags or "")
        except ValueError as error:
            raise RunError(f"{start}: {error}") from None
        words = [path for word in words for path in sorted(glob.glob(word)) or [word]]
        main = command_module(module).main
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            main(words)
        return f"{start}\n{printed.getvalue().strip()}\n\n{end}"

    return BLOCK.sub(run, text)


def build_parser():
    parser = Parser(prog="utils.refresh", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not what it should be")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    for path in map(Path, args.files):
        try:
            text = path.read_text(encoding="utf-8")
            new = refreshed(text)
        except (RunError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: {error}") from None
        if new == text:
            print(f"{path}: up to date")
        elif args.check:
            raise RunError(f"{path} is not what its commands print: python -m utils.refresh {path}")
        else:
            write_text(path.resolve(), new)
            print(f"{path}: refreshed")


if __name__ == "__main__":
    main()
