"""The blocks of README and docs that load, publish and use a model run as they are, on a loopback Hub."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from cli_process import CliProcess
from documents import PAGES, ROOT, code_blocks, section_block
from hub_server import TOKEN, HubServer

from modeling_mllmreid.commands.demo import main

README, MODELS, PUBLISH = PAGES[0], ROOT / "docs/models.md", ROOT / "docs/publish.md"
SIZES = {"train_identities": 6, "test_identities": 3, "images_per_camera": 2, "cameras": 2, "height": 64, "width": 32}
SIZES |= {"hidden_size": 32, "tower_layers": 1, "lm_layers": 1, "pretraining_people": 50, "pretraining_steps": 3}
SIZES |= {"identities_per_batch": 2, "images_per_identity": 2, "val_identities": 2, "max_steps": 2, "eval_steps": 2}
SIZES |= {"save_steps": 2, "warmup_steps": 1, "logging_steps": 2, "dataloader_num_workers": 0}

# sentence-transformers gives the embedding of the block before it.
SENTENCES = """
from sentence_transformers import SentenceTransformer

embedder = SentenceTransformer(name, trust_remote_code=True)
assert abs(embedder.encode(["query.jpg"]) - embedding.numpy()).max() < 1e-5
assert "modeling_mllmreid" not in type(embedder[0]).__module__.split(".")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the runs of a small demo, as README and docs name them."""
    root = tmp_path_factory.mktemp("documented")
    main([f"--{name}={value}" for name, value in {**SIZES, "output_dir": root / "runs/demo"}.items()])
    return root


@pytest.mark.parametrize("page", [README, MODELS], ids=["README", "models"])
def test_load_and_embed(folder, monkeypatch, page):
    (code,) = (code for code in code_blocks(page, "python") if "runs/demo" in code)
    monkeypatch.chdir(folder)
    variables = {}
    exec(compile(code, page.name, "exec"), variables)
    embeddings = variables["embeddings"]
    assert len(embeddings) == len(variables["images"]) > 1
    torch.testing.assert_close((embeddings @ embeddings.T).diagonal(), torch.ones(len(embeddings)))


@pytest.mark.slow
def test_publish_and_use(folder, tmp_path):
    shutil.copytree(folder / "runs", tmp_path / "runs")
    people = tmp_path / "runs/demo/pedestrians/query"
    for name, image in zip(("query", "a", "b"), sorted(people.iterdir()), strict=False):
        (tmp_path / f"{name}.jpg").write_bytes(image.read_bytes())
    with HubServer() as hub:
        kept = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
        kept |= {"OMP_NUM_THREADS": "1"}

        (block,) = code_blocks(PUBLISH, "bash")
        lines = [shlex.split(line) for line in block.splitlines()]
        assert [line[1] for line in lines] == ["evaluate", "push", "export", "push"]
        with CliProcess(kept | {"PYTHONPATH": str(ROOT)} | hub.environment(tmp_path / "mine"), tmp_path) as process:
            for line in lines:
                assert line[0] == "mllmreid"
                code, _, err = process("cli", *line[1:], token=TOKEN)
                assert code == 0, err
        assert hub.repos["models", "you/pedestrians-reid"].private
        card = hub.files("models", "you/pedestrians-reid")["README.md"].decode()
        measured = json.loads((tmp_path / "runs/demo/metrics.json").read_text())["metrics"]
        assert all(f"{100 * row['mAP']:.1f}" in card for row in measured.values()) and len(measured) == 3
        for name in ("you/pedestrians-reid", "you/pedestrians-reid-vision"):
            pushed = hub.files("models", name)["README.md"].decode()
            assert pushed.count(f'from_pretrained("{name}", trust_remote_code=True)') == 2
        # Elsewhere: no package, an empty cache.
        (tmp_path / "use.py").write_text(
            "import sys\nsys.modules['modeling_mllmreid'] = None\n"
            + section_block(MODELS, "Use a published model", "python")
        )
        if find_spec("sentence_transformers"):
            with (tmp_path / "use.py").open("a") as file:
                file.write(SENTENCES)
        command, variables = [sys.executable, "-I", "use.py"], kept | hub.environment(tmp_path / "theirs")
        done = subprocess.run(command, env=variables, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        ranking = r"\[\{'index': [01], 'score': [-\d.e]+\}, \{'index': [01], 'score': [-\d.e]+\}\]"
        assert re.search(ranking, done.stdout)
