#!/usr/bin/env bash
# The ablation on real parts, from packages to the report: people in three dimensions.
#   bash benchmarks/real_parts/ablation.sh  2 CPU cores, some hours. One GPU: PROCESSES runs at once; settings: common.sh
#   REPEAT=true                             without the texts and the finished runs that stand in this folder, and in
#                                           bfloat16 where the machine computes that fast
[ -n "${REPEAT:-}" ] || export DTYPE=float32 # as the runs in this folder: with another, they would not count
. "$(dirname "$0")/common.sh"
base_llava
outside_crops
tests=(rendered_elsewhere)
[ -z "${OUTSIDE:-}" ] || tests+=(outside_crops)
ablation() { # folder, model to start from, settings: from the finished runs of that folder which stand in this one
    local output=$1 base=$2
    shift 2
    if [ -z "${REPEAT:-}" ] && [ -d "$here/$output" ] && [ ! -d "$output" ]; then
        rm -rf "$output.part" # of a call that was killed
        cp -r "$here/$output" "$output.part"
        gunzip -r "$output.part"
        mv "$output.part" "$output"
    fi
    # The original SmolLM2 writes the continuations: the trained one would describe the person instead.
    reid ablate ablation_small --base_model "$base" --teacher_model composed \
        --test_sets "${tests[@]}" --data_dirs "$(folders rendered_suburb rendered_elsewhere)" --output_dir "$output" \
        --base_dtype $dtype --processes "$processes" "${device[@]}" "$@"
}
ablation ablation base_llava
# What the words were worth that base_llava has read: its baseline again, from the tower that has read none. That tower
# is further from the task, so larger learning rates are tried too. Then the same with the steps of equal FLOPs, at the
# rate that was best.
from_composed() { # folder, settings
    local output=$1
    shift
    ablation "$output" composed --variants '{"B0": {"reid_on": "vision", "loss_lambda": 1.0}}' \
        --contrasts '{}' --seeds_of '{}' --sweep_lambdas [] --agreement_of B0 --agreement_images 0 \
        --budgets steps --flops_variants [] "$@"
}
from_composed ablation_from_composed --rate_factors 1 2 4 8
from_composed ablation_from_composed_longer --max_steps 443 --rate_factors [] \
    --learning_rate 1.2e-4 --learning_rates '{"reid_head": 4e-3, "multi_modal_projector": 4e-4}'
# The rates of the plan differ between the variants. Here all have the same one: with that, most runs are those above.
mkdir -p ablation_equal_rates
ln -sfn ../ablation/base ablation_equal_rates/base
ln -sfn ../ablation/runs ablation_equal_rates/runs
ablation ablation_equal_rates base_llava --rate_factors [] --budgets steps --flops_variants [] --seeds_of '{}' \
    --sweep_lambdas [] --variants '{
        "B0": {"reid_on": "vision", "loss_lambda": 1.0},
        "S standard caption": {"reid_on": "vision", "instruction": "standard", "target": "caption"},
        "S common continuation": {"reid_on": "vision", "instruction": "common", "target": "continuation"},
        "S+D": {"reid_on": "both", "instruction": "common", "target": "continuation"},
        "D": {"reid_on": "both", "instruction": "common", "target": "continuation", "loss_lambda": 1.0},
        "attribute baseline (no LLM)": {"reid_on": "vision", "loss_lambda": 1.0, "target": "caption",
            "attribute_weight": 0.43}
    }' --contrasts '{
        "language (S - B0)": ["S common continuation", "B0"],
        "Common Instruction (S common continuation - S standard caption)":
            ["S common continuation", "S standard caption"],
        "DirectReID (S+D - S)": ["S+D", "S common continuation"],
        "DirectReID without language (D - B0)": ["D", "B0"],
        "language in addition to DirectReID (S+D - D)": ["S+D", "D"],
        "attributes without an LLM (attribute baseline - B0)": ["attribute baseline (no LLM)", "B0"]
    }'
