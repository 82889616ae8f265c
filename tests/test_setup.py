"""scripts/setup.sh: the environment that every script makes for itself."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent

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
