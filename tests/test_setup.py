"""scripts/setup.sh and cells.sh: the environment that every script makes for itself, and the runs that it finds."""

import json
import os
import subprocess

from shell import ROOT, mark_installed

PIP = """#!/bin/bash
[ "$*" = "-m pip --version" ] && exit 0
echo Collecting torch
echo "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
echo
exit 1
"""


def test_an_environment_that_cannot_be_installed_says_pips_reason_and_is_tried_again(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(PIP)
    python.chmod(0o755)
    command = ["bash", "-c", "source scripts/setup.sh; echo went on"]
    environment = {**os.environ, "VENV": str(tmp_path)}
    failed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "went on" not in failed.stdout
    assert failed.stderr.splitlines()[-1].endswith("OSError: [Errno 28] No space left on device")

    python.write_text("#!/bin/bash\n")  # the next try succeeds, and is the last
    tried = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "installing" in tried.stderr
    python.unlink()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("went on\n", "")


def test_folders_count_from_where_a_script_is_called(tmp_path):
    (tmp_path / "env").mkdir()
    mark_installed(tmp_path / "env")
    lines = 'echo "$PWD"; for name in VENV DATA_DIR RUNS OUT; do echo "${!name-unset}"; done'
    environment = {**os.environ, "VENV": "env", "DATA_DIR": "my data", "RUNS": "/runs", "CDPATH": f".:{ROOT}"}
    environment.pop("OUT", None)
    command = ["bash", "-c", f"source '{os.path.relpath(ROOT / 'scripts', tmp_path)}/setup.sh'; {lines}"]
    printed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines() == [str(ROOT), f"{tmp_path}/env", f"{tmp_path}/my data", "/runs", "unset"]


def run_cells(tmp_path, **settings):
    script = tmp_path / "script.sh"
    script.write_text(f"cd {ROOT}\nsource scripts/cells.sh\ncell one\nfinish true\n")
    environment = {**os.environ, "DATASET": "folder", "RUNS": str(tmp_path / "runs"), **settings}
    return subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)


def test_a_finished_run_on_other_images_is_told(tmp_path):
    ours, other = tmp_path / "a" / "images", tmp_path / "b" / "images"
    run = tmp_path / "runs" / "one" / "seed0"
    for folder in (ours, other, run):
        folder.mkdir(parents=True)
    (run / "summary.json").write_text("{}")
    (run / "args.json").write_text(json.dumps({"data_dir": str(other), "epochs": 3, "lr": 0.1}, indent=2))
    refused = run_cells(tmp_path, DATA_DIR=str(ours))
    assert refused.returncode == 1
    assert f"{run}: failed: it is a run on {other}: give another RUNS=dir" in refused.stderr
    other.rename(tmp_path / "moved")  # the same images in another place
    assert run_cells(tmp_path, DATA_DIR=str(tmp_path / "moved")).stdout == f"{run}: finished\n"
    assert run_cells(tmp_path, DATA_DIR=str(ours), EPOCHS="5").stdout == f"{run}: finished, with 3 epochs\n"


def test_a_seed_is_not_trained_twice_at_once(tmp_path):
    refused = run_cells(tmp_path, SEEDS="0 1 0")
    assert (refused.returncode, refused.stderr) == (2, "error: SEEDS='0 1 0' names one twice\n")
