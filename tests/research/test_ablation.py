"""The ablation: its recipes, its controls, and a small one that is killed, continued, and reported."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from in_this_process import InThisProcess

from modeling_mllmreid.commands.ablate import GROUPS, main
from modeling_mllmreid.data.captions import missing_captions, read_records
from modeling_mllmreid.data.contract import FEATURES
from modeling_mllmreid.options.parser import read_options
from modeling_mllmreid.research.ablation import runs as sweep
from modeling_mllmreid.research.ablation.controls import WORDS, attribute_loss, corrupt_captions, permute_captions
from modeling_mllmreid.research.ablation.rates import with_factor
from modeling_mllmreid.research.ablation.settings import AblationSettings, make_settings
from modeling_mllmreid.research.ablation.teacher import load_set, make_teacher
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.utils import outputs
from modeling_mllmreid.utils.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"


def read_settings(argv: list[str]) -> AblationSettings:
    return make_settings(read_options(GROUPS, argv, "ablate"))


# ---- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("ablation_*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_are_valid_plans(path):
    settings = read_settings([str(path), "--use_cpu=true"])
    assert len(settings.variants) >= 3 and settings.args.contrasts and settings.shared["max_steps"] > 0
    assert len(settings.args.seeds) >= 2


def test_a_mapping_is_the_same_as_flag_and_in_a_file_with_and_without_rate_factors(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(folder=tmp_path))
    flag = '--learning_rates={"reid_head":1e-3,  "multi_modal_projector":2e-4}'
    expected, changed = read_settings([str(config)]), read_settings([str(config), flag])
    rates = {"reid_head": 0.001, "multi_modal_projector": 0.0002}
    assert changed == expected and changed.shared["learning_rates"] == rates
    assert with_factor({"learning_rate": 0.1, **changed.shared}, 1) == {"learning_rate": 0.1, **expected.shared}
    own = '{"S": {"learning_rates": {"reid_head": 3e-3}}}'
    only_s = ["--contrasts={}", "--flops_of=S", "--agreement_of=S"]
    variant = read_settings([str(config), f"--variants={own}", *only_s]).variants["S"]
    assert variant["learning_rates"] == {"reid_head": 0.003}


def test_the_old_name_of_variants_still_works_with_a_warning(tmp_path, caplog):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(folder=tmp_path))
    expected = read_settings([str(config)])
    assert not caplog.records
    old = tmp_path / "old.yaml"
    old.write_text(config.read_text().replace("variants:", "rows:"))
    assert read_settings([str(old)]) == expected
    assert "old.yaml: rows is now called variants" in caplog.text
    caplog.clear()
    changed = read_settings([str(config), '--rows={"S": {}}', "--contrasts={}", "--flops_of=S"])
    assert list(changed.variants) == ["S"] and "ablate: rows is now called variants" in caplog.text


# ---- controls ------------------------------------------------------------------------------------------------------


@pytest.fixture
def captioned() -> Dataset:
    """Twelve images of four people, more of some than of others; every caption names its person and image."""
    people = [0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3]
    texts = [[f"p{person} i{row}"] for row, person in enumerate(people)]
    return (
        Dataset.from_dict({"person_id": people})
        .add_column("caption", texts, feature=FEATURES["caption"])
        .add_column("continuation", texts, feature=FEATURES["continuation"])
    )


def test_the_placebo_gives_every_person_the_texts_of_one_other(captioned):
    permuted = permute_captions(captioned, seed=3)
    by_person: dict[int, set[str]] = {}
    for person, captions, continuations in zip(*(permuted[name][:] for name in permuted.column_names), strict=True):
        assert captions == continuations
        by_person.setdefault(person, set()).add(captions[0].split()[0])
    assert all(len(names) == 1 and names != {f"p{person}"} for person, names in by_person.items())
    assert len(set().union(*by_person.values())) == 4
    assert permuted["caption"][:] == permute_captions(captioned, seed=3)["caption"][:]


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_noise_corrupts_its_share_with_texts_of_others(captioned, share):
    corrupted = corrupt_captions(captioned, share, seed=0)
    wrong = [
        captions[0]
        for person, captions in zip(corrupted["person_id"][:], corrupted["caption"][:], strict=True)
        if not captions[0].startswith(f"p{person} ")
    ]
    assert len(wrong) == round(share * 12)


def test_the_attribute_loss_is_per_present_word():
    logits, targets = torch.zeros(2, len(WORDS)), torch.zeros(2, len(WORDS))
    targets[0, :3] = 1
    targets[1, 5] = 1
    assert float(attribute_loss(logits, targets)) == pytest.approx(2 * len(WORDS) * np.log(2) / 4, rel=1e-5)
    assert float(attribute_loss(logits, torch.zeros_like(targets))) > 0


# ---- a whole ablation ------------------------------------------------------------------------------------------------

CONFIG = """
output_dir: {folder}/ablation
train_sets: [market1501]
test_sets: [market1501]
data_dirs: {{market1501: {folder}/people}}
captions_files: {{market1501: {folder}/people/reid_raw.json}}
variants:
  B0: {{reid_on: vision, loss_lambda: 1.0}}
  S: {{reid_on: vision, instruction: pool}}
  two-stage: {{reid_on: vision, loss_lambda: 1.0, language_first: 0.5}}
  placebo: {{reid_on: vision, permute_captions: true}}
  attribute baseline: {{reid_on: vision, loss_lambda: 1.0, target: caption, attribute_weight: 0.43}}
contrasts:
  language: [S, B0]
  texts: [[S], [placebo, two-stage]]
seeds: [0, 1]
budgets: [steps, flops]
flops_of: B0
agreement_of: S
agreement_images: 3
max_steps: 4
# The head is frozen in a language stage, the projector without a language loss.
learning_rates: {{reid_head: 0.001, multi_modal_projector: 0.0002}}
diagnostics_steps: 2
logging_steps: 2
height: 64
width: 32
hidden_size: 32
tower_layers: 1
lm_layers: 1
pretraining_people: 20
pretraining_steps: 2
alignment_people: 4
alignment_steps: 2
max_target_tokens: 8
identities_per_batch: 3
images_per_identity: 2
use_cpu: true
"""


@pytest.fixture(scope="module")
def ablation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    write_pedestrians(folder / "people", train_identities=6, test_identities=4, images_per_camera=2, cameras=2)
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder))
    main([str(folder / "config.yaml")])
    return folder


def runs_of(folder) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in (folder / "ablation/runs").glob("*/result.json")}


def test_every_run_reports_its_settings(ablation):
    runs = runs_of(ablation)
    # Under the cost of B0 the variants with a language model take fewer steps.
    assert len(runs) == 5 * 2 + 3 * 2
    for name, result in runs.items():
        folder = ablation / "ablation" / "runs" / name
        assert {"curves.json", "log.txt", "queries-0.npz", "result.json"} <= {path.name for path in folder.iterdir()}
        assert not list(folder.rglob("*.safetensors"))
        assert result["versions"]["torch"] and result["settings"]["loss_lambda"] in (0.7, 1.0)
        with np.load(folder / "queries-0.npz") as arrays:
            assert arrays["vision_ap"].mean() == pytest.approx(result["tests"]["market1501"]["vision"]["mAP"])
    by_variant = {result["row"]: result for result in runs.values()}
    assert by_variant["S"]["agreement"]["market1501"]["image_perplexity"] > 1 and by_variant["B0"]["agreement"] == {}
    two_stages = next(result for result in runs.values() if result["stages"] == [2, 2])
    assert two_stages["row"] == "two-stage"
    # The first stage needs no ID classifier and freezes it: the second trains all that a variant of one stage trains.
    assert two_stages["trained_parameters"] == by_variant["B0"]["trained_parameters"] > 0


def test_the_report_has_the_numbers_of_the_runs(ablation):
    report = json.loads((ablation / "ablation" / "report.json").read_text())
    view = next(v for v in report["views"] if v["budget"] == "steps" and v["feature"] == "vision")
    precisions = [r["tests"]["market1501"]["vision"]["mAP"] for r in runs_of(ablation).values() if r["row"] == "B0"]
    assert view["rows"]["B0"]["mAP"]["estimate"] == pytest.approx(np.mean(precisions))
    difference = view["rows"]["S"]["mAP"]["estimate"] - view["rows"]["B0"]["mAP"]["estimate"]
    assert view["contrasts"]["language"]["mAP"]["difference"] == pytest.approx(difference)
    assert view["contrasts"]["language"]["mAP"]["holm"] >= view["contrasts"]["language"]["mAP"]["p_value"]
    text = (ablation / "ablation" / "report.md").read_text()
    assert "Power: with 2 seeds" in text and "feature concat" in text and "equal FLOPs" in text
    assert "| contrast | vision | llm | concat |" in text
    assert "| variant | mAP vision | mAP llm | mAP concat | Rank-1 vision |" in text
    for picture in ("rows-steps.png", "contrasts-flops.png", "losses.png", "agreement.png"):
        assert picture in text and (ablation / "ablation" / picture).stat().st_size > 5000
    assert all(name in text for name in runs_of(ablation))


def test_texts_of_the_tiny_llava_have_no_licence_of_others(ablation):
    (sidecar, *_) = (ablation / "ablation" / "base").glob("texts-*/*train*.jsonl")
    assert all(json.loads(line)["provenance"]["licence"] is None for line in sidecar.read_text().splitlines())


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(sweep, "ProcessPoolExecutor", InThisProcess)


def test_a_killed_ablation_continues_and_keeps_finished_runs(ablation, in_this_process, capsys):
    folder = ablation / "ablation"
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").glob("*/result.json")}
    lost = next(path.parent for path in before if "placebo" in path.parent.name)
    result = json.loads((lost / "result.json").read_text())
    shutil.rmtree(lost)
    main([str(ablation / "config.yaml")])
    assert "16 runs, 1 of them to do" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in (folder / "runs").glob("*/result.json")}
    assert {path for path in after if after[path] != before[path]} == {lost / "result.json"}
    # Alone or among others, a run gives the same numbers.
    assert json.loads((lost / "result.json").read_text())["tests"] == result["tests"]


def children(pid: int) -> set[int]:
    """The processes that a process started, and those that these started."""
    started: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            started.setdefault(int(entry.read_text().rpartition(")")[2].split()[1]), []).append(int(entry.parent.name))
        except OSError:
            continue
    return {grandchild for child in started.get(pid, []) for grandchild in (child, *children(child))}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the process table from /proc")
def test_a_killed_ablation_ends_its_runs_and_continues(ablation, tmp_path):
    flags = [f"--output_dir={tmp_path / 'other'}", "--max_steps=40", "--budgets", "steps", "--processes=2"]
    command = [str(CONFIGS.parent / "run_reid.py"), "ablate", str(ablation / "config.yaml"), *flags]
    sweep = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    runs = tmp_path / "other" / "runs"
    wait_until(lambda: len(list(runs.glob(".*.part"))) == 2, seconds=180)
    started = children(sweep.pid)
    sweep.kill()
    sweep.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), seconds=20)
    finished = list(runs.glob("*/result.json"))
    main([str(ablation / "config.yaml"), *flags])
    assert len(finished) < len(list(runs.glob("*/result.json"))) == 10
    assert not list(runs.glob(".*.part"))


def wait_until(condition, *, seconds: int) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)


def test_a_run_that_fails_is_named_and_leaves_no_result(ablation, in_this_process, tmp_path):
    flags = [f"--output_dir={tmp_path / 'other'}", "--identities_per_batch=50", "--seeds", "0", "--budgets", "steps"]
    with pytest.raises(
        UserError, match=r"run [\w+-]+-market1501-4-seed0-\w+: .*the same command continues with the unfinished runs"
    ):
        main([str(ablation / "config.yaml"), *flags])
    assert not list((tmp_path / "other" / "runs").glob("*/result.json"))


def test_texts_are_looked_for_before_the_training(ablation, in_this_process, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "train_reid", lambda *_, **__: pytest.fail("the training has begun"))
    monkeypatch.setattr(sweep, "read_records", lambda path: read_records(path)[:1])
    flags = [f"--output_dir={tmp_path / 'other'}", "--seeds=0", "--budgets=steps", "--contrasts={}"]
    with pytest.raises(UserError, match="captions have no continuation"):
        main([str(ablation / "config.yaml"), *flags, '--variants={"S": {"reid_on": "vision", "instruction": "pool"}}'])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_steps=0"], "max_steps: is missing: give the number of training steps of each variant"),
        (
            ['--variants={"B0": {"loss_lamda": 1}}', "--contrasts={}", "--agreement_of=B0"],
            "variants: 'B0': unknown field 'loss_lamda': did you mean",
        ),
        (["--test_sets", "nowhere"], "data set 'nowhere' is unknown"),
        (['--variants={"a": 1}'], "variants: 'a' has the value 1, not a mapping"),
        (["--variants=B0"], "ablate: variants: 'B0' is not JSON"),
        (["--train_sets", "market1501+msmt17"], "data_dirs has no folder of msmt17: add it"),
    ],
)
def test_mistakes_are_reported_before_the_work(ablation, flags, message):
    with pytest.raises(UserError, match=message):
        main([str(ablation / "config.yaml"), *flags])


def test_the_texts_of_other_images_do_not_stand_for_missing_ones(ablation):
    folder = ablation / "ablation/base"
    (path,) = folder.glob("texts-*/*query*.jsonl")
    settings = read_settings([str(ablation / "config.yaml")])
    query = load_set(settings.args, "market1501")["query"]
    (base,) = map(str, folder.glob("tiny-*"))
    teacher = make_teacher(settings.args, base, folder, 8)
    before = path.read_text()
    try:
        first = query.select([0, 1])
        assert teacher.continue_captions("market1501", "query", first) == path
        others = query.select(range(len(query) - 2, len(query)))
        assert not {record.file_name for record in read_records(path)} & set(others["file_name"])
        teacher.continue_captions("market1501", "query", others)
        assert missing_captions(others, "query", read_records(path)) == []
    finally:
        path.write_text(before)


def test_it_never_writes_into_other_work(ablation, tmp_path):
    (tmp_path / "report.md").write_text("my own notes")
    with pytest.raises(UserError, match="exists and is not empty"):
        main([str(ablation / "config.yaml"), f"--output_dir={tmp_path}"])
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_two_ablations_in_one_folder_are_refused(ablation, in_this_process, monkeypatch):
    monkeypatch.setattr(outputs, "PATIENCE", 0.3)
    unfinished = ablation / "ablation/runs/.b0.part"
    unfinished.mkdir()
    try:
        with (
            outputs.only_writer(ablation / "ablation/runs", work="ablation"),
            pytest.raises(UserError, match="another ablation writes there: wait until it has ended"),
        ):
            main([str(ablation / "config.yaml")])
        assert unfinished.is_dir()  # the run of the other one
    finally:
        unfinished.rmdir()
