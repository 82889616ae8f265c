#!/usr/bin/env bash
# Figures 1 and 8: where the full-precision network, the binary baseline and IR²Net look, and what IRes would mask.
#   DATA_DIR=dir   a folder of CIFAR-10's images, DIR/test/<class>/: draw on them (default: digits, which need no download)
#   RUNS=dir       of scripts/imagenette.sh: draw its networks at 224 px, side by side, on photographs in DATA_DIR, which
#                  has DIR/full_size/<class>/, of any size, or DIR/val/<class>/; else the networks are in checkpoints/
#   PICK="0 1"     numbers of the test images
#   LAM=x          lambda of the masks (default: 0.9; at the paper's 0.15 the binary networks mask nothing)
#   OUT=file.png   (default: results/fig8_<data>.png)
source "$(dirname "$0")/setup.sh"
source scripts/checks.sh
if [ -n "${PICK:-}" ]; then check_list PICK "$PICK"; fi
if [ -n "${RUNS:-}" ]; then
    DATA_DIR=${DATA_DIR:-data/imagenette}
    networks=("$RUNS"/{fp/seed0,baseline/seed0/stage2,ir2net_c/seed0/stage2}/last.pt)
    folder=$DATA_DIR/full_size
    if [ ! -d "$folder" ]; then folder=$DATA_DIR/val; fi
    if [ ! -d "$folder" ]; then refuse "DATA_DIR=$DATA_DIR has neither full_size/ nor val/"; fi
    mapfile -t files < <(find -L "$folder" -type f | sort)
    images=(--overview --image-size 224 --names "full precision" baseline IR²Net-C --images)
    for number in ${PICK:-4 16 36}; do
        if [ "$number" -ge "${#files[@]}" ]; then refuse "PICK=$number: $folder has ${#files[@]} images"; fi
        images+=("${files[number]}")
    done
    out=${OUT:-results/fig8_photographs.png}
elif [ -n "${DATA_DIR:-}" ]; then
    networks=(checkpoints/cifar10_jpeg/{fp/seed0.pt,baseline/seed0.packed,ir2net/seed0.packed})
    images=(--dataset folder --data-dir "$DATA_DIR" --pick ${PICK:-1004 3010 8003})
    out=${OUT:-results/fig8_cifar10.png}
else
    networks=(checkpoints/digits/{fp.pt,baseline.packed,ir2net.packed})
    images=(--dataset digits --pick ${PICK:-0 1 2})
    out=${OUT:-results/fig8_digits.png}
fi
python -m utils.attention --checkpoint "${networks[@]}" "${images[@]}" --lam "${LAM:-0.9}" --output "$out" "$@"
