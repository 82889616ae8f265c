# What the table scripts share: source it after setup.sh. `cell NAME FLAGS` trains one cell of a table with every seed.
#   RUNS=dir      where the runs go (default: runs/<script's name>-<DATASET>, or DATA_DIR's own name instead of folder,
#                 with -<EPOCHS> if given)
#   DATASET=, DATA_DIR=   cifar10 in data/ by default; folder, cifar100 or digits (imagenet: scripts/imagenette.sh)
#   EPOCHS=n      another number of epochs than the recipe's
#   SEEDS="0 1"   (default: 0)
#   JOBS=n        cells at once, on one device (default: 1); the CPU's cores are shared out among them (imagenette.sh's
#                 teachers, for which the others wait, have them all)
# A finished cell is skipped, an interrupted one goes on where it was; a failing one does not stop the others, and
# `finish` says so with the script's exit status. The script's own arguments go to every cell.
source scripts/checks.sh
source scripts/runs.sh
DATASET=${DATASET:-cifar10}
DATA_DIR=${DATA_DIR:-data}
images=$DATASET
if [ "$DATASET" = folder ]; then images=$(basename "$DATA_DIR"); fi
RUNS=${RUNS:-runs/$(basename "$0" .sh)-$images${EPOCHS:+-$EPOCHS}}
SEEDS=${SEEDS:-0}
JOBS=${JOBS:-1}
case $DATASET in cifar10 | cifar100 | digits | folder | imagenet) ;; *) refuse "no DATASET=$DATASET" ;; esac
check_count JOBS "$JOBS"
check_list SEEDS "$SEEDS"
if [ -n "$(tr -s ' ' '\n' <<<"$SEEDS" | sort | uniq -d)" ]; then refuse "SEEDS='$SEEDS' names one twice"; fi
if [ -n "${EPOCHS:-}" ]; then check_count EPOCHS "$EPOCHS"; fi
cores=$(nproc) # at most OMP_NUM_THREADS, where that is set
if [ "$JOBS" -gt 1 ]; then # processes that each use every core wait for each other most of the time
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((cores + JOBS - 1) / JOBS))}
fi
trainer=cifar.train
extra=(--dataset "$DATASET" --no-progress)
if [ "$DATASET" = imagenet ]; then
    trainer=imagenet.train
    extra=(--no-progress)
fi
if [ "$DATASET" != digits ]; then extra+=(--data-dir "$DATA_DIR"); fi
if [ -n "${EPOCHS:-}" ]; then extra+=(--epochs "$EPOCHS"); fi
extra+=("$@")
mkdir -p "$RUNS"
failures=$(mktemp)
trap 'rm -f "$failures"' EXIT
trap 'kill $(jobs -p) || true; wait; exit 143' TERM # the trainings end with the script, once they have saved
trap 'kill $(jobs -p) || true; wait; exit 130' INT  # bash lets jobs in the background ignore Ctrl-C

train_one() {
    local out=$1 folder
    shift
    for folder in "$out" "$out/stage2"; do
        if [ -e "$folder/summary.json" ]; then
            finished "$folder" "$out" || echo "$out" >>"$failures"
            return
        fi
    done
    local resume=()
    if [ -e "$out/last.pt" ] || [ -e "$out/stage1/last.pt" ]; then resume=(--resume); fi
    mkdir -p "$(dirname "$out")"
    echo "$out: training"
    touch "$out.log"
    local before
    before=$(wc -l <"$out.log")
    python -m "$trainer" "$@" "${extra[@]}" "${resume[@]}" --output-dir "$out" >>"$out.log" 2>&1 &
    trap "kill $!; wait $!; exit" TERM INT
    if ! wait $!; then
        echo "$out: failed: $(error_of "$out.log" "$before")" | tee -a "$failures" >&2
    fi
}

cell() {
    local name=$1 seed
    shift
    for seed in $SEEDS; do
        while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
        train_one "$RUNS/$name/seed$seed" "$@" --seed "$seed" &
    done
}

# finish COMMAND...: wait for all cells, run COMMAND, and exit with 1 if a cell failed.
finish() {
    wait
    "$@"
    if [ -s "$failures" ]; then
        echo "error: $(wc -l <"$failures") runs failed, see $RUNS" >&2
        exit 1
    fi
}
