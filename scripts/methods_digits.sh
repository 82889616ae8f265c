#!/usr/bin/env bash
# Every 1/1 method on the digits that ship with scikit-learn, alone and with IRes + CIRec: 15 epochs each, ResNet-20.
# A check that all of them train; about three quarters of an hour on two cores.
source "$(dirname "$0")/setup.sh"
DATASET=digits
EPOCHS=${EPOCHS:-15}
set -- --batch-size 32 "$@"
source scripts/cells.sh

cell bireal --arch resnet20 --method bireal
cell bnn --arch resnet20 --method bnn
cell xnor --arch resnet20 --method xnor
cell irnet --arch resnet20 --method irnet
cell sdbnn --arch resnet20 --method sdbnn
cell reactnet --arch resnet20 --method reactnet
cell rbnn --arch resnet20 --method rbnn
cell recu --arch resnet20 --method recu
cell adabin --arch resnet20 --method adabin
cell bireal_ir2net --arch resnet20 --method bireal --ires --recovery cirec
cell bnn_ir2net --arch resnet20 --method bnn --ires --recovery cirec
cell xnor_ir2net --arch resnet20 --method xnor --ires --recovery cirec
cell irnet_ir2net --arch resnet20 --method irnet --ires --recovery cirec
cell sdbnn_ir2net --arch resnet20 --method sdbnn --ires --recovery cirec
cell reactnet_ir2net --arch resnet20 --method reactnet --ires --recovery cirec
cell rbnn_ir2net --arch resnet20 --method rbnn --ires --recovery cirec
cell recu_ir2net --arch resnet20 --method recu --ires --recovery cirec
cell adabin_ir2net --arch resnet20 --method adabin --ires --recovery cirec

finish python -m utils.tables runs --runs "$RUNS"
