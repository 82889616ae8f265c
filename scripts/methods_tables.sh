#!/usr/bin/env bash
# RBNN's, ReCU's and AdaBin's CIFAR-10 networks, each by its own recipe. Settings: see scripts/cells.sh. Their ImageNet
# networks: scripts/table4_imagenet.sh.
source "$(dirname "$0")/setup.sh"
source scripts/cells.sh

cell resnet20/rbnn_normal --arch resnet20 --method rbnn --structure normal
cell resnet20/rbnn_bireal --arch resnet20 --method rbnn --structure bireal
cell resnet20/recu --arch resnet20 --method recu
cell resnet20/adabin --arch resnet20 --method adabin
cell resnet18/rbnn --arch resnet18 --method rbnn
cell resnet18/recu --arch resnet18 --method recu
cell vgg_small/rbnn --arch vgg_small --method rbnn
cell vgg_small/recu --arch vgg_small --method recu
cell vgg_small/adabin --arch vgg_small --method adabin

finish python -m utils.tables methods --runs "$RUNS" --data "$DATASET"
