#!/usr/bin/env bash
# Table IV, and the ImageNet rows of IR-Net, SD-BNN, RBNN, ReCU and AdaBin: one command per cell, then the tables.
#   DATA_DIR=dir  holds train/ and val/ (default: data/imagenet)
#   RUNS=dir      where the runs go (default: runs/table4_<DATA_DIR's own name>)
#   GPUS=n        processes of this machine (default: its GPUs, or 1); for several machines: scripts/imagenet_slurm.sh
# IMAGES_PER_S=x with the speed that `python -m utils.bench train --dataset imagenet` measures prints what the runs take
# and ends. A finished cell is skipped, an interrupted one goes on where it was. Arguments go to every cell.
source "$(dirname "$0")/setup.sh"
source scripts/checks.sh
source scripts/runs.sh
DATA_DIR=${DATA_DIR:-data/imagenet}
RUNS=${RUNS:-runs/table4_$(basename "$DATA_DIR")}
GPUS=${GPUS:-$(nvidia-smi -L 2>/dev/null | grep -c . | grep -v '^0$' || true)}
if [ -z "$GPUS" ]; then GPUS=1; fi
check_count GPUS "$GPUS"

if [ -n "${IMAGES_PER_S:-}" ]; then
    exec python -m imagenet.cost --images-per-s "$IMAGES_PER_S" --gpus "$GPUS"
fi

failed=0
cell() { # cell NAME LAST_STAGE FLAGS
    local out=$RUNS/$1 last=$RUNS/$1$2
    shift 2
    if [ -e "$last/summary.json" ]; then
        finished "$last" "$out" || failed=1
        return
    fi
    mkdir -p "$RUNS"
    echo "$out: training"
    local log=$out.log before
    touch "$log"
    before=$(wc -l <"$log")
    torchrun --standalone --nproc-per-node "$GPUS" --max-restarts 3 -m imagenet.train --data-dir "$DATA_DIR" \
        --auto-resume --output-dir "$out" "$@" >>"$log" 2>&1 &
    trap "kill $!; wait $! || true; exit 143" TERM # the training ends with the script, once it has saved
    trap "kill $!; wait $! || true; exit 130" INT
    if ! wait $!; then
        echo "$out: failed: $(error_of "$log" "$before")" >&2
        failed=1
    fi
}

cell ir2net_a /stage2 --variant a "$@"
cell ir2net_b /stage2 --variant b "$@"
cell ir2net_c /stage2 --variant c "$@"
cell ir2net_d /stage2 --variant d "$@"
cell reactnet /stage2 --method reactnet "$@"
cell sdbnn /stage2 --method sdbnn "$@"
cell irnet "" --method irnet "$@"
cell irnet_1w32a "" --method irnet --activation-bits 32 "$@"
cell irnet_resnet34 "" --method irnet --arch resnet34 "$@"
cell irnet_resnet34_1w32a "" --method irnet --arch resnet34 --activation-bits 32 "$@"
cell rbnn "" --method rbnn "$@"
cell rbnn_resnet34 "" --method rbnn --arch resnet34 "$@"
cell recu "" --method recu "$@"
cell recu_resnet34 "" --method recu --arch resnet34 "$@"
cell recu_twostage /stage2 --method recu_twostage "$@"
cell adabin "" --method adabin "$@"
cell adabin_resnet34 "" --method adabin --arch resnet34 "$@"

python -m utils.tables 4 --runs "$RUNS"
python -m utils.tables irnet --runs "$RUNS"
python -m utils.tables sdbnn --runs "$RUNS"
python -m utils.tables methods --runs "$RUNS"
exit $failed
