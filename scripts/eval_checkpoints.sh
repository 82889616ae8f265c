#!/usr/bin/env bash
# Evaluate every network in checkpoints/ and compare with what its run measured (results/). Digits need no download.
#   DATA_DIR=dir     CIFAR-10's images, for the networks that were trained on them
#   PHOTOGRAPHS=dir  Imagenette's, dir/val/<class>/, for those
source "$(dirname "$0")/setup.sh"
flags=()
if [ -n "${DATA_DIR:-}" ]; then flags+=(--data-dir "$DATA_DIR"); fi
if [ -n "${PHOTOGRAPHS:-}" ]; then flags+=(--photographs "$PHOTOGRAPHS"); fi
python -m utils.tables.verify "${flags[@]}" "$@"
