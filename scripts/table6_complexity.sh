#!/usr/bin/env bash
# Table VI: the paper's BOPs, FLOPs and OPs beside ours, and the CIFAR heads against equation (17). Under a minute.
source "$(dirname "$0")/setup.sh"

python -m utils.tables 6 "$@"
