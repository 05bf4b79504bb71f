#!/usr/bin/env bash
# Trains the LLaVA that the runs start from, on people who are used nowhere else: words, captions, common instruction.
#   bash benchmarks/real_parts/base.sh  2 CPU cores, about two hours; settings: common.sh
# It ends with $RUNS/base_change, which stands in this folder as `base`: the ablation need not train it again.
. "$(dirname "$0")/common.sh"

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
stage captions aligned --max_steps 200 --max_target_tokens 48 "${towns[@]}"
# SmolLM2's system turn would be a fifth of the tokens of every later step, a third of those of an embedding.
[ ! -d captions_llava ] || cat > captions_llava/chat_template.jinja <<'TEMPLATE'
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
TEMPLATE
stage more_captions captions_llava --max_steps 100 --seed 1 --max_target_tokens 48 "${towns[@]}"
village=(--dataset rendered_village --data_dir data/rendered_village)
reid continuations --model composed --dtype $dtype "${village[@]}" \
    --batch_size 128 --max_new_tokens 32 --output village.jsonl
stage continuations more_captions_llava --max_steps 100 --max_target_tokens 32 --instruction common --target continuation \
    --texts village.jsonl "${village[@]}"
[ -d base_change ] || python "$here/low_rank.py" write composed continuations_llava base_change --whole multi_modal_projector
