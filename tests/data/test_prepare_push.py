"""Prepared data to the Hub and back, over the loopback: private, refused where public, and by `load_dataset`."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from hub_server import HubServer
from trees import SMALL, write_tree

LOAD = """
import json, sys
from datasets import load_dataset
from modeling_mllmreid.data import image_sources, load_reid_dataset, open_image
ours = load_reid_dataset(sys.argv[1])
theirs = load_dataset(sys.argv[1])
assert {k: len(v) for k, v in ours.items()} == {k: len(v) for k, v in theirs.items()}
print(json.dumps({split: [part["file_name"][:], part["person_id"][:], open_image(image_sources(part)[0]).size]
                  for split, part in ours.items()}))
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def run(hub, home, *command, token=None):
    environment = {**os.environ, **hub.environment(home), **({"HF_TOKEN": token} if token else {})}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def prepare(hub, tmp_path):
    """Prepares a small set into a new folder and pushes it; returns that folder and what came of it."""
    root = write_tree(tmp_path, "market1501", SMALL["market1501"])
    options = ["--dataset", "market1501", "--data_dir", str(root), "--push_to", "tester/people"]

    def prepare(number, token=None):
        output = tmp_path / f"out{number}"
        done = run(hub, tmp_path / "home", "run_reid.py", "prepare", *options, "--output", str(output), token=token)
        assert (output / "README.md").is_file()  # what was prepared stays, whatever comes of the push
        return done

    return prepare


def test_there_and_back(hub, prepare, tmp_path):
    done = prepare(1)
    assert done.returncode == 0 and "pushed: tester/people (private)" in done.stdout, done.stderr
    assert hub.repos["datasets", "tester/people"].private
    tables = {f"data/{split}-00000-of-00001.parquet" for split in ("gallery", "query", "train")}
    assert set(hub.files("datasets", "tester/people")) - {".gitattributes"} == {"README.md", *tables}
    shutil.rmtree(tmp_path / "set")
    back = run(hub, tmp_path / "elsewhere", "-c", LOAD, "tester/people")
    assert back.returncode == 0, back.stderr
    loaded = json.loads(back.stdout.splitlines()[-1])
    assert {split: len(part[0]) for split, part in loaded.items()} == {"train": 8, "query": 4, "gallery": 10}
    assert loaded["train"][0][0] == "bounding_box_train/0002_c1s1_000000_01.jpg" and loaded["query"][2] == [1, 1]


def test_a_refused_token_a_failing_server_and_a_public_set(hub, prepare):
    def refused(number, token=None):
        done = prepare(number, token)
        assert done.returncode == 2
        return done.stderr.strip().splitlines()[-1]

    assert "error: push_to tester/people: " in refused(1, token="hf_wrong")
    assert not hub.repos
    hub.fail["POST commit"] = lambda number: 500
    assert "error: push_to tester/people: " in refused(2)
    assert set(hub.files("datasets", "tester/people")) <= {".gitattributes"}
    hub.fail.clear()
    hub.repos["datasets", "tester/people"].private = False
    assert "is public: pictures of people would be open to all: make it private or give another name" in refused(3)
    assert set(hub.files("datasets", "tester/people")) <= {".gitattributes"}
