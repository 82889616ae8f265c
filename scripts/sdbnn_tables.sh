#!/usr/bin/env bash
# SD-BNN's CIFAR-10 networks. Settings: see scripts/cells.sh. Its ImageNet network:
# scripts/table4_imagenet.sh.
source "$(dirname "$0")/setup.sh"
source scripts/cells.sh

cell resnet20 --arch resnet20 --method sdbnn
cell vgg_small --arch vgg_small --method sdbnn
cell resnet18 --arch resnet18 --method sdbnn

finish python -m utils.tables sdbnn --runs "$RUNS" --data "$DATASET"
