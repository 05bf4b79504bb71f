#!/usr/bin/env bash
# Measures encoding and training at the size of LLaVA-1.5-7B on one GPU, and appends the ratios to benchmarks/RESULTS.md.
#   bash benchmarks/gpu.sh           7B with random weights, under 25 minutes on 80 GB; 14 GB of disk in TMPDIR
#   bash benchmarks/gpu.sh --tiny    the same commands with a tiny model on the CPU, to check that they run
# Skips LoRA in bfloat16 with less than 60 GiB of GPU memory, and QLoRA without bitsandbytes.
set -eu -o pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD" TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ "${1:-}" = --tiny ]; then
    size=tiny device=cpu gib=1000 turns=2 batch=4 results="$work/results.md"
    # Paged optimisers need a GPU.
    smaller=(--identities_per_batch 4 --images_per_identity 2 --optim adamw_torch)
else
    python -c "import torch, sys; sys.exit(not torch.cuda.is_available())" || { echo "gpu.sh: no GPU found: give --tiny to check the commands"; exit 2; }
    size=7b device=cuda turns=6 batch=64 results=benchmarks/RESULTS.md smaller=()
    gib=$(python -c "import torch; print(torch.cuda.mem_get_info()[1] // 2**30)")
fi
common=(--size "$size" --device "$device" --backbone "$work/llava" --append "$results")
lora=(--recipe configs/llava_1_5_7b_lora_80gb.yaml "${smaller[@]}")
qlora=(--recipe configs/llava_1_5_7b_qlora_24gb.yaml "${smaller[@]}")

python benchmarks/models.py --size "$size" --output "$work/llava"
python benchmarks/encoding.py "${common[@]}" --dtype bfloat16 --batch_size "$batch" --repeats $((turns * 3))
if python -c "import bitsandbytes" 2>/dev/null; then
    python benchmarks/training.py "${common[@]}" --repeats "$turns" --parts floor trainer "${qlora[@]}"
else
    echo "QLoRA: not run, bitsandbytes is not installed"
fi
if [ "$gib" -ge 60 ]; then
    python benchmarks/training.py "${common[@]}" --repeats "$turns" --parts floor trainer "${lora[@]}"
    python benchmarks/training.py "${common[@]}" --repeats "$turns" --parts adapters --adapters lora 4bit "${lora[@]}"
    python benchmarks/training.py "${common[@]}" --steps 3 --parts cached "${lora[@]}"
    python benchmarks/scaling.py "${common[@]}" --repeats 3 --parts batch tokens identities "${lora[@]}"
else
    echo "LoRA in bfloat16, cached gradients, scaling: not run, the GPU has $gib GiB"
fi
[ "$device" = cuda ] || cat "$results"
