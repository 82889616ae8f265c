#!/usr/bin/env bash
# Figure 7: accuracy over lambda, with IRes alone and with CIRec; ends in a table and a plot. Settings: see scripts/cells.sh.
source "$(dirname "$0")/setup.sh"
source scripts/cells.sh

cell ires/lam0 --arch resnet20 --ires --lam 0
cell ires/lam0.15 --arch resnet20 --ires --lam 0.15
cell ires/lam0.3 --arch resnet20 --ires --lam 0.3
cell ires/lam0.45 --arch resnet20 --ires --lam 0.45
cell ires/lam0.6 --arch resnet20 --ires --lam 0.6
cell ires/lam0.75 --arch resnet20 --ires --lam 0.75
cell ires/lam0.9 --arch resnet20 --ires --lam 0.9
cell ires/lam1 --arch resnet20 --ires --lam 1
cell ires_cirec/lam0 --arch resnet20 --ires --lam 0 --recovery cirec
cell ires_cirec/lam0.15 --arch resnet20 --ires --lam 0.15 --recovery cirec
cell ires_cirec/lam0.3 --arch resnet20 --ires --lam 0.3 --recovery cirec
cell ires_cirec/lam0.45 --arch resnet20 --ires --lam 0.45 --recovery cirec
cell ires_cirec/lam0.6 --arch resnet20 --ires --lam 0.6 --recovery cirec
cell ires_cirec/lam0.75 --arch resnet20 --ires --lam 0.75 --recovery cirec
cell ires_cirec/lam0.9 --arch resnet20 --ires --lam 0.9 --recovery cirec
cell ires_cirec/lam1 --arch resnet20 --ires --lam 1 --recovery cirec
# This project's own threshold, the lambda-quantile of the attention: lambda is the fraction of pixels masked.
cell ires_quantile/lam0.15 --arch resnet20 --ires --ires-variant quantile --lam 0.15
cell ires_quantile/lam0.3 --arch resnet20 --ires --ires-variant quantile --lam 0.3
cell ires_quantile/lam0.45 --arch resnet20 --ires --ires-variant quantile --lam 0.45
cell ires_quantile/lam0.6 --arch resnet20 --ires --ires-variant quantile --lam 0.6
cell ires_cirec_quantile/lam0.15 --arch resnet20 --ires --ires-variant quantile --lam 0.15 --recovery cirec
cell ires_cirec_quantile/lam0.3 --arch resnet20 --ires --ires-variant quantile --lam 0.3 --recovery cirec
cell ires_cirec_quantile/lam0.45 --arch resnet20 --ires --ires-variant quantile --lam 0.45 --recovery cirec
cell ires_cirec_quantile/lam0.6 --arch resnet20 --ires --ires-variant quantile --lam 0.6 --recovery cirec

finish python -m utils.tables fig7 --runs "$RUNS" --data "$DATASET" --plot "$RUNS/fig7_lambda.png"
