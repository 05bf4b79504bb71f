#!/usr/bin/env bash
# The whole method on real parts, after ablation.sh, whose continuations it takes.
#   bash benchmarks/real_parts/checkpoint.sh  2 CPU cores, about three hours; settings: common.sh
. "$(dirname "$0")/common.sh"
base_llava
outside_crops

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
