#!/usr/bin/env bash
# The ablation on real parts, from packages to the report: DINOv2-small + SmolLM2-135M, people in three dimensions.
#   bash benchmarks/real_parts.sh            2 CPU cores: some 9 hours by its dry run. One GPU: PROCESSES runs at once
#   bash benchmarks/real_parts.sh base       only the LLaVA that the runs start from: about 2 hours of one core
#   RUNS=FOLDER                              where everything goes (runs/real); the same command continues a killed one
#   OUTSIDE=FOLDER                           crops in Market-1501 layout that every final model is tested on, once
# On a machine without network, carry $RUNS/parts.
set -eu -o pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_DISABLE_PROGRESS_BARS=1
runs=${RUNS:-runs/real} && mkdir -p "$runs" && runs=$(cd "$runs" && pwd)
reid() { python -m modeling_mllmreid "$@"; }
if python -c "import torch, sys; sys.exit(not torch.cuda.is_available())"; then
    device=(--use_cpu false) processes=${PROCESSES:-8}
else
    device=(--use_cpu true --attn_implementation eager) processes=${PROCESSES:-2}
fi
folders() { # of worlds, as JSON
    local text="" name
    for name in "$@"; do text+="${text:+, }\"$name\": \"$runs/data/$name\""; done
    echo "{$text}"
}

[ -d "$runs/parts/llava" ] || reid parts --output "$runs/parts"
# Of the layers of this DINOv2 the last two ranked people worst in a pilot.
[ -d "$runs/composed" ] || reid compose --tower "$runs/parts/dinov2" --language_model "$runs/parts/smollm2" \
    --vision_feature_layer -3 --output "$runs/composed"

# The LLaVA learns to describe people who are used nowhere else: from captions, then with the common instruction.
stage() { # name, model to start from, settings
    local name=$1 model=$2
    shift 2
    [ -f "$runs/$name/run.json" ] || reid train projector --model "$model" --output_dir "$runs/$name" \
        --height 112 --width 56 --pairs_per_batch 16 --tower full --language_model lora --lora_rank 16 --lora_dropout 0 \
        --learning_rate 1e-3 --learning_rates '{"vision_tower": 3e-5}' --activation_checkpointing false \
        --save_steps 50 --save_total_limit 2 "${device[@]}" "$@"
    [ -d "$runs/${name}_llava" ] || reid export --model "$runs/$name" --to native --output "$runs/${name}_llava"
}
towns=(rendered_town_summer rendered_town_winter)
stage captions "$runs/composed" --max_steps 1500 --max_target_tokens 48 \
    --dataset rendered_town_summer+rendered_town_winter --data_dirs "$(folders "${towns[@]}")"
village=(--dataset rendered_village --data_dir "$runs/data/rendered_village")
reid continuations --model "$runs/composed" --dtype bfloat16 "${village[@]}" \
    --batch_size 128 --max_new_tokens 32 --output "$runs/village.jsonl"
stage base "$runs/captions_llava" --max_steps 200 --max_target_tokens 32 --instruction common --target continuation \
    --texts "$runs/village.jsonl" "${village[@]}"
[ "${1:-}" = base ] && exit

# The original SmolLM2 writes the continuations: the trained one would describe the person instead.
tests=(rendered_elsewhere) places=$(folders rendered_town rendered_elsewhere)
if [ -n "${OUTSIDE:-}" ]; then
    tests+=(market1501) places="${places%\}}, \"market1501\": \"$OUTSIDE\"}"
fi
reid ablate ablation_small --base_model "$runs/base_llava" --teacher_model "$runs/composed" \
    --test_sets "${tests[@]}" --data_dirs "$places" --output_dir "$runs/ablation" --processes "$processes" "${device[@]}"
