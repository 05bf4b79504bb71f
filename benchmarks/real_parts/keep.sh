#!/usr/bin/env bash
# Copies the finished runs of the ablation into the repository, where ablation.sh begins: on another machine it then
# continues with the other runs. Their logs stay behind.
#   RUNS=FOLDER bash benchmarks/real_parts/keep.sh
set -eu -o pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "${RUNS:-runs/real}"
for result in {ablation,ablation_from_composed{,_longer}}/runs/*/result.json; do
    run=${result%/*}
    [ -f "$result" ] || continue # there is none yet
    [ ! -d "$here/$run" ] || continue
    mkdir -p "$here/$run.part"
    cp "$run"/{result,curves}.json "$run"/queries-*.npz "$here/$run.part"
    for agreement in "$run"/agreement-*.json; do
        [ ! -f "$agreement" ] || gzip -nc "$agreement" > "$here/$run.part/${agreement##*/}.gz"
    done
    # The report shows the texts of one run of S+D.
    case $run in
        ablation/runs/s-d-rendered-*-seed0-*)
            [ ! -f "$run/agreement-0.png" ] || cp "$run/agreement-0.png" "$here/$run.part"
            ;;
    esac
    mv "$here/$run.part" "$here/$run"
    echo "$run"
done
