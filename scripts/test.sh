#!/usr/bin/env bash
# Set-up and the tests, side by side on up to 4 cores. Extra arguments reach pytest: bash scripts/test.sh -k mask -x;
# -m slow runs the long ones.
source "$(dirname "$0")/setup.sh"
export OMP_NUM_THREADS=1 # tests are small: more threads only wait for each other
exec python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile "$@"
