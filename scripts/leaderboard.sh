#!/usr/bin/env bash
# Every method of models/methods.py on ResNet-20, plain and with CIRec, under one recipe, and the full-precision network.
# Ends in one table: accuracy, gap, operations, size, and what CIRec gains over the seeds. Settings: see scripts/cells.sh.
source "$(dirname "$0")/setup.sh"
batch=128
if [ "${DATASET:-}" = digits ]; then batch=32; fi # 128 would make 12 steps an epoch
set -- --batch-size "$batch" --lr 0.1 --warmup-epochs 0 --momentum 0.9 --weight-decay 1e-4 --t-min 1e-3 "$@"
export EPOCHS=${EPOCHS:-400}
source scripts/cells.sh

cell fp --arch resnet20 --structure normal --activation relu --weight-bits 32 --activation-bits 32
methods=$(python -c "from models import METHODS; print(*METHODS)")
for method in $methods; do
    cell "$method" --arch resnet20 --structure bireal --method "$method"
    cell "${method}_cirec" --arch resnet20 --structure bireal --method "$method" --recovery cirec
done

finish python -m utils.tables leaderboard --runs "$RUNS"
