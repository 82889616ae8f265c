#!/usr/bin/env bash
# Measure the training step and the data path (utils.bench) for CIFAR's backbones; results/speed.md is made from what it
# writes. Let nothing else run meanwhile.
#   OUT=dir     where the results go (default: results/speed)
#   ROUNDS=n    turns that each contender gets (default: 5)
#   DATA_DIR=   a folder of images, to measure the data path on it too
source "$(dirname "$0")/setup.sh"
out=${OUT:-results/speed}
mkdir -p "$out"
name=$(python -c "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')")

measure() { # measure FILE ARGUMENTS...: keep the JSON line
    local file=$1
    shift
    python -m utils.bench "$@" --rounds "${ROUNDS:-5}" --json | tee "$file.tmp"
    tail -n 1 "$file.tmp" >"$file"
    rm "$file.tmp"
}

measure "$out/$name-data-digits.json" data --dataset digits
if [ -n "${DATA_DIR:-}" ]; then measure "$out/$name-data-folder.json" data --dataset folder --data-dir "$DATA_DIR"; fi
measure "$out/$name-resnet20.json" train --arch resnet20 --steps 3 "$@"
measure "$out/$name-vgg_small.json" train --arch vgg_small --warmup 1 --steps 1 "$@"
measure "$out/$name-resnet18.json" train --arch resnet18 --warmup 1 --steps 1 "$@"
