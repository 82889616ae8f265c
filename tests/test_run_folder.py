"""A run's folder: one process at a time, files that are written whole, nothing of another run lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.command import UsageError
from utils.files import output_path, replacing
from utils.training.run import Run, last_of

ROOT = Path(__file__).parent.parent


def test_a_folder_in_use_is_refused_until_its_process_ends(tmp_path):
    code = "import sys, time; from utils.training.run import Run; run = Run(sys.argv[1]); print(); time.sleep(99)"
    other = subprocess.Popen([sys.executable, "-uc", code, tmp_path / "run"], cwd=ROOT, stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.raises(UsageError, match=f"another process .{other.pid} on .* is training in"):
        Run(tmp_path / "run")
    other.kill()
    other.wait()
    with Run(tmp_path / "run"):
        pass


def test_temporary_files_are_the_processs_own_and_go(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")

    def fail():
        with replacing(path) as temporary:
            assert str(os.getpid()) in temporary.name
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "before"


def test_only_regular_files_are_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "loop", "pipe", "."):
        with pytest.raises(UsageError, match="not a regular file"):
            output_path(tmp_path / name, force=True)
    with pytest.raises(UsageError, match="not a regular file"):
        output_path("/dev/null", force=True)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--force"):
        output_path(tmp_path / "file")
    with pytest.raises(UsageError, match="would be lost"):
        output_path(tmp_path / "file", force=True, sources=[tmp_path / "other", tmp_path / "." / "file"])
    assert output_path(tmp_path / "file", force=True) == tmp_path / "file"


def test_what_a_killed_process_left_half_written_goes(tmp_path):
    for name in (".last.pt.99.tmp", ".metrics.csv.99.tmp", ".notes.99.tmp"):
        (tmp_path / name).write_text("half")
    with Run(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".notes.99.tmp"]


def test_a_run_that_went_on_since_it_was_read_is_not_rolled_back(tmp_path):
    (tmp_path / "last.pt").write_text("epoch 1")
    seen = last_of(tmp_path)
    with Run(tmp_path, resume=True, last=seen):
        pass
    with replacing(tmp_path / "last.pt") as temporary:
        temporary.write_text("epoch 2")
    with pytest.raises(UsageError, match=r"has trained in .* meanwhile: --resume once more"):
        Run(tmp_path, resume=True, last=seen)
    with Run(tmp_path, resume=True, last=last_of(tmp_path)):  # the refusal left no lock behind
        pass
