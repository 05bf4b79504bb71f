#!/usr/bin/env bash
# The ablation on real parts, from packages to the report: DINOv2-small + SmolLM2-135M, people in three dimensions.
#   bash benchmarks/real_parts.sh            2 CPU cores, some hours. One GPU: PROCESSES runs at once
#   bash benchmarks/real_parts.sh base       only the LLaVA that the runs start from
#   bash benchmarks/real_parts.sh checkpoint only the model at the end, once the ablation has written its texts
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
    device=(--use_cpu true --attn_implementation eager) processes=${PROCESSES:-2}
    if holds "has_bfloat16()"; then
        device+=(--torch_compile true) # of the decoder layers, which is faster in bfloat16; needs a C++ compiler
    else
        dtype=float32 bf16=false
    fi
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
# SmolLM2's system turn would be a fifth of the tokens of every later step, a third of those of an embedding.
[ ! -d captions_llava ] || cat > captions_llava/chat_template.jinja <<'TEMPLATE'
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
TEMPLATE
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
[ "${1:-}" = checkpoint ] || reid ablate ablation_small --base_model base_llava --teacher_model composed \
    --test_sets "${tests[@]}" --data_dirs "$(folders rendered_suburb rendered_elsewhere)" --output_dir ablation \
    --base_dtype $dtype --processes "$processes" "${device[@]}"

# The checkpoint. Its tower learns people by the ReID losses alone, whose steps are cheap; the whole method follows.
worlds=(rendered_town_summer rendered_town_winter rendered_village rendered_suburb)
[ -f tower/run.json ] || reid train --model base_llava --output_dir tower --dtype $dtype \
    --dataset "$(IFS=+ && echo "${worlds[*]}")" --data_dirs "$(folders "${worlds[@]}")" \
    --height 112 --width 56 --reid_on vision --test_feature vision --loss_lambda 1 \
    --language_model frozen --tower full --eval_strategy no --save_strategy steps --save_steps 50 --save_total_limit 1 \
    --identities_per_batch 16 --images_per_identity 4 --max_steps 300 --warmup_steps 30 --lr_scheduler_type cosine \
    --learning_rate 4e-5 --learning_rates '{"reid_head": 1e-3}' --max_grad_norm 1 --weight_decay 0.01 "${device[@]}"
[ -d tower_llava ] || reid export --model tower --to native --output tower_llava
whole_method() { # name, settings
    [ -f "$1/run.json" ] || reid train small --model tower_llava --output_dir "$1" --dtype $dtype \
        --dataset rendered_suburb --data_dir data/rendered_suburb --val_identities 30 \
        --texts ablation/base/texts-*/rendered-suburb-train-32-tokens.jsonl --max_target_tokens 32 \
        --height 112 --width 56 --reid_on both --test_feature concat --lora_dropout 0 \
        --identities_per_batch 8 --images_per_identity 4 --max_steps 80 --warmup_steps 8 \
        --learning_rates '{"reid_head": 1e-3, "multi_modal_projector": 1e-4, "vision_tower": 2e-5}' \
        --activation_checkpointing false --eval_strategy steps --eval_steps 40 --save_strategy steps --save_steps 40 \
        --save_total_limit 2 "${device[@]}" "${@:2}"
}
whole_method checkpoint --reid_text true
whole_method images_only --reid_text false # for what the search by words costs the search by images

# Each test set once. Words are searched with by the feature of the language model.
measure() { # name of the result, options
    [ -f "$1/metrics.json" ] || reid evaluate --model checkpoint --dtype $dtype --output_dir "$1" "${@:2}"
}
measure of_elsewhere --dataset rendered_elsewhere --data_dir data/rendered_elsewhere --compare images_only
[ -z "${OUTSIDE:-}" ] || measure of_outside --dataset outside_crops --compare images_only
measure of_descriptions --dataset rendered_descriptions --data_dir data/rendered_descriptions \
    --test_feature llm --text_queries true
