"""How commands end, and what they take."""

import importlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cifar import train as cifar_train
from imagenet import train as imagenet_train
from utils.command import CLOSED_PIPE, Parser, command, data_processes, image_size, side, threads
from utils.complexity import __main__ as complexity

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
    for folder in ("cifar", "imagenet", "utils")
    for path in (ROOT / folder).rglob("*.py")
    if "\n@command\ndef main(" in path.read_text()
)


def run(code, **kwargs):
    command = ["-c", f"from utils.command import command\n{code}"]
    return subprocess.run([sys.executable, *command], cwd=ROOT, check=False, text=True, **kwargs)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_in_ascii_without_defaults_that_are_none(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")  # an option in one line
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(name).main(["--help"])
    assert not stopped.value.code
    text = stream.buffer.getvalue().decode("ascii")
    assert "usage:" in text
    assert "default: None" not in text
    assert not re.search(r"default: .*\(default:", text)


def test_defaults_are_told_once_and_only_where_there_is_one():
    parser = Parser(prog="x", add_help=False)
    for name, default, help in (("--a", None, "first"), ("--b", 3, "second"), ("--c", 4, "third, default: one per x")):
        parser.add_argument(name, default=default, help=help)
    lines = parser.format_help().splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines if "--" in line and "[" not in line] == [
        "first",
        "second (default: 3)",
        "third, default: one per x",
    ]


def test_output_in_ascii():
    result = run(
        "command(lambda argv: print('IR²Net', chr(0xDCFF)))()",
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "IR\\xb2Net \\udcff\n", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("flush", [True, False])
def test_a_closed_pipe_ends_quietly(flush, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    code = f"command(lambda argv: print('x', flush={flush}))()"
    with os.fdopen(writer) as stdout:
        result = run(code, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    assert (result.returncode, result.stderr) == (CLOSED_PIPE, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as stdout:
        result = run("command(lambda argv: print('x'))()", stdout=stdout, stderr=-1)
    assert (result.returncode, result.stderr) == (1, "error: [Errno 28] No space left on device\n")


def test_without_standard_output():
    assert run("import sys; sys.stdout = None\ncommand(print)()").returncode == 0


def test_another_pipe_that_breaks_is_an_error(fails):
    @command
    def main(argv=None):
        raise BrokenPipeError("a worker's")

    assert fails(main) == (1, "error: a worker's")


def test_sizes_threads_and_processes():
    assert (image_size("32"), image_size("32x48"), image_size("7X9")) == (32, (32, 48), (7, 9))
    assert (side("16384"), threads("4096"), data_processes("0")) == (16384, 4096, 0)
    wrong = [(image_size, "0"), (image_size, "8x0"), (image_size, "9" * 30), (side, "20000"), (threads, "0")]
    for kind, text in (*wrong, (data_processes, "-1"), (data_processes, "9" * 30)):
        with pytest.raises(Exception, match=r"must be ([01] or more|[\d,]+ or less), not"):
            kind(text)
    for text in ("x", "3x", "x3", "1x2x3", "1.5", ""):
        with pytest.raises(ValueError, match="invalid literal"):
            image_size(text)


def test_absurd_sizes_are_one_line(fails):
    for size in ("0", "-4", "99999999999", "1" * 50, "1e9"):
        status, line = fails(complexity.main, "--arch", "resnet20", f"--input-size={size}")
        assert (status, "--input-size" in line) == (2, True)
        for family in ("cifar", "imagenet"):
            flags = ("--checkpoint", "none.pt", f"--image-size={size}")
            status, line = fails(importlib.import_module(f"{family}.eval").main, *flags)
            assert (status, "--image-size" in line) == (2, True)


@pytest.mark.parametrize("argv", [("--output-dir", ""), ("--resume=",), ("--epochs", 1, "--data-dir", "")])
@pytest.mark.parametrize("main", [cifar_train.main, imagenet_train.main])
def test_an_unset_variable_is_refused(main, argv, fails):
    status, line = fails(main, *argv)
    assert (status, "is empty" in line, str(argv[0 if len(argv) < 3 else 2]).strip("=") in line) == (2, True, True)


def test_numbers_that_nothing_can_hold_are_refused(fails):
    for flag in ("--batch-size", "--epochs", "--seed"):
        assert "must be 9,223,372,036,854,775,807 or less" in fails(cifar_train.main, flag, "9" * 400)[1]
