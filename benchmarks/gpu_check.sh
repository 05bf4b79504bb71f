#!/usr/bin/env bash
# Does it work on this GPU? The suite, the tests marked gpu and the demo, in at most 5 minutes.
#   bash benchmarks/gpu_check.sh     logs and summary.txt into $OUT (runs/gpu); the exit code is the number of parts that failed
#   WORKERS=14                       processes of the suite; by default one a core
# What it costs at LLaVA-1.5-7B's size is benchmarks/gpu.sh's.
set -u -o pipefail
cd "$(dirname "$0")/.."
out=${OUT:-runs/gpu} workers=${WORKERS:-$(nproc)}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1 HF_HUB_DISABLE_PROGRESS_BARS=1
python -c "import torch, sys; sys.exit(not torch.cuda.is_available())" || { echo "gpu_check.sh: no CUDA GPU is seen"; exit 2; }
mkdir -p "$out" && rm -rf "$out/demo" || exit 2
python -c "import platform, torch; print(torch.cuda.get_device_name(), 'python', platform.python_version(), 'torch', torch.__version__)" |
    tee "$out/summary.txt"

failed=0
part() {  # name, limit in seconds, command
    local name=$1 limit=$2 start=$SECONDS code=0 said
    shift 2
    timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?
    case $code in
        0) said=passed ;;
        124 | 137) said="failed: not done in $limit s" ;;
        *) said="failed: exit code $code" ;;
    esac
    [ "$code" -eq 0 ] || failed=$((failed + 1))
    echo "$name: $said, $((SECONDS - start)) s: $(grep -E '[0-9]+ (passed|failed|error)|largest difference' "$out/$name.log" | tail -n 1)" |
        tee -a "$out/summary.txt"
    grep -E '^(FAILED|ERROR) ' "$out/$name.log" | tee -a "$out/summary.txt"
}

part demo 85 python run_reid.py demo --use_cpu false --output_dir "$out/demo" --max_steps 250 --eval_steps 125 \
    --save_steps 125 --lesson_steps 200 --train_identities 60 --test_identities 30 --disable_tqdm true
part gpu 60 python -m pytest -n 3 -m gpu -rs tests/*/test_*_on_gpu.py
part suite 155 python -m pytest -n "$workers" -m "not slow and not gpu"
exit "$failed"
