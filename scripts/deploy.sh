#!/usr/bin/env bash
# Measure 1-bit inference of IR²Net-C beside other engines, check that it is exact, and write results/deploy.md's tables
# anew. Engines that are missing are skipped: pip install onnx onnxscript onnxruntime openvino nncf. Let nothing else run
# meanwhile.
#   OUT=dir        where the results go (default: results/deploy, which the page is written from)
#   THREADS="1 2"  numbers of threads, a run of its own each
source "$(dirname "$0")/setup.sh"
out=${OUT:-results/deploy}
threads=${THREADS:-1 2}
source scripts/checks.sh
check_list THREADS "$threads"
mkdir -p "$out"

measured=$(mktemp)
trap 'rm -f "$measured"' EXIT

keep() { # keep NAME: of a measurement that has succeeded, the last line
    tail -n 1 "$measured" >"$out/$1.json"
}

verify() { # verify NAME FLAGS: random weights, statistics and images
    python -m utils.deploy verify "${@:2}" --images 8 --json | tee "$measured"
    keep "verify-$1"
}

# First, so that a wrong flag is found before anything is written.
for count in $threads; do
    python -m utils.bench deploy --dataset imagenet --variant c --threads "$count" --json "$@" | tee "$measured"
    keep "threads-$count"
done
for variant in a b c d; do
    verify "imagenet-$variant" --dataset imagenet --arch resnet18 --variant "$variant"
done
for arch in resnet18 resnet20 vgg_small; do
    verify "cifar-$arch" --dataset cifar10 --arch "$arch" --recovery cirec
done
if [ "$out" -ef results/deploy ]; then python -m utils.refresh results/deploy.md; fi
