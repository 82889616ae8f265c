# What the scripts that train know of runs: source it.

# recorded FOLDER FLAG: what a run's args.json says of it.
recorded() { sed -n "s/^  \"$2\": \"\{0,1\}\([^\"]*[^\",]\)\"\{0,1\},\{0,1\}$/\1/p" "$1/args.json" 2>/dev/null || true; }

# finished FOLDER OUT: say so of a run. Fails, and says so, if it is one on other images than DATA_DIR's.
finished() {
    local data epochs
    data=$(recorded "$1" data_dir) epochs=$(recorded "$1" epochs)
    if [ -d "$data" ] && ! [ "$data" -ef "$DATA_DIR" ]; then
        echo "$2: failed: it is a run on $data: give another RUNS=dir" >&2
        return 1
    fi
    if [ "${EPOCHS:-$epochs}" = "$epochs" ]; then echo "$2: finished"; else echo "$2: finished, with $epochs epochs"; fi
}

# error_of LOG LINES: the first error after so many lines of a log, or where to look.
error_of() {
    local reason
    reason=$(awk "NR > $2 && /^error:/ { print; exit }" "$1")
    echo "${reason:-see $1}"
}
