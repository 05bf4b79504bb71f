#!/usr/bin/env bash
# The ablation on real parts, from packages to the report: DINOv2-small + SmolLM2-135M, people in three dimensions.
#   bash benchmarks/real_parts.sh            2 CPU cores, some hours. One GPU: PROCESSES runs at once
#   bash benchmarks/real_parts.sh base       only the LLaVA that the runs start from
#   RUNS=FOLDER                              where everything goes (runs/real); the same command continues a killed one
#   OUTSIDE=FOLDER                           crops in Market-1501 layout that every final model is tested on, once
# On a machine without network, carry $RUNS/parts.
set -eu -o pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_DISABLE_PROGRESS_BARS=1
runs=${RUNS:-runs/real} && mkdir -p "$runs" && runs=$(cd "$runs" && pwd)
reid() { python -m modeling_mllmreid "$@"; }
holds() { python -c "import sys, torch; from modeling_mllmreid.utils.processes import has_bfloat16; sys.exit(not $1)"; }
dtype=bfloat16 bf16=true
if holds "torch.cuda.is_available()"; then
    device=(--use_cpu false) processes=${PROCESSES:-8}
else
    # In bfloat16 compiled decoder layers are faster. They need a C++ compiler.
    device=(--use_cpu true --attn_implementation eager --torch_compile true) processes=${PROCESSES:-2}
    holds "has_bfloat16()" || dtype=float32 bf16=false
fi
device+=(--bf16 $bf16)
folders() { # of worlds, as JSON
    local text="" name
    for name in "$@"; do text+="${text:+, }\"$name\": \"data/$name\""; done
    echo "{$text}"
}
[ -z "${OUTSIDE:-}" ] || OUTSIDE=$(cd "$OUTSIDE" && pwd)
cd "$runs" # The report names models and data sets relative to it.

[ -d parts/llava ] || reid parts --output parts
# Of the layers of this DINOv2 the last two ranked people worst in a pilot.
[ -d composed ] || reid compose --tower parts/dinov2 --language_model parts/smollm2 \
    --vision_feature_layer -3 --output composed

# The LLaVA learns to describe people who are used nowhere else: words, then captions, then the common instruction.
towns=(--dataset rendered_town_summer+rendered_town_winter
    --data_dirs "$(folders rendered_town_summer rendered_town_winter)")
[ -d aligned ] || reid align --model composed "${towns[@]}" --height 112 --width 56 --output aligned
stage() { # name, model to start from, settings
    local name=$1 model=$2
    shift 2
    [ -f "$name/run.json" ] || reid train projector --model "$model" --output_dir "$name" \
        --dtype $dtype --height 112 --width 56 --pairs_per_batch 16 --tower full \
        --language_model lora --lora_rank 16 --lora_dropout 0 --learning_rate 1e-3 \
        --learning_rates '{"vision_tower": 3e-5, "multi_modal_projector": 3e-4}' --activation_checkpointing false \
        --save_steps 50 --save_total_limit 2 "${device[@]}" "$@"
    [ -d "${name}_llava" ] || reid export --model "$name" --to native --output "${name}_llava"
}
stage captions aligned --max_steps 300 --max_target_tokens 48 "${towns[@]}"
village=(--dataset rendered_village --data_dir data/rendered_village)
reid continuations --model composed --dtype $dtype "${village[@]}" \
    --batch_size 128 --max_new_tokens 32 --output village.jsonl
stage base captions_llava --max_steps 100 --max_target_tokens 32 --instruction common --target continuation \
    --texts village.jsonl "${village[@]}"
[ "${1:-}" = base ] && exit

# The original SmolLM2 writes the continuations: the trained one would describe the person instead.
tests=(rendered_elsewhere)
if [ -n "${OUTSIDE:-}" ]; then
    [ -d outside_crops ] || reid prepare --dataset market1501 --data_dir "$OUTSIDE" --output outside_crops
    tests+=(outside_crops)
fi
reid ablate ablation_small --base_model base_llava --teacher_model composed --test_sets "${tests[@]}" \
    --data_dirs "$(folders rendered_suburb rendered_elsewhere)" --output_dir ablation \
    --base_dtype $dtype --processes "$processes" "${device[@]}"
