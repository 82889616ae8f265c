#!/usr/bin/env bash
# Figures 1 and 8: where the full-precision network, the binary baseline and IR²Net look, stage by stage, and what IRes
# would mask; from the networks in checkpoints/.
#   DATA_DIR=dir   a folder of CIFAR-10's images, DIR/test/<class>/: draw on them (default: digits, which need no download)
#   PICK="0 1"     numbers of the test images
#   LAM=x          lambda of the masks (default: 0.9; at the paper's 0.15 the binary networks mask nothing)
#   OUT=file.png   (default: results/fig8_<data>.png)
source "$(dirname "$0")/setup.sh"
source scripts/checks.sh
if [ -n "${PICK:-}" ]; then check_list PICK "$PICK"; fi
if [ -n "${DATA_DIR:-}" ]; then
    networks=(checkpoints/cifar10_jpeg/{fp/seed0.pt,baseline/seed0.packed,ir2net/seed0.packed})
    images=(--dataset folder --data-dir "$DATA_DIR" --pick ${PICK:-1004 3010 8003})
    out=${OUT:-results/fig8_cifar10.png}
else
    networks=(checkpoints/digits/{fp.pt,baseline.packed,ir2net.packed})
    images=(--dataset digits --pick ${PICK:-0 1 2})
    out=${OUT:-results/fig8_digits.png}
fi
python -m utils.attention --checkpoint "${networks[@]}" "${images[@]}" --lam "${LAM:-0.9}" --output "$out" "$@"
