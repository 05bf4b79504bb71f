#!/usr/bin/env bash
# Measures a LoRA step, a 4-bit step and encoding of each family on one GPU, and appends to benchmarks/RESULTS.md.
#   bash benchmarks/gpu_families.sh          published sizes with random weights, at most 8 minutes on 80 GB
#   bash benchmarks/gpu_families.sh --tiny   the same commands with small copies on the CPU, to check that they run
# Each family has a limit of its own; one that fails or runs out of it is named, and the next one starts.
set -u -o pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD" TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1

if [ "${1:-}" = --tiny ]; then
    setting=(--size small --device cpu --batch_size 4)
    limit=300
else
    python -c "import torch, sys; sys.exit(not torch.cuda.is_available())" || { echo "gpu_families.sh: no GPU found: give --tiny to check the commands"; exit 2; }
    setting=(--size published --device cuda --batch_size 16 --append benchmarks/RESULTS.md)
    limit=48
fi
failed=0
for name in $(python -c "import sys; sys.path.insert(0, 'benchmarks'); import family_shapes; print(*family_shapes.PUBLISHED)"); do
    if ! timeout "$limit" python benchmarks/families.py --parts training overhead --families "$name" "${setting[@]}"; then
        echo "$name: failed, or ran longer than $limit s"
        failed=1
    fi
done
exit "$failed"
