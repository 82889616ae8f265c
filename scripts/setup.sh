# The environment of every script here: source it. Goes to the repository's root, puts a virtual environment with
# requirements.txt first in PATH. VENV names the environment (default: .venv); it is made if it is missing. It, and the
# folders and files that other settings name, count from where the script was called.
set -euo pipefail
unset CDPATH # else cd prints where it went, and may go elsewhere

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$root/.venv}
for name in VENV DATA_DIR RUNS OUT PHOTOGRAPHS; do
    case ${!name:-/} in /*) ;; *) declare "$name=$PWD/${!name}" ;; esac
done
cd "$root"

stamp=$VENV/requirements.stamp # which requirements.txt is installed
if [ "$(cat "$stamp" 2>/dev/null)" != "$(cksum <requirements.txt)" ]; then
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        reason=$(python3 -m venv "$VENV" 2>&1 | tr '\n' ' ') ||
            { echo "error: python3 -m venv $VENV failed: $reason" >&2; exit 1; }
    fi
    echo "installing requirements.txt into $VENV" >&2
    if ! "$VENV/bin/python" -m pip install -r requirements.txt >"$VENV/install.log" 2>&1; then
        reason=$(grep -m 1 '^ERROR: ' "$VENV/install.log") || reason=
        echo "error: could not install requirements.txt: see $VENV/install.log. ${reason#ERROR: }" >&2
        exit 1
    fi
    cksum <requirements.txt >"$stamp"
fi
export PATH="$VENV/bin:$PATH"
