#!/usr/bin/env bash
# Measure the training step and the data path for CIFAR's backbones, one JSON file each, and print them as tables.
# Let nothing else run meanwhile.
#   OUT=dir     where the files go (default: results/speed)
#   ROUNDS=n    turns that each contender gets (default: 5)
#   DATA_DIR=   a folder of images, to measure the data path on it too
source "$(dirname "$0")/setup.sh"
out=${OUT:-results/speed}
rounds=${ROUNDS:-5}
source scripts/checks.sh
check_count ROUNDS "$rounds"
device=$(python -c "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')")
mkdir -p "$out"

measured=$(mktemp)
trap 'rm -f "$measured"' EXIT

keep() { # keep NAME: of a measurement that has succeeded, the last line
    tail -n 1 "$measured" >"$out/$device-$1.json"
}

python -m utils.bench data --dataset digits --rounds "$rounds" --json | tee "$measured"
keep data-digits
if [ -n "${DATA_DIR:-}" ]; then
    python -m utils.bench data --dataset folder --data-dir "$DATA_DIR" --rounds "$rounds" --json | tee "$measured"
    keep data-folder
fi
python -m utils.bench train --arch resnet20 --steps 3 --rounds "$rounds" --json "$@" | tee "$measured"
keep resnet20
python -m utils.bench train --arch vgg_small --steps 1 --warmup 1 --rounds "$rounds" --json "$@" | tee "$measured"
keep vgg_small
python -m utils.bench train --arch resnet18 --steps 1 --warmup 1 --rounds "$rounds" --json "$@" | tee "$measured"
keep resnet18
python -m utils.bench.speed "$out"/*.json
