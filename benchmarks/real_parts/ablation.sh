#!/usr/bin/env bash
# The ablation on real parts, from packages to the report: people in three dimensions.
#   bash benchmarks/real_parts/ablation.sh  2 CPU cores, some hours. One GPU: PROCESSES runs at once; settings: common.sh
#   REPEAT=true                             without the texts and the finished runs that stand in this folder, and in
#                                           bfloat16 where the machine computes that fast
[ -n "${REPEAT:-}" ] || export DTYPE=float32 # as the runs in this folder: with another, they would not count
. "$(dirname "$0")/common.sh"
base_llava
outside_crops
if [ -z "${REPEAT:-}" ] && [ ! -d ablation ]; then
    rm -rf ablation.part # of a call that was killed
    cp -r "$here/ablation" ablation.part
    gunzip -r ablation.part
    mv ablation.part ablation
fi

# The original SmolLM2 writes the continuations: the trained one would describe the person instead.
tests=(rendered_elsewhere)
[ -z "${OUTSIDE:-}" ] || tests+=(outside_crops)
reid ablate ablation_small --base_model base_llava --teacher_model composed \
    --test_sets "${tests[@]}" --data_dirs "$(folders rendered_suburb rendered_elsewhere)" --output_dir ablation \
    --base_dtype $dtype --processes "$processes" "${device[@]}"
