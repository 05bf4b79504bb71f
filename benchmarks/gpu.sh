#!/usr/bin/env bash
# Measures ranking, encoding and training at the size of LLaVA-1.5-7B on one GPU; appends to benchmarks/RESULTS.md.
#   bash benchmarks/gpu.sh                 7B with random weights made on the GPU, on 80 GB
#   bash benchmarks/gpu.sh ranking lora    these parts alone: ranking encoding pairs pairs_2b qlora lora adapters
#                                          kernels cached scaling
#   bash benchmarks/gpu.sh --tiny [part]   the same commands with a tiny model on the CPU, to check that they run
# Each part has a limit of its own; one that fails or runs out of it is named, and the next one starts. LoRA in bfloat16
# needs 60 GiB of GPU memory, QLoRA bitsandbytes.
set -u -o pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ "${1:-}" = --tiny ]; then
    shift
    size=tiny device=cpu gib=1000 turns=2 batch=4 limit=600 results="$work/results.md" ranked=small
    # Paged optimisers need a GPU.
    smaller=(--identities_per_batch 4 --images_per_identity 2 --optim adamw_torch)
else
    python -c "import torch, sys; sys.exit(not torch.cuda.is_available())" || { echo "gpu.sh: no GPU found: give --tiny to check the commands"; exit 2; }
    size=7b device=cuda turns=6 batch=64 limit=150 results=benchmarks/RESULTS.md smaller=() ranked=msmt17
    gib=$(python -c "import torch; print(torch.cuda.mem_get_info()[1] // 2**30)")
fi
known=(ranking encoding pairs pairs_2b qlora lora adapters kernels cached scaling)
parts=("$@")
[ $# -gt 0 ] || parts=("${known[@]}")
for part in "${parts[@]}"; do
    [[ " ${known[*]} " == *" $part "* ]] || { echo "gpu.sh: unknown part $part: give some of ${known[*]}"; exit 2; }
done
common=(--size "$size" --device "$device" --append "$results")
lora=(--recipe configs/llava_1_5_7b_lora_80gb.yaml "${smaller[@]}")
qlora=(--recipe configs/llava_1_5_7b_qlora_24gb.yaml "${smaller[@]}")

measure() {  # the commands of a part
    case $1 in
        ranking)
            python benchmarks/evaluation.py --sizes "$ranked" --mAP 0.3 --alone --append "$results" &&
                python benchmarks/reranking.py --sizes "${ranked/msmt17/market}" --device "$device" --append "$results"
            ;;
        encoding) python benchmarks/encoding.py "${common[@]}" --dtype bfloat16 --batch_size "$batch" --repeats $((turns * 3)) ;;
        pairs) python benchmarks/pairs.py "${common[@]}" --dtype bfloat16 --queries 1 64 --repeats "$turns" ;;
        pairs_2b) python benchmarks/pairs.py "${common[@]/#7b/2b}" --dtype bfloat16 --queries 1 64 --repeats "$turns" ;;
        qlora) python benchmarks/training.py "${common[@]}" --repeats "$turns" --parts floor trainer "${qlora[@]}" ;;
        lora) python benchmarks/training.py "${common[@]}" --repeats "$turns" --parts floor trainer "${lora[@]}" ;;
        adapters)
            python benchmarks/training.py "${common[@]}" --repeats "$turns" --parts adapters \
                --adapters "lora by PEFT" lora 4bit "${lora[@]}"
            ;;
        kernels)
            python benchmarks/training.py "${common[@]}" --repeats "$turns" --parts adapters \
                --adapters lora "lora compiled" "lora by liger" "${lora[@]}"
            ;;
        cached) python benchmarks/training.py "${common[@]}" --steps 3 --parts cached "${lora[@]}" ;;
        scaling) python benchmarks/scaling.py "${common[@]}" --repeats 3 --parts batch tokens identities "${lora[@]}" ;;
    esac
}

missing() {  # why a part cannot run here, or nothing
    case $1 in
        qlora) python -c "import bitsandbytes" 2>/dev/null || echo "bitsandbytes is not installed" ;;
        lora | adapters | kernels | cached | scaling) [ "$gib" -ge 60 ] || echo "the GPU has $gib GiB" ;;
    esac
}

export -f measure
failed=0
for part in "${parts[@]}"; do
    reason=$(missing "$part")
    if [ -n "$reason" ]; then
        echo "$part: not run, $reason"
        continue
    fi
    start=$SECONDS
    # A shell of its own, so that the limit ends all its processes.
    declare -p size device batch turns results ranked common lora qlora >"$work/settings"
    if timeout --kill-after=5 "$limit" bash -c "source '$work/settings'; measure $part"; then
        echo "$part: done in $((SECONDS - start)) s"
    else
        echo "$part: failed, or ran longer than $limit s"
        failed=1
    fi
done
[ "$device" = cuda ] || cat "$results"
exit "$failed"
