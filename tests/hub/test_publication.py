"""The published files: those of the form only, without paths, names or templates of people."""

import getpass
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modeling_mllmreid.commands import export, push
from modeling_mllmreid.evaluation.threshold import Threshold, save_thresholds
from modeling_mllmreid.hub import export as hub_export
from modeling_mllmreid.hub.publication import check_publishable, form_files, publication
from modeling_mllmreid.hub.push import card_with_name
from modeling_mllmreid.model import MllmReIDModel, MllmReIDVisionModel
from modeling_mllmreid.model.pipeline_mllmreid import modules_entry
from modeling_mllmreid.model.publishing import is_local, without_local_paths
from modeling_mllmreid.research.tiny_llava import build_tiny_llava
from modeling_mllmreid.retrieval.embeddings import weights_digest
from modeling_mllmreid.utils.errors import UserError

ROW = {"mAP": 0.5, "rank1": 0.6, "rank5": 0.7, "rank10": 0.8, "mINP": 0.2, "num_queries": 4, "num_valid": 4}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_processor):
    """A tiny checkpoint on disk, its processor with it."""
    folder = tmp_path_factory.mktemp("saved")
    llava = build_tiny_llava(tiny_processor, hidden_size=32, tower_layers=2, lm_layers=1, seed=0)
    fields = {"height": 64, "width": 32, "image_prefix_ids": tiny_processor.image_prefix_ids, "num_identities": 3}
    model = MllmReIDModel.from_mllm(llava, **fields, trained_on=["market1501"], base_licence="llama2")
    model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture
def trained(saved, tmp_path):
    """Builds a training's folder, with the files that a run and its user leave in it."""
    folder = tmp_path / "secret-project" / "run"
    shutil.copytree(saved, folder)
    local = str(folder.parent / "base")
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        content = json.loads((folder / name).read_text())
        for part in ("mllm_config", "image_processor"):
            for config in (content.get(part, {}), *content.get(part, {}).values()):
                if isinstance(config, dict) and "model_type" in config:
                    config["_name_or_path"] = local
        nested = {"_name_or_path": local, "deep": [{"name_or_path": local, "note": f"made by {local}/make.py for all"}]}
        (folder / name).write_text(json.dumps({**content, "name_or_path": local, "extra": nested}))
    weights = weights_digest(folder)
    metrics = {
        "model": str(folder), "dataset": str(folder.parent / "secret-crops"), "weights": weights,
        "trained_on": ["market1501"], "tested_on": ["market1501"], "overlap": [], "query_images": 4,
        "gallery_images": 8, "height": 64, "width": 32, "dtype": "float32", "exclude": ["camera_id"],
        "test_feature": "llm", "metrics": {"llm": ROW, "vision": ROW}, "intervals": {},
        "by_query_camera": {"secret-entrance": ROW}, "worst": [{"person": "anna", "file": "anna.jpg"}],
        "compare": {local: {"mAP": {"difference": 0.1}}}, "verification": {"eer": 0.1, "of": "anna"},
    }  # fmt: skip
    run = {
        "weights": weights, "base_model": local, "data": {"train": {"images": 8, "persons": 3}},
        "sources": ["market1501"], "adapters": {"language_model": "full"}, "hardware": "2 CPU cores", "seconds": 3.0,
        "batches": {"instruction": "common", "texts": f"{local}/texts.jsonl"}, "user": "anna",
        "texts": [{"model": local, "licence": "llama2", "prompts": "['Describe.']", "captions_file": local}],
    }  # fmt: skip
    arguments = {"output_dir": str(folder), "run_name": "secret-run", "hub_model_id": "anna/secret", "seed": 7}
    state = {"log_history": [{"step": 1, "loss": 2.0, "note": local}], "best_model_checkpoint": str(folder)}
    for name, content in (("metrics", metrics), ("run", run), ("training_args", arguments), ("trainer_state", state)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    threshold = Threshold(0.5, 0.4, 0.6, 0.01, 0.9, 10, 5, 20)
    save_thresholds(str(folder), {"llm": threshold, "vision": threshold})
    (folder / "embeddings.safetensors").write_bytes(b"x")
    return folder


def exported(trained, tmp_path, *flags):
    target = tmp_path / "out" / f"export{len(flags)}"
    export.main(["--model", str(trained), "--output", str(target), *flags])
    return target


@pytest.mark.parametrize("flags", [(), ("--to", "vision")])
def test_no_byte_of_an_export_names_this_machine(trained, tmp_path, flags):
    target = exported(trained, tmp_path, *flags)
    files = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    secrets = [str(tmp_path), "secret", "anna", str(Path.home()) + "/", "pytest-of"]
    if len(getpass.getuser()) > 4:
        secrets.append(getpass.getuser())
    for path, content in files.items():
        assert not [word for word in secrets if word.encode() in content], path
    assert {path.relative_to(target).as_posix() for path in files} == set(form_files(target))
    assert {"config.json", "metrics.json", "run.json", "training_args.json", "threshold.json"} <= {
        path.name for path in files
    }
    for path in files:
        assert path.stat().st_mode & 0o077 == 0, path  # its owner's alone
    with safe_open(target / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    # An export of the export has the same content and loads.
    again = tmp_path / "again"
    export.main(["--model", str(target), "--output", str(again)])
    assert {path.name for path in again.iterdir()} == {path.name for path in target.iterdir()}
    same = ("metrics.json", "run.json", "threshold.json", "trainer_state.json", "training_args.json")
    for name in same:
        assert json.loads((again / name).read_text()) == json.loads((target / name).read_text()), name
    assert json.loads((again / "config.json").read_text())["base_licence"] == "llama2"
    kind = MllmReIDVisionModel if flags else MllmReIDModel
    assert kind.from_pretrained(again).config.trained_on == ["market1501"]
    assert (target / "NOTICE").is_file() == (again / "NOTICE").is_file() == (not flags)


def test_a_training_folder_is_published_without_local_files_and_paths(trained):
    """A push publishes only the files of the form, whatever else is in the folder."""
    shown = publication(trained)
    assert "embeddings.safetensors" not in shown
    for name, content in shown.items():
        if isinstance(content, bytes):
            assert b"secret" not in content and b"anna" not in content, name
    report = json.loads(shown["metrics.json"])
    assert report["metrics"]["llm"] == ROW and report["verification"] == {"eer": 0.1}
    assert not {"worst", "compare", "by_query_camera"} & set(report)
    run = json.loads(shown["run.json"])
    assert run["base_model"] == "base" and run["texts"][0]["model"] == "base" and run["hardware"] == "2 CPU cores"


def test_the_code_that_modules_json_names_is_always_ours(trained, tmp_path):
    target = exported(trained, tmp_path)
    written = (target / "modules.json").read_bytes()
    (target / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "/home/anna", "type": "os.System"}]')
    assert publication(target)["modules.json"] == written == modules_entry().encode()


def test_paths_at_every_depth():
    kept = ["a/b", "</s>", "text/plain", "https://a.example/b/c", r"(q|k)_proj\.x\.y", "owner/name", "1/2", "/", "~"]
    assert without_local_paths({"a": kept, "chat_template": "{{ /x/y }}", "content": "/a/b"}) == {
        "a": kept, "chat_template": "{{ /x/y }}", "content": "/a/b",
    }  # fmt: skip
    local = [
        "/home/anna/x",
        "~/x",
        "C:\\Users\\anna\\x",
        "\\\\server\\share\\x",
        "file:///home/anna/x",
        "/with a space/x",
    ]
    assert without_local_paths(local) == ["x"] * 6
    assert without_local_paths(["--at=/home/anna/x, and /tmp/b/c.py"]) == ["--at=x, and c.py"]
    assert without_local_paths({"x": {"_name_or_path": "/a/b", "name_or_path": "a/b/c", "k": [1, None, True]}}) == {
        "x": {"k": [1, None, True]}
    }
    assert without_local_paths({"_name_or_path": "lmsys/vicuna-7b-v1.5"}) == {"_name_or_path": "lmsys/vicuna-7b-v1.5"}
    assert [is_local(name) for name in ("a/b", "tests", "../x", "a/b/c", "/a", "", "x y/z", "tests/hub")] == [
        False, True, True, True, True, False, True, os.path.exists("tests/hub"),
    ]  # fmt: skip


def spoil_weights(folder, **tensors):
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, **tensors}, folder / "model.safetensors", metadata={"format": "pt"})


def link_out(folder):
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)


def point_index_at(folder, name):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: spoil_weights(f, **{"reid_head.llm.classifier.weight": torch.zeros(3, 2)}),
            r"has the ID classifier \(reid_head.llm.classifier.weight\), templates of the training people",
        ),
        (link_out, "model.safetensors is a link out of the folder"),
        (lambda f: (f / "README.md").unlink() or (f / "README.md").symlink_to("/etc/hostname"), "a link out of the"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 40), "model.safetensors is cut off or broken"),
        (lambda f: (f / "tokenizer.json").write_bytes(b""), "tokenizer.json is empty"),
        (lambda f: point_index_at(f, "../outside.safetensors"), "names '../outside.safetensors', no .safetensors file"),
        (lambda f: point_index_at(f, "model-1.safetensors"), "model-1.safetensors is missing, which"),
        (
            lambda f: save_file({"a": torch.zeros(1)}, f / "model.safetensors", metadata={"from": "/home/anna/x"}),
            "the metadata of model.safetensors hold a path of this machine",
        ),
        (lambda f: (f / "loss.png").write_bytes(b"\x89PNG\r\n\x1a\nsomebody"), "loss.png was not written by"),
        (lambda f: (f / "config.json").write_text('{"model_type": "mllmreid", "auto_map": 3}'), "field auto_map"),
        (lambda f: (f / "config.json").write_text("[" * 10_000), "config.json: "),
    ],
)
def test_templates_of_people_and_incomplete_folders_are_not_pushed(trained, tmp_path, spoil, message):
    target = exported(trained, tmp_path)
    check_publishable(target)
    spoil(target)
    with pytest.raises(UserError, match=message):
        check_publishable(target)


REPORTS = ("metrics.json", "run.json", "training_args.json", "trainer_state.json", "threshold.json")
WRONG = [b"", b"[", b"\xff\xfe", b"null", b"[1]", b"[" * 50_000]
WRONG += [b'{"weights": 1, "metrics": 2, "log_history": 3, "seed": [], "x": 4}']


@pytest.mark.parametrize("name", REPORTS)
def test_an_invalid_report_is_one_line_and_leaves_nothing(tmp_path, name, monkeypatch):
    monkeypatch.setattr(hub_export, "converted", lambda *_: pytest.fail("the model was converted before the check"))
    source = tmp_path / "run"
    source.mkdir()
    not_a_number = {
        "metrics.json": b'{"weights": "x", "metrics": {"llm": {"mAP": NaN}}}',
        "run.json": b'{"seconds": NaN}',
    }
    not_a_number |= {"training_args.json": b'{"learning_rate": NaN}', "threshold.json": b'{"llm": {"distance": NaN}}'}
    for content in (*WRONG, not_a_number.get(name, b'{"log_history": [NaN]}')):
        (source / name).write_bytes(content)
        with pytest.raises(UserError, match=name) as caught:
            hub_export.write_export(None, None, tmp_path / "out", to="full", name="x", source=source)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_log_with_a_skipped_step_and_with_anything_else_is_published(trained, tmp_path):
    entries = [{"loss": 1.0, "step": 1, "epoch": 0.5, "grad_norm": float("nan")}, {"loss": 2.0, "step": None}]
    (trained / "trainer_state.json").write_text(json.dumps({"log_history": [*entries, {"epoch": None, "step": 9}]}))
    export.main(["--model", str(trained), "--output", str(tmp_path / "out")])
    log = json.loads((tmp_path / "out/trainer_state.json").read_text(), parse_constant=pytest.fail)["log_history"]
    assert log[0] == {"loss": 1.0, "step": 1, "epoch": 0.5, "grad_norm": None}


def test_metrics_of_other_commands_are_left_out(trained):
    for content in ({"test": {"llm": ROW}, "seconds": 3}, {"metrics_over_splits": {}, "metrics_of_splits": []}):
        (trained / "metrics.json").write_text(json.dumps(content))
        assert "metrics.json" not in hub_export.published_reports(trained, "full")


def test_two_exports_to_one_folder_never_mix(trained, tmp_path, monkeypatch):
    """Two exports run at once: one is complete, the other gets an error, and no other file is left."""
    ready = threading.Barrier(2)
    save = MllmReIDModel.save_pretrained

    def slow(self, *arguments, **options):
        ready.wait(timeout=60)
        save(self, *arguments, **options)

    monkeypatch.setattr(MllmReIDModel, "save_pretrained", slow)
    ends = []

    def run():
        try:
            export.main(["--model", str(trained), "--output", str(tmp_path / "one")])
            ends.append(None)
        except UserError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(bool, ends)) == [False, True]
    assert "another run has written it in the meantime" in next(filter(None, ends))
    check_publishable(tmp_path / "one")
    MllmReIDModel.from_pretrained(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "secret-project"]


def test_files_of_a_killed_export_are_not_used(trained, tmp_path):
    for name in (".one.part", ".one.abc.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "embeddings.json").write_text("left")
    export.main(["--model", str(trained), "--output", str(tmp_path / "one")])
    assert not (tmp_path / "one" / "embeddings.json").exists() and not (tmp_path / ".one.abc.part").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_an_output_that_cannot_be_written_is_reported_first(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "load_encoder", lambda *_: pytest.fail("loaded before the check"))
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        export.main(["--model", str(trained), "--output", str(tmp_path / "closed" / "x")])


def test_an_output_that_exists_is_reported_first(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "load_encoder", lambda *_: pytest.fail("loaded before the check"))
    for output, message in ((trained, "exists and is not empty"), (trained / "x", "is inside .*, an input")):
        with pytest.raises(UserError, match=message):
            export.main(["--model", str(trained), "--output", str(output)])


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"", "not JSON"),
        (b"[]", "the whole content"),
        (b"\xff", "not UTF-8"),
        (b'{"model_type": []}', "field model_type"),
        (b'{"model_type": "mllmreid", "height": "252"}', "field height"),
        (b'{"model_type": "mllmreid", "num_identities": -1}', "field num_identities"),
        (b'{"model_type": "mllmreid", "auto_map": {"AutoConfig": 1}}', "field auto_map"),
        (b'{"model_type": "mllmreid", "backbone": []}', "field backbone"),
        (b'{"model_type": "mllmreid", "reid_on": "nose"}', "field reid_on"),
        (b'{"model_type": "mllmreid", "loss_lambda": NaN}', "field loss_lambda"),
    ],
)
def test_an_invalid_configuration_is_one_line(tmp_path, content, field, monkeypatch):
    source = tmp_path / "run"
    source.mkdir()
    (source / "config.json").write_bytes(content)
    for command, more in ((export, ["--output", str(tmp_path / "out")]), (push, ["--to", "a/b"])):
        monkeypatch.setattr(command, "load_encoder", lambda *_: pytest.fail("loaded before the check"))
        with pytest.raises(UserError, match=f"config.json: .*{field}") as caught:
            command.main(["--model", str(source), *more])
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"] and len(list(source.iterdir())) == 1


def test_the_users_licence_is_kept(trained, tmp_path):
    target = exported(trained, tmp_path, "--licence", "Apache-2.0")
    assert json.loads((target / "config.json").read_text())["base_licence"] == "apache-2.0"
    assert not (target / "NOTICE").exists() and "under the licence `apache-2.0`" in (target / "README.md").read_text()
    assert (exported(trained, tmp_path) / "NOTICE").is_file()


def test_the_card_gets_its_name_on_the_hub():
    line = 'model = AutoModel.from_pretrained("a\\"b\\\\", trust_remote_code=True).eval()\nx = "y"\n'
    named = card_with_name(line.encode(), "owner/name").decode()
    assert named == 'model = AutoModel.from_pretrained("owner/name", trust_remote_code=True).eval()\nx = "y"\n'
