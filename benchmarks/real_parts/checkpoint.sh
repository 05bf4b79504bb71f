#!/usr/bin/env bash
# A small checkpoint of the whole method on real parts, with search by words: of the change that stands in this folder.
#   bash benchmarks/real_parts/checkpoint.sh  ends with $RUNS/checkpoint, measured once on each test set; settings:
#                                             common.sh
#   REPEAT=true                               trains it anew: $RUNS/repeated, of the change $RUNS/repeated_change
. "$(dirname "$0")/common.sh"
base_llava
outside_crops
# A change of the base stands for the whole checkpoint, which is too large for a repository.
model=checkpoint change=$here/checkpoint
full() { [ -d "$1_full" ] || reid export --model "$1" --to full --output "$1_full"; }
full base_llava

if [ -n "${REPEAT:-}" ]; then
    model=repeated change=repeated_change
    if [ ! -f texts.jsonl ]; then
        gunzip -c "$here"/ablation/base/texts-*/rendered-suburb-train-32-tokens.jsonl.gz > texts.part
        mv texts.part texts.jsonl
    fi
    stage() { # name, model to start from, settings
        [ -f "$1/run.json" ] || reid train --model "$2" --output_dir "$1" --dtype $dtype --height 196 --width 98 \
            --reid_on both --llm_layer 2 --triplet_scale batch --test_feature concat --language_model frozen \
            --tower full --identities_per_batch 16 --images_per_identity 4 --color_jitter 0.2 --downscale 0.3 \
            --learning_rate 4e-5 --lr_scheduler_type cosine --weight_decay 0.01 --max_grad_norm 1 \
            --eval_strategy no --save_strategy steps --save_steps 50 --save_total_limit 1 "${device[@]}" "${@:3}"
    }
    # First people, in images and in words: cheap steps, through two layers of the language model and without its loss.
    worlds=(rendered_town_summer rendered_town_winter rendered_village rendered_suburb)
    people=(--dataset "$(IFS=+ && echo "${worlds[*]}")" --data_dirs "$(folders "${worlds[@]}")"
        --loss_lambda 1 --max_steps 500 --warmup_steps 50
        --learning_rates '{"reid_head": 1e-3, "multi_modal_projector": 3e-4}')
    # Then the whole method, on the people whose captions the original SmolLM2 has continued.
    method=(--dataset rendered_suburb --data_dir data/rendered_suburb --texts texts.jsonl
        --loss_lambda 0.7 --language_share 0.25 --max_target_tokens 32 --max_steps 60 --warmup_steps 6
        --learning_rates '{"reid_head": 1e-3, "multi_modal_projector": 1e-4}')
    stage people base_llava --reid_text true "${people[@]}"
    stage method people --reid_text true "${method[@]}"
    # What the search by words costs the search by images.
    stage images_people base_llava --reid_text false "${people[@]}"
    stage images_only images_people --reid_text false "${method[@]}"
    [ -f words_cost/metrics.json ] || reid evaluate --model method --compare images_only --dtype $dtype \
        --dataset rendered_elsewhere --data_dir data/rendered_elsewhere --output_dir words_cost
    full method
    [ -d $change ] || python "$here/low_rank.py" write base_llava_full method_full $change \
        --whole multi_modal_projector reid_head
fi
[ -d $model ] || python "$here/low_rank.py" apply base_llava_full "$change" $model

# The test sets of the ablation, and words: they search by the feature of the language model.
measure() { # name of the test, options
    [ -f "${model}_$1/metrics.json" ] || reid evaluate --model $model --dtype $dtype --output_dir "${model}_$1" "${@:2}"
}
measure elsewhere --dataset rendered_elsewhere --data_dir data/rendered_elsewhere
[ -z "${OUTSIDE:-}" ] || measure outside --dataset outside_crops
measure descriptions --dataset rendered_descriptions --data_dir data/rendered_descriptions \
    --test_feature llm --text_queries true
