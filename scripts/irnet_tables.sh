#!/usr/bin/env bash
# IR-Net's CIFAR-10 networks, 1/1 and 1/32. Settings: see scripts/cells.sh. Its ImageNet networks:
# scripts/table4_imagenet.sh.
source "$(dirname "$0")/setup.sh"
source scripts/cells.sh

cell resnet20/1w1a_normal --arch resnet20 --method irnet --structure normal
cell resnet20/1w1a_bireal --arch resnet20 --method irnet --structure bireal
cell resnet20/1w32a --arch resnet20 --method irnet --activation-bits 32
cell vgg_small/1w1a --arch vgg_small --method irnet
cell resnet18/1w1a --arch resnet18 --method irnet

finish python -m utils.tables irnet --runs "$RUNS" --data "$DATASET"
