#!/usr/bin/env bash
# Checks this GPU: runs the demo, the tests marked gpu and the suite in at most 5 minutes.
#   bash benchmarks/gpu_check.sh     writes logs and summary.txt into $OUT (runs/gpu); exits with the number of failed steps
#   WORKERS=14                       processes of the suite; one a core by default
# benchmarks/gpu.sh measures the cost at the size of LLaVA-1.5-7B.
set -u -o pipefail
cd "$(dirname "$0")/.."
out=${OUT:-runs/gpu} workers=${WORKERS:-$(nproc)}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1 HF_HUB_DISABLE_PROGRESS_BARS=1
python -c "import torch, sys; sys.exit(not torch.cuda.is_available())" || { echo "gpu_check.sh: no CUDA GPU found"; exit 2; }
mkdir -p "$out" && rm -rf "$out/demo" || exit 2
python -c "import platform, torch; print(torch.cuda.get_device_name(), 'python', platform.python_version(), 'torch', torch.__version__)" |
    tee "$out/summary.txt"

failed=0
step() {  # name, limit in seconds, command
    local name=$1 limit=$2 start=$SECONDS code=0 result
    shift 2
    timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?
    case $code in
        0) result=passed ;;
        124 | 137) result="failed: not done in $limit s" ;;
        *) result="failed: exit code $code" ;;
    esac
    [ "$code" -eq 0 ] || failed=$((failed + 1))
    echo "$name: $result, $((SECONDS - start)) s: $(grep -E '[0-9]+ (passed|failed|error)|largest difference' "$out/$name.log" | tail -n 1)" |
        tee -a "$out/summary.txt"
    grep -E '^(FAILED|ERROR) ' "$out/$name.log" | tee -a "$out/summary.txt"
}

step demo 85 python run_reid.py demo --use_cpu false --output_dir "$out/demo" --max_steps 250 --eval_steps 125 \
    --save_steps 125 --pretraining_steps 200 --train_identities 60 --test_identities 30 --disable_tqdm true
step gpu 60 python -m pytest -n 3 -m gpu -rs tests/*/test_*_on_gpu.py
step suite 155 python -m pytest -n "$workers" -m "not slow and not gpu"
exit "$failed"
