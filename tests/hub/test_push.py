"""Publishing over a loopback Hub: every form, pushed and loaded in a clean process, and every refusal."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_process import CliProcess
from hub_server import TOKEN, HubServer
from huggingface_hub import ModelCard
from native import write_native

from modeling_mllmreid.commands import export
from modeling_mllmreid.hub.publication import check_publishable
from modeling_mllmreid.model import MllmReIDModel, PersonReIDPipeline
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.utils.errors import UserError

ROOT = Path(__file__).parents[2]
# What people keep next to a model, and never mean to publish.
STAYS = ("embeddings.safetensors", "embeddings.json", "captions.jsonl", "texts.jsonl", "notes.txt", "splits.json")
STAYS = (*STAYS, "skipped.txt", "my_script.py", "metrics_of_clients.json", "crops/anna.jpg", "extra.safetensors")
CLEAN_PROCESS = """
import json, sys
sys.modules["modeling_mllmreid"] = None
import torch
from transformers import AutoModel, AutoProcessor, pipeline
embeddings = []
for name, revision, image in json.loads(sys.argv[1]):
    at = {"trust_remote_code": True, "revision": revision}
    processor, model = AutoProcessor.from_pretrained(name, **at), AutoModel.from_pretrained(name, **at).eval()
    assert type(model).__name__ in ("MllmReIDModel", "MllmReIDVisionModel"), type(model)
    with torch.inference_mode():
        embedding = model.encode_images(processor(images=[image])["pixel_values"])
    piped = pipeline("person-reid", model=name, **at)(image)
    torch.testing.assert_close(torch.from_numpy(piped), embedding[0], atol=1e-6, rtol=0)
    embeddings.append(embedding.tolist())
print(json.dumps(embeddings))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(autouse=True)
def no_trouble(hub):
    yield
    hub.fail.clear()


def environment(hub, home, cache):
    names = ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **hub.environment(home / cache)}


@pytest.fixture(scope="module")
def call(hub, home):
    """call("cli" | "embed" | "upload" | "direct", *arguments, token=...) -> (result, stdout, stderr)."""
    with CliProcess(environment(hub, home, "cache")) as process:
        yield lambda name, *arguments, token=TOKEN: process(name, *arguments, token=token)


def loaded_elsewhere(hub, home, *models, cache="clean"):
    """The embeddings of (name, revision, image) by a process without the package and with an empty cache."""
    command = [sys.executable, "-I", "-c", CLEAN_PROCESS, json.dumps([list(map(str, model)) for model in models])]
    done = subprocess.run(command, env=environment(hub, home, cache), capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr
    return [torch.tensor(embedding) for embedding in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def trained(call, home):
    """A LoRA training that pushes on the way: its folder, and the repository `tester/reid`.

    The backbone, a tiny native LLaVA, is on the Hub and nowhere else.
    """
    sizes = {"train_identities": 4, "test_identities": 3, "images_per_camera": 2, "cameras": 2}
    write_pedestrians(home / "people", named="pedestrians", **sizes)
    write_native(home / "native")
    (home / "native" / "README.md").write_text("---\nlicense: llama2\n---\n# A base that says so\n")
    call("upload", home / "native", "tester/llava")
    shutil.rmtree(home / "native")
    data = ["--dataset", "market1501", "--data_dir", home / "people", "--output_dir", home / "run"]
    data += ["--captions_file", home / "people/reid_raw.json", "--target", "caption"]
    flags = "--height 64 --width 32 --language_model lora --lora_rank 4 --disable_tqdm true --use_cpu true"
    flags += " --identities_per_batch 2 --images_per_identity 2 --logging_steps 1 --eval_strategy no"
    flags += " --max_steps 4 --save_strategy steps --save_steps 2 --push_to_hub true --hub_model_id tester/reid"
    code, out, err = call("cli", "train", "--model", "tester/llava", *data, *flags.split(), "--hub_token", TOKEN)
    assert code == 0 and "pushed: " in out, err
    return home / "run"


@pytest.fixture(scope="module")
def image(home, trained):
    return sorted((home / "people/query").iterdir())[0]


def test_every_pushed_revision_is_whole_loadable_and_without_secrets(hub, home, call, trained, image):
    repo = hub.repos["models", "tester/reid"]
    assert repo.private
    pushed = [(sha, files) for sha, files in repo.commits if "config.json" in files]
    assert len(pushed) == 3  # steps 2 and 4, and the end
    needed = {"model.safetensors", "adapter/adapter_model.safetensors", "processor_config.json", "tokenizer.json"}
    needed |= {"modeling_mllmreid.py", "pipeline_mllmreid.py", "checkpoints.py", "adapters.py", "README.md"}
    needed |= {"training_args.json", "modules.json", "sentence_transformers_mllmreid.py"}
    for _, files in pushed:
        assert needed <= files.keys(), needed - files.keys()
        assert not [name for name in files if re.search(r"\.(bin|pt|pth|pkl)$|^checkpoint-|\.jpg$", name)]
        for secret in (TOKEN, str(home)):
            assert not [name for name, content in files.items() if secret.encode() in content]
        config = json.loads(files["config.json"])
        assert config["num_identities"] == 0 and b"classifier" not in files["model.safetensors"]
        at = hub.repos["models", "tester/llava"].commits[-1][0]
        assert (config["backbone"], config["backbone_revision"]) == ("tester/llava", at)
    embeddings = loaded_elsewhere(hub, home, *(("tester/reid", sha, image) for sha, _ in pushed))
    here = torch.tensor(call("embed", trained, image)[0])
    torch.testing.assert_close(embeddings[-1], here, atol=1e-6, rtol=0)
    assert (embeddings[-1] - embeddings[0]).abs().max() > 1e-6  # training went on between them
    card = pushed[-1][1]["README.md"].decode()
    metrics = json.loads((trained / "metrics.json").read_text())["metrics"]["llm"]
    assert f"{100 * metrics['mAP']:.1f}" in card and "tester/llava" in card
    # The licence is that of the base's card on the Hub; the people are rendered.
    data = ModelCard(card).data
    assert (data.license, data.base_model, data.datasets) == ("llama2", "tester/llava", ["rendered_pedestrians"])
    assert config["base_licence"] == "llama2" and "market1501" not in card and "Hardware**: not recorded" not in card
    secrets = [path for path in trained.glob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert not secrets and not (trained / ".published").exists()


def test_export_push_delete_load_by_name_in_a_clean_process(hub, home, call, trained, image):
    expected = []
    for form in ("full", "vision"):
        code, _, err = call("cli", "export", "--model", trained, "--to", form, "--output", home / form)
        assert code == 0, err
        expected.append(torch.tensor(call("embed", home / form, image)[0]))
        # Other files of the folder are not pushed, and the folder does not change.
        for name in STAYS:
            (home / form / name).parent.mkdir(exist_ok=True)
            (home / form / name).write_bytes(b"names of people")
        before = {path: path.read_bytes() for path in (home / form).rglob("*") if path.is_file()}
        code, out, err = call("cli", "push", "--model", home / form, "--to", f"tester/{form}")
        assert code == 0 and f"tester/{form}/commit/" in out, err
        assert "not part of the export, not pushed: captions.jsonl, crops, embeddings.json" in out
        assert {path: path.read_bytes() for path in (home / form).rglob("*") if path.is_file()} == before
        shutil.rmtree(home / form)
        files = hub.files("models", f"tester/{form}")
        assert ("NOTICE" in files) == (form == "full") and not [name for name in files if "adapter/" in name]
        assert not set(STAYS) & set(files) and not [name for name in files if b"names of people" in files[name]]
        assert files["README.md"].decode().count(f'from_pretrained("tester/{form}", trust_remote_code=True)') == 2
    # The merged model is the thin one's equal.
    torch.testing.assert_close(expected[0], torch.tensor(call("embed", trained, image)[0]), atol=1e-5, rtol=0)
    embeddings = loaded_elsewhere(hub, home, *((f"tester/{form}", "main", image) for form in ("full", "vision")))
    for loaded, reference in zip(embeddings, expected, strict=True):
        torch.testing.assert_close(loaded, reference, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_a_download_that_breaks_off_goes_on_and_is_whole(hub, home, trained, image):
    before = hub.seen["GET resolve"]
    hub.fail["GET resolve"] = lambda number: "cut" if number % 8 == 0 else None
    (embedding,) = loaded_elsewhere(hub, home, ("tester/reid", "main", image), cache="broken")
    hub.fail.clear()
    assert hub.seen["GET resolve"] >= before + 16  # so at least two were cut
    (again,) = loaded_elsewhere(hub, home, ("tester/reid", "main", image))
    torch.testing.assert_close(embedding, again, atol=0, rtol=0)


def test_an_export_in_half_the_bytes(call, home, trained, image):
    flags = ["--dtype", "bf16", "--output", home / "half"]
    code, _, err = call("cli", "export", "--model", trained, *flags)
    assert code == 0, err
    sizes = [
        sum(path.stat().st_size for path in folder.rglob("*.safetensors") if "checkpoint-" not in str(path))
        for folder in (home / "half", trained)
    ]
    assert sizes[0] < 0.7 * sizes[1]  # names and shapes take their share of so small files
    half, whole = (torch.tensor(call("embed", folder, image)[0]) for folder in (home / "half", trained))
    assert (half - whole).abs().max() < 1e-2


def test_a_training_folder_is_pushed_as_its_export_and_stays_as_it_was(hub, call, trained):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    code, _, err = call("cli", "push", "--model", trained, "--to", "tester/again", "--private", "false")
    assert code == 0, err
    assert not hub.repos["models", "tester/again"].private
    files = hub.files("models", "tester/again")
    assert json.loads(files["config.json"])["num_identities"] == 0 and "sheet.png" not in files
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_public_repository_is_refused_unless_the_user_allows_it(hub, call, home, trained):
    export = home / "for-all"
    assert call("cli", "export", "--model", trained, "--output", export)[0] == 0
    for model in (export, trained):
        code, _, err = call("cli", "push", "--model", model, "--to", "tester/mine")
        assert code == 0 and hub.repos["models", "tester/mine"].private, err
    hub.repos["models", "tester/mine"].private = False
    before = {path: path.read_bytes() for path in export.rglob("*") if path.is_file()}
    commits = len(hub.repos["models", "tester/mine"].commits)
    for model in (export, trained):
        code, _, err = call("cli", "push", "--model", model, "--to", "tester/mine")
        assert code == 2 and "tester/mine: this repository exists and is public, so anyone could load" in err
        assert "give `--private false` to push there anyway, make it private, or give another name" in err
    data = ["--dataset", "market1501", "--data_dir", home / "people", "--output_dir", home / "public-run"]
    flags = ["--max_steps", "1", "--use_cpu", "true", "--push_to_hub", "true", "--hub_model_id", "tester/mine"]
    flags += ["--identities_per_batch", "2", "--images_per_identity", "2", "--eval_strategy", "no"]
    code, _, err = call("cli", "train", "--model", trained, "--loss_lambda", "1", *data, *flags)
    assert code == 2 and "exists and is public" in err and "`--hub_private_repo false`" in err
    assert not (home / "public-run" / "model.safetensors").exists()  # before the training, not after it
    assert len(hub.repos["models", "tester/mine"].commits) == commits
    assert {path: path.read_bytes() for path in export.rglob("*") if path.is_file()} == before
    code, _, err = call("cli", "push", "--model", export, "--to", "tester/mine", "--private", "false")
    assert code == 0 and not hub.repos["models", "tester/mine"].private, err
    assert not [path for path in home.iterdir() if path.name.startswith(".")]


def test_push_to_hub_of_each_class_refuses_a_public_repository_and_is_private(hub, call, home, trained):
    assert call("cli", "export", "--model", trained, "--to", "vision", "--output", home / "own-push")[0] == 0
    said = "this repository exists and is public, so anyone could load the push: give private=False to push there"
    forms = [(trained, kind) for kind in ("model", "processor", "config", "pipeline")]
    for number, (folder, kind) in enumerate([*forms, (home / "own-push", "model"), (home / "own-push", "pipeline")]):
        name = f"own{number}"  # the owner is who pushes
        assert call("direct", folder, kind, name, "unsaid")[0] is None
        repo = hub.repos["models", f"tester/{name}"]
        assert repo.private and len(repo.commits) > 1
        files = hub.files("models", f"tester/{name}")
        # Nothing of this machine, at any depth, and no template of a person.
        for secret in ("/home/anna", str(home)):
            assert not [path for path, content in files.items() if secret.encode() in content]
        assert b"classifier" not in files.get("model.safetensors", b"")
        assert ("config.json" in files) == (kind != "processor")
        assert ("processor_config.json" in files) == (kind in ("processor", "pipeline"))
        repo.private, commits = False, len(repo.commits)
        large = dict(hub.large)
        for private in ("unsaid", "True"):
            assert call("direct", folder, kind, name, private)[0].startswith(f"tester/{name}: {said}")
        assert len(repo.commits) == commits and hub.large == large
        assert call("direct", folder, kind, name, "False")[0] is None and not repo.private
        hub.repos["models", f"tester/{name}"].private = True
        assert call("direct", folder, kind, name, "True")[0] is None


def test_weights_of_another_form_do_not_stay_in_the_repository(hub, call, home, trained):
    hub.fail.clear()
    assert call("cli", "push", "--model", trained, "--to", "tester/forms")[0] == 0
    files = hub.files("models", "tester/forms")
    assert "adapter/adapter_model.safetensors" in files
    hub.repos["models", "tester/forms"].commit({**files, "model.safetensors.index.json": b"{}", "mine.txt": b"x"})
    assert call("cli", "export", "--model", trained, "--to", "vision", "--output", home / "other-form")[0] == 0
    assert call("cli", "push", "--model", home / "other-form", "--to", "tester/forms")[0] == 0
    files = hub.files("models", "tester/forms")
    assert "model.safetensors" in files and "mine.txt" in files
    assert not [name for name in files if name.startswith("adapter/") or name.endswith("index.json")]


def test_errors_are_one_line_and_a_push_can_be_repeated(hub, call, trained):
    def refused(name, token=TOKEN):
        code, _, err = call("cli", "push", "--model", trained, "--to", name, token=token)
        assert code == 2 and err.strip().splitlines()[-1].startswith("error: "), err
        return err.strip().splitlines()[-1]

    assert "no token: run `hf auth login`" in refused("tester/none", token=None)
    assert "the token is not valid: run `hf auth login`" in refused("tester/none", token="hf_wrong")
    hub.fail["POST create"] = lambda number: 403
    assert "may not write there: give a name of your own" in refused("somebody/else")
    hub.fail.clear()
    # The weights arrive, the commit does not: the next try sends no weight again.
    hub.large.clear()
    hub.fail["POST commit"] = lambda number: 403
    refused("tester/broken")
    arrived, sent = len(hub.large), hub.seen["PUT upload"]
    assert arrived >= 2 and "config.json" not in hub.files("models", "tester/broken")
    hub.fail.clear()
    code, _, err = call("cli", "push", "--model", trained, "--to", "tester/broken")
    assert code == 0, err
    assert hub.seen["PUT upload"] == sent and "model.safetensors" in hub.files("models", "tester/broken")
    for number, trouble in enumerate((500, "cut")):
        hub.fail["POST commit"] = lambda _, trouble=trouble: trouble
        assert "push tester/broken" in refused(f"tester/broken{number}")
    assert (trained / "model.safetensors").is_file()


def test_a_push_that_fails_during_training_leaves_the_trained_model(hub, call, home, trained):
    data = ["--dataset", "market1501", "--data_dir", home / "people", "--output_dir", home / "alone"]
    flags = "--loss_lambda 1 --identities_per_batch 2 --images_per_identity 2 --eval_strategy no --use_cpu true"
    flags += " --max_steps 2 --save_strategy steps --save_steps 1 --push_to_hub true --hub_model_id tester/alone"
    hub.fail["POST preupload"] = lambda number: 403
    code, _, err = call("cli", "train", "--model", trained, *data, *flags.split(), "--disable_tqdm", "true")
    last = err.strip().splitlines()[-1]
    assert code == 2 and f"mllmreid push --model {home / 'alone'} --to tester/alone" in last
    assert (home / "alone/model.safetensors").is_file() and (home / "alone/metrics.json").is_file()
    hub.fail.clear()
    code, _, err = call("cli", "push", "--model", home / "alone", "--to", "tester/alone")
    assert code == 0 and "model.safetensors" in hub.files("models", "tester/alone"), err


@pytest.fixture
def folder(make_model, tiny_processor, tmp_path):
    """An export that can be published, without a Hub."""
    make_model(num_identities=0).save_pretrained(tmp_path / "ours")
    tiny_processor.save_pretrained(tmp_path / "ours")
    export.main(["--model", str(tmp_path / "ours"), "--output", str(tmp_path / "export")])
    check_publishable(tmp_path / "export")
    return tmp_path / "export"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json cannot be read"),
        (lambda f: (f / "README.md").unlink(), "has no README.md: make it with mllmreid export"),
        (lambda f: (f / "modeling_mllmreid.py").unlink(), "has no modeling_mllmreid.py: make it with"),
        (lambda f: (f / "model.safetensors").unlink(), r"has no weights \(\*.safetensors\): make it with"),
        (lambda f: (f / "training_args.bin").write_bytes(b"x"), "holds training_args.bin, a pickle, which can run"),
        (lambda f: configure(f, num_identities=3), "has the ID classifier, templates of the training people"),
        (lambda f: configure(f, backbone=str(f)), "is a folder, which others do not have: export it with --backbone"),
    ],
)
def test_incomplete_folders_are_not_pushed(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError, match=message):
        check_publishable(folder)


def configure(folder: Path, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def test_a_full_disk_leaves_the_model_and_nothing_half_written(folder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MllmReIDModel, "save_pretrained", full)
    with pytest.raises(UserError, match=r"other: cannot be written \(no space left on the disk\)"):
        export.main(["--model", str(tmp_path / "ours"), "--output", str(tmp_path / "other")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "ours"]


def test_push_to_hub_of_the_model_itself_is_private(make_model, tiny_processor, monkeypatch, tmp_path):
    seen = {}

    def stock(self, repo_id, **options):
        seen.update(options, classifiers=self.reid_head["llm"].classifier, count=self.config.num_identities)

    monkeypatch.setattr("transformers.PreTrainedModel.push_to_hub", stock)
    monkeypatch.setattr("modeling_mllmreid.model.publishing.refuse_public", lambda *_: None)
    model = make_model()
    model.push_to_hub("tester/x")
    assert seen == {"private": True, "classifiers": None, "count": 0}
    assert model.reid_head["llm"].classifier is not None and model.config.num_identities == 4
    # The pipeline and the vision form push no other way.
    seen.clear()
    pushed = []
    monkeypatch.setattr(tiny_processor, "push_to_hub", lambda name, **options: pushed.append((name, options)))
    PersonReIDPipeline(model, processor=tiny_processor, device="cpu").push_to_hub("tester/x", token="t")
    assert seen == {"private": True, "classifiers": None, "count": 0, "token": "t"}
    assert pushed == [("tester/x", {"token": "t"})]
    for backbone in (str(ROOT), "/moved/away"):
        model.config.backbone = backbone
        with pytest.raises(ValueError, match="is a folder, which others do not have"):
            model.push_to_hub("tester/x")
    # The other road of transformers would make a public repository, and publish the ID classifier.
    for part in (make_model(), tiny_processor, model.config):
        with pytest.raises(ValueError, match="push_to_hub is set: leave it out, and call push_to_hub"):
            part.save_pretrained(tmp_path / "x", push_to_hub=True)
    assert not (tmp_path / "x").exists()
