#!/usr/bin/env bash
# Set-up and the tests. Extra arguments reach pytest: bash scripts/test.sh -k mask -x; -m slow runs the long ones.
source "$(dirname "$0")/setup.sh"
exec python -m pytest -m "not slow" "$@"
