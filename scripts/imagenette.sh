#!/usr/bin/env bash
# The ImageNet networks on photographs that a computer without a GPU can learn: a full-precision teacher, then, taught
# by it in two stages, the binary baseline and IR²Net-C, A and D; then the table.
#   DATA_DIR=dir    train/ and val/ of class folders (default: data/imagenette); tables call the data by its name
#   EPOCHS=n        of the teacher, and of each stage (default: 100)
#   IMAGE_SIZE=n    (default: 96)
#   RUNS=dir        where the runs go (default: runs/<DATA_DIR's own name>-<IMAGE_SIZE>-<EPOCHS>)
#   SEEDS=, JOBS=   as in scripts/cells.sh, which says what a second call does
# Batches of 32: of 9,469 images an epoch is few steps. One data process feeds more images than a CPU can learn.
source "$(dirname "$0")/setup.sh"
DATASET=imagenet
EPOCHS=${EPOCHS:-100}
IMAGE_SIZE=${IMAGE_SIZE:-96}
DATA_DIR=${DATA_DIR:-data/imagenette}
RUNS=${RUNS:-runs/$(basename "$DATA_DIR")-$IMAGE_SIZE-$EPOCHS}
source scripts/cells.sh
check_count IMAGE_SIZE "$IMAGE_SIZE"
extra=(--image-size "$IMAGE_SIZE" --batch-size 32 --workers 1 "${extra[@]}")

read -r first _ <<<"$SEEDS"
teacher=$RUNS/fp/seed$first
JOBS=1 OMP_NUM_THREADS=$cores \
cell fp --stage single --weight-bits 32 --activation-bits 32 --structure normal --activation relu --teacher none
wait
if [ ! -e "$teacher/summary.json" ]; then finish echo "no teacher: the others wait for it"; fi
cell baseline --teacher "$teacher/last.pt"
cell ir2net_c --teacher "$teacher/last.pt" --variant c
cell ir2net_a --teacher "$teacher/last.pt" --variant a
cell ir2net_d --teacher "$teacher/last.pt" --variant d

finish python -m utils.tables costs --runs "$RUNS"
