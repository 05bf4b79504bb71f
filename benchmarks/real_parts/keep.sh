#!/usr/bin/env bash
# Copies the finished runs of the ablation into the repository, where ablation.sh begins: on another machine it then
# continues with the other runs. Their logs stay behind.
#   RUNS=FOLDER bash benchmarks/real_parts/keep.sh
set -eu -o pipefail
kept=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/ablation/runs
cd "${RUNS:-runs/real}/ablation/runs"
for result in */result.json; do
    run=${result%/*}
    [ -f "$result" ] || continue # there is none yet
    [ ! -d "$kept/$run" ] || continue
    mkdir -p "$kept/$run.part"
    cp "$run"/{result,curves}.json "$run"/queries-*.npz "$kept/$run.part"
    for agreement in "$run"/agreement-*.json; do
        [ ! -f "$agreement" ] || gzip -nc "$agreement" > "$kept/$run.part/${agreement##*/}.gz"
    done
    # The report shows the texts of one run of S+D.
    case $run in s-d-rendered-*-seed0-*) [ ! -f "$run/agreement-0.png" ] || cp "$run/agreement-0.png" "$kept/$run.part" ;; esac
    mv "$kept/$run.part" "$kept/$run"
    echo "$run"
done
