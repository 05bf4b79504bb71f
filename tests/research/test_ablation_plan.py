"""The plan of an ablation: its runs and their order, what is refused, and the end after a failure."""

import re
from concurrent.futures import Future

import pytest
from in_this_process import InThisProcess

from modeling_mllmreid.research.ablation import runs as sweep
from modeling_mllmreid.research.ablation.plan import AblationArguments, ControlArguments, Cost, Plan, check_plan
from modeling_mllmreid.research.ablation.teacher import base_identity, make_teacher
from modeling_mllmreid.research.tiny_llava import build_processor, build_tiny_llava
from modeling_mllmreid.utils.errors import UserError

VARIANTS = {
    "B0": {"reid_on": "vision", "loss_lambda": 1.0},
    "S": {"reid_on": "vision"},
    "S+D": {"reid_on": "both"},
}


def arguments(**changed) -> AblationArguments:
    plan = {
        "variants": VARIANTS,
        "contrasts": {"language": ["S", "B0"]},
        "train_sets": ["a"],
        "test_sets": ["a"],
        "seeds": [0],
    }
    return AblationArguments(**{**plan, **changed})


def plan(**changed) -> Plan:
    args = arguments(**changed)
    return Plan(args, {name: {"loss_lambda": 0.7, **own} for name, own in check_plan(args).items()}, 100, "base")


def test_variants_with_equal_settings_are_one_run():
    made = plan(sweep_of="S+D", sweep_lambdas=[0.3, 0.7], seeds=[0, 1])
    runs = made.runs({})
    assert [run.variant for run in runs[:5]] == ["B0", "S", "S+D", "S+D, lambda 0.3", "S+D, lambda 0.7"]
    assert runs[2].key == runs[4].key and len({run.key for run in runs}) == 8
    assert {run.key for run in plan(seeds=[1]).runs({})} < {run.key for run in runs}


def test_fewer_seeds_and_fewer_variants_under_flops():
    made = plan(
        seeds=[0, 1], seeds_of={"S": [1]}, budgets=["steps", "flops"], flops_of="S+D", flops_variants=["S+D", "B0"]
    )
    costs = dict.fromkeys(VARIANTS, Cost(0, 25, 50))
    runs = [(run.budget, run.seed, run.variant) for run in made.runs(costs)]
    assert runs[:5] == [("steps", 0, "B0"), ("steps", 0, "S+D"), *(("steps", 1, name) for name in VARIANTS)]
    assert runs[5:] == [("flops", seed, name) for seed in (0, 1) for name in ("B0", "S+D")]


def test_steps_under_equal_flops():
    made = plan(variants={**VARIANTS, "two": {"language_first": 0.5}}, budgets=["steps", "flops"], flops_of="S+D")
    costs = {"B0": Cost(0, 10, 50), "S": Cost(0, 49, 50), "S+D": Cost(0, 50, 50), "two": Cost(40, 10, 50)}
    stages = {(run.variant, run.budget): run.stages for run in made.runs(costs)}
    assert stages["B0", "steps"] == (0, 100) and stages["B0", "flops"] == (0, 500)
    assert stages["S", "flops"] == stages["S+D", "flops"] == (0, 100)  # within the tolerance
    assert stages["two", "steps"] == (50, 50) and stages["two", "flops"] == (100, 100)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"contrasts": {"x": ["S", "B1"]}}, "contrasts: 'x': there is no variant 'B1': did you mean 'B0'?"),
        ({"contrasts": {"x": ["S"]}}, r"contrasts: 'x' is not \[a, b\]: give two variants, or two lists of variants"),
        ({"contrasts": {"x": ["S", 1]}}, r"contrasts: 'x' is not \[a, b\]"),
        ({"contrasts": {"x": [["S"], [None]]}}, r"contrasts: 'x' is not \[a, b\]"),
        ({"variants": {"B0": 3}}, "variants: 'B0' is not a mapping of fields"),
        ({"variants": {}}, "variants: there is none: give at least one"),
        ({"sweep_lambdas": [0.1]}, "sweep_of: is missing: name one of the variants"),
        ({"budgets": ["hours"]}, "budgets: 'hours' is unknown: give steps or flops"),
        ({"budgets": ["flops"]}, "flops_of: is missing: name one of the variants"),
        ({"seeds": [1, 1]}, r"seeds: \[1, 1\]: give at least one, each once"),
        ({"seeds_of": {"C": [0]}}, "seeds_of: there is no variant 'C'"),
        ({"seeds_of": {"S": [1]}}, r"seeds_of: 'S' has \[1\]: give at least one of seeds \(\[0\]\), each once"),
        ({"seeds": [0, 1], "seeds_of": {"S": [0], "B0": [1]}}, "seeds_of: contrast 'language' has no seed that all"),
        ({"flops_variants": ["C"]}, "flops_variants: there is no variant 'C'"),
        ({"flops_variants": ["S"]}, r"flops_variants: the other .* set budgets \['steps'\] to steps flops"),
        ({"processes": 0}, "processes 0, threads 1: give at least 1"),
    ],
)
def test_a_plan_that_does_not_fit_together_is_refused(changed, message):
    with pytest.raises(UserError, match=message):
        check_plan(arguments(**changed))


def test_controls_that_exclude_one_another():
    with pytest.raises(ValueError, match="permute_captions and caption_noise: give only one"):
        ControlArguments(permute_captions=True, caption_noise=0.2)
    with pytest.raises(ValueError, match="language_first 1: give a share, at least 0 and below 1"):
        ControlArguments(language_first=1)


def test_another_teacher_has_texts_of_its_own_and_its_runs_other_keys(tmp_path):
    processor = build_processor([], height=64, width=32, patch_size=16)
    for name in ("base", "taught"):
        llava = build_tiny_llava(processor, hidden_size=32, tower_layers=1, lm_layers=1, seed=0)
        for part in (llava, processor.tokenizer, processor.image_processor):
            part.save_pretrained(tmp_path / name)
    base, taught = str(tmp_path / "base"), str(tmp_path / "taught")
    own, other = arguments(base_model=base), arguments(base_model=base, teacher_model=taught)
    own_teacher, teacher = (make_teacher(args, base, tmp_path / "texts", 8) for args in (own, other))
    assert own_teacher.base == base and teacher.base == taught
    # What the teacher wrote serves every base model.
    alone = make_teacher(arguments(base_model=taught), taught, tmp_path / "texts", 8)
    assert own_teacher.folder != teacher.folder == alone.folder
    assert base_identity(other, base) == f"{base}@None with texts of {taught}@None" != base_identity(own, base)
    with pytest.raises(UserError, match="^model absent/folder/here: ") as error:
        make_teacher(arguments(base_model=base, teacher_model="absent/folder/here"), base, tmp_path / "texts", 8)
    assert "\n" not in str(error.value)


class OneNeverEnds(InThisProcess):
    def submit(self, function, run, inputs, folder):
        return Future() if inputs == "endless" else super().submit(function, run, inputs, folder)


@pytest.mark.parametrize(("first", "others"), [("good", 0), ("endless", 1)])
def test_after_a_failure_no_run_begins(first, others, monkeypatch, tmp_path, capsys):
    begun = []

    def execute(run, inputs, folder):
        begun.append(inputs)
        if inputs == "bad":
            raise ValueError("two\nlines")

    monkeypatch.setattr(sweep, "ProcessPoolExecutor", OneNeverEnds)
    monkeypatch.setattr(sweep, "execute", execute)
    runs = plan(seeds=[0, 1]).runs({})
    tasks = list(zip(runs, [first, "bad", "third", "fourth"], strict=False))
    with pytest.raises(UserError, match=rf"^run {re.escape(runs[1].folder)}: two lines \(its log: .*unfinished runs$"):
        sweep.run_all(tasks, tmp_path, processes=2)
    assert {"third", "fourth"}.isdisjoint(begun)
    assert f"run {runs[1].folder} has failed: {others} others are still running" in capsys.readouterr().out
