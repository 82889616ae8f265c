#!/usr/bin/env bash
# Table I: ablation of IRes, IRec and CIRec on ResNet-20 (Bi-Real structure). Settings: see scripts/cells.sh.
source "$(dirname "$0")/setup.sh"
source scripts/cells.sh

cell fp --arch resnet20 --structure normal --activation relu --weight-bits 32 --activation-bits 32
cell hardtanh --arch resnet20 --weight-bits 32 --activation-bits 32
cell baseline --arch resnet20
cell ires --arch resnet20 --ires
cell ires_quantile --arch resnet20 --ires --ires-variant quantile --lam 0.15
cell irec --arch resnet20 --recovery irec
cell cirec --arch resnet20 --recovery cirec
cell ir2net --arch resnet20 --ires --recovery cirec
cell ir2net_quantile --arch resnet20 --ires --ires-variant quantile --lam 0.15 --recovery cirec

finish python -m utils.tables 1 --runs "$RUNS" --data "$DATASET"
