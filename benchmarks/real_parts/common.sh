# Sourced by base.sh, ablation.sh and checkpoint.sh: what to compute with, and the composed LLaVA of DINOv2-small and
# SmolLM2-135M, whose weights come from packages.
#   RUNS=FOLDER     where everything goes (runs/real); the same command continues a killed one
#   DTYPE=float32   in place of bfloat16 where the machine computes that fast
#   OUTSIDE=FOLDER  crops in Market-1501 layout that every final model is tested on, once
# On a machine without network, carry $RUNS/parts.
set -eu -o pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_DISABLE_PROGRESS_BARS=1
runs=${RUNS:-runs/real} && mkdir -p "$runs" && runs=$(cd "$runs" && pwd)
reid() { python -m modeling_mllmreid "$@"; }
holds() { python -c "import sys, torch; from modeling_mllmreid.utils.processes import has_bfloat16; sys.exit(not $1)"; }
dtype=${DTYPE:-bfloat16}
if holds "torch.cuda.is_available()"; then
    device=(--use_cpu false) processes=${PROCESSES:-8}
else
    device=(--use_cpu true --attn_implementation eager) processes=${PROCESSES:-2}
    if [ "$dtype" = float32 ] || ! holds "has_bfloat16()"; then
        dtype=float32
    else
        device+=(--torch_compile true) # of the decoder layers, which is faster in bfloat16; needs a C++ compiler
    fi
fi
[ "$dtype" = bfloat16 ] && device+=(--bf16 true) || device+=(--bf16 false)
folders() { # of worlds, as JSON
    local text="" name
    for name in "$@"; do text+="${text:+, }\"$name\": \"data/$name\""; done
    echo "{$text}"
}
[ -z "${OUTSIDE:-}" ] || OUTSIDE=$(cd "$OUTSIDE" && pwd)
cd "$runs" # Reports name models and data sets relative to it.

[ -d parts/llava ] || reid parts --output parts
# Of the layers of this DINOv2 the last two ranked people worst in a pilot.
[ -d composed ] || reid compose --tower parts/dinov2 --language_model parts/smollm2 \
    --vision_feature_layer -3 --output composed
base_llava() { # the LLaVA that the runs start from, as base.sh has trained it
    [ -d base_llava ] || python "$here/low_rank.py" apply composed "$here/base" base_llava
}
outside_crops() {
    [ -z "${OUTSIDE:-}" ] || [ -d outside_crops ] ||
        reid prepare --dataset market1501 --data_dir "$OUTSIDE" --output outside_crops
}
