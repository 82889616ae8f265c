#!/usr/bin/env bash
# Table III: methods compared on VGG-Small, ResNet-20 (normal and Bi-Real structure) and ResNet-18.
# Settings: see scripts/cells.sh.
source "$(dirname "$0")/setup.sh"
source scripts/cells.sh

cell vgg_small/fp --arch vgg_small --activation relu --weight-bits 32 --activation-bits 32
cell vgg_small/xnor --arch vgg_small --method xnor
cell vgg_small/bnn --arch vgg_small --method bnn
cell vgg_small/irnet --arch vgg_small --method irnet
cell vgg_small/ir2net --arch vgg_small --ires --recovery cirec
cell resnet20/fp --arch resnet20 --structure normal --activation relu --weight-bits 32 --activation-bits 32
cell resnet20/irnet_normal --arch resnet20 --method irnet --structure normal
cell resnet20/ir2net_normal --arch resnet20 --structure normal --ires --recovery cirec
cell resnet20/irnet_bireal --arch resnet20 --method irnet --structure bireal
cell resnet20/ir2net_bireal --arch resnet20 --structure bireal --ires --recovery cirec
cell resnet18/fp --arch resnet18 --structure normal --activation relu --weight-bits 32 --activation-bits 32
cell resnet18/irnet --arch resnet18 --method irnet
cell resnet18/rbnn --arch resnet18 --method rbnn
cell resnet18/ir2net --arch resnet18 --ires --recovery cirec

finish python -m utils.tables 3 --runs "$RUNS" --data "$DATASET"
