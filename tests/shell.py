"""What tests of shell scripts share."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def mark_installed(folder):
    """Have scripts/setup.sh believe that the environment in `folder` is whole."""
    stamp = subprocess.run("cksum <requirements.txt", shell=True, cwd=ROOT, capture_output=True, check=True).stdout
    (folder / "requirements.stamp").write_bytes(stamp)
