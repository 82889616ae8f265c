#!/usr/bin/env bash
# From a fresh clone to a trained IR²Net: set-up, IR²Net ResNet-20 and its baseline on the 1,797 handwritten digits that
# ship with scikit-learn, and a table. No download but the packages, no GPU, a few minutes on two cores.
#   VENV=path   use that virtual environment instead of .venv
#   RUNS=path   where the runs go (default runs/quickstart-<time>)
source "$(dirname "$0")/setup.sh"

runs=${RUNS:-runs/quickstart-$(date +%Y%m%d-%H%M%S)}
common=(--dataset digits --arch resnet20 --epochs 15 --batch-size 32 --seed 0)

echo "== baseline: binary ResNet-20, neither IRes nor recovery"
python -m cifar.train "${common[@]}" --method bireal --output-dir "$runs/baseline" "$@"
echo "== IR²Net: IRes + CIRec"
python -m cifar.train "${common[@]}" --method bireal --ires --recovery cirec --output-dir "$runs/ir2net" "$@"

echo
python -m utils.tables runs --runs "$runs"
checkpoint=$(printf %q "$runs/ir2net/last.pt")
cat <<EOF

The runs are in $runs. Evaluate a checkpoint again:
  python -m cifar.eval --checkpoint $checkpoint --dataset digits
Next, IR²Net ResNet-20 on CIFAR-10 with the paper's recipe (500 epochs; add --epochs to shorten it):
  python -m cifar.train --data-dir data --download --arch resnet20 --ires --recovery cirec --output-dir runs/ir2net
(activate the environment first: source ${VENV:-.venv}/bin/activate)
EOF
