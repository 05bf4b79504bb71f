"""Two gloo processes against one: images shared, rows on process 0, the same metrics and the same errors on both."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from children import start_children
from native import write_native
from PIL import Image

from modeling_mllmreid.commands import embed, evaluate, gallery
from modeling_mllmreid.data.contract import Sample, make_split
from modeling_mllmreid.evaluation import embedding, protocol, shares
from modeling_mllmreid.evaluation.protocol import protocol_features
from modeling_mllmreid.evaluation.text_queries import embed_captions
from modeling_mllmreid.evaluation.threshold_fit import fit_thresholds
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.model import MllmReIDModel, MllmReIDProcessor
from modeling_mllmreid.retrieval.embeddings import load_embeddings
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.trainer import QueryGallery, ReIDTrainer
from modeling_mllmreid.utils import processes
from modeling_mllmreid.utils.errors import UserError

ROOT = Path(__file__).parents[2]
IMAGES, CAPTIONS = 9, ["a red shirt", "a blue hat", "a woman", "a man with a bag", "shoes"]
QUIET = {"batch_size": 2, "progress": False}


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """Holds `ours` (a checkpoint), `people` (Market-1501 layout), `noise` (nine images) and `broken.png`."""
    root = tmp_path_factory.mktemp("disk")
    write_pedestrians(root / "people", train_identities=6, test_identities=3, images_per_camera=2, cameras=2)
    processor, llava = write_native(root / "native")
    fields = {"height": 64, "width": 32, "image_prefix_ids": processor.image_prefix_ids, "loss_lambda": 1.0}
    MllmReIDModel.from_mllm(llava, **fields).save_pretrained(root / "ours")
    processor.save_pretrained(root / "ours")
    rng = np.random.default_rng(0)
    (root / "noise").mkdir()
    for number in range(IMAGES):
        pixels = rng.integers(0, 256, (40 + number, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "noise" / f"{number}.png")
    (root / "broken.png").write_bytes((root / "noise/0.png").read_bytes()[:500])
    return root


def parts(root: Path, cameras=(1, 2)):
    """Query and gallery of two people and a track each; of one camera, no query has a match that counts."""
    numbers = {"query": range(3), "gallery": range(3, 7)}
    made = {}
    for (name, rows), camera in zip(numbers.items(), cameras, strict=True):
        people = [1 + number % 2 for number in rows]
        of_images = [Sample(f"{number}.png", person, camera) for number, person in zip(rows, people, strict=True)]
        made[name] = make_split(of_images, root=root / "noise", source="t").add_column("track_id", people)
    return made


def error_of(function, *args, **kwargs) -> str:
    try:
        function(*args, **kwargs)
    except UserError as error:
        return str(error)
    return "none"


def everything(root: Path, output: Path) -> dict:
    """What this process gets from all that shares images: the same calls, whether it is alone or one of two."""
    model, processor = MllmReIDModel.from_pretrained(root / "ours"), MllmReIDProcessor.from_pretrained(root / "ours")
    paths = [root / "noise" / f"{number}.png" for number in range(IMAGES)]
    opened, measured, got = [], [], {}
    real_open, real_metrics = shares.open_image, protocol.metrics_from_blocks
    shares.open_image = lambda source: opened.append(Path(source).name) or real_open(source)
    protocol.metrics_from_blocks = lambda *args: measured.append(1) or real_metrics(*args)

    got["features"] = embedding.embed_images(model, processor, paths, flip_test=True, **QUIET)
    got["opened"] = list(opened)
    got["one image"] = embedding.embed_images(model, processor, paths[:1], **QUIET)
    got["captions"] = {"": embed_captions(model, processor, CAPTIONS, **QUIET)}
    dataset = parts(root)
    tracks = protocol_features(model, processor, dataset, pool_tracks=True, **QUIET)
    got["tracks"], got["track rows"] = tracks.gallery, tracks.gallery_split["file_name"][:]
    rows = protocol.evaluate_model(model, processor, *dataset.values(), **QUIET)
    got["metrics"] = {name: (row.to_dict(), row.average_precision.tolist()) for name, row in rows.items()}
    got["measured"] = len(measured)

    # In the second batch, so of process 1; afterwards the processes must still fit together.
    mixed = [*paths[:3], root / "broken.png", *paths[3:]]
    got["broken"] = error_of(embedding.embed_images, model, processor, mixed, **QUIET)
    got["no match"] = error_of(protocol.evaluate_model, model, processor, *parts(root, (1, 1)).values(), **QUIET)

    sizes = {"per_device_eval_batch_size": 2, "use_cpu": True, "identities_per_batch": 2, "images_per_identity": 2}
    args = ReIDTrainingArguments(str(output / "trainer"), **sizes)
    val = QueryGallery(**dataset)
    trainer = ReIDTrainer(model=model, args=args, eval_dataset=val, processing_class=processor)
    got["evaluated"] = trainer.evaluate()
    # Of ten people, so that there are enough searches: each is alone in its part.
    ten = [
        make_split([Sample(f"{n % 9}.png", n, c) for n in range(10)], root=root / "noise", source="t") for c in (1, 2)
    ]
    got["thresholds"] = fit_thresholds(model, processor, *ten, **QUIET).thresholds

    shares.open_image, protocol.metrics_from_blocks = real_open, real_metrics
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        common = ["--model", str(root / "ours"), "--batch_size", "2"]
        embed.main([*common, "--images", str(root / "noise"), "--output", str(output / "noise")])
        place = ["--gallery", str(output / "gallery"), "--model", str(root / "ours")]
        gallery.main(["add", *place, "--images", str(root / "noise")])
        data = ["--dataset", "market1501", "--data_dir", str(root / "people")]
        more = ["--captions_file", str(root / "people/reid_raw.json"), "--text_queries", "true"]
        evaluate.main([*common, *data, *more, "--compare", str(root / "ours"), "--output_dir", str(output)])
    got["printed"] = printed.getvalue()
    return got


def one_of_two(rank: int, root: Path, output: Path, port: int) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    processes.PATIENCE = timedelta(seconds=100)  # processes that wait for each other must fail, not hang
    torch.save(everything(root, output), output / f"got{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_share_what_one_does(disk, tmp_path):
    (tmp_path / "both").mkdir()
    two = start_children(one_of_two, disk, tmp_path / "both", 30500 + os.getpid() % 1000, count=2)
    alone = everything(disk, tmp_path / "alone")
    while not two.join():
        pass
    main, other = (torch.load(tmp_path / "both" / f"got{rank}.pt", weights_only=False) for rank in (0, 1))

    # All rows are on process 0 in their order, none on the other.
    for name in ("features", "one image", "captions", "tracks"):
        assert list(main[name]) == list(other[name]) == list(alone[name])
        for feature, rows in alone[name].items():
            np.testing.assert_allclose(main[name][feature], rows, atol=1e-6, rtol=0, err_msg=f"{name} {feature}")
            assert other[name][feature].shape == (0, rows.shape[1])
    assert alone["opened"] == [f"{number}.png" for number in range(IMAGES)]
    # Of five batches process 1 has none in the last round, and opens image 0 in its place.
    assert main["opened"] == [f"{number}.png" for number in (0, 1, 4, 5, 8)]
    assert other["opened"] == [f"{number}.png" for number in (2, 3, 6, 7, 0)]
    assert main["track rows"] == other["track rows"] == alone["track rows"] == ["3.png", "4.png"]

    # Metrics and thresholds are computed on process 0 alone; every process has them.
    assert main["metrics"] == other["metrics"] == alone["metrics"]
    assert (main["measured"], other["measured"], alone["measured"]) == (3, 0, 3)
    assert {"eval_mAP", "eval_llm_mAP", "eval_vision_rank1"} <= main["evaluated"].keys()
    assert main["evaluated"] == other["evaluated"] == alone["evaluated"]
    assert main["thresholds"] == other["thresholds"] and main["thresholds"].keys() == {"llm", "vision", "concat"}

    # A broken image of process 1, and metrics that process 0 cannot compute, end both in the same way.
    assert main["broken"] == other["broken"] == alone["broken"] and "broken.png: broken image" in main["broken"]
    assert main["no match"] == other["no match"] == alone["no match"] != "none"

    # The commands print and write once, what one process does.
    assert other["printed"] == ""
    assert main["printed"].replace(str(tmp_path / "both"), str(tmp_path / "alone")) == alone["printed"]
    stored, expected = (load_embeddings(tmp_path / name / "noise") for name in ("both", "alone"))
    assert stored.file_names == expected.file_names
    np.testing.assert_allclose(stored.features, expected.features, atol=1e-6, rtol=0)
    rows, alone_rows = (Gallery(tmp_path / name / "gallery").rows() for name in ("both", "alone"))
    assert list(rows.ids) == list(alone_rows.ids) and len(rows) == IMAGES
    np.testing.assert_allclose(rows.features, alone_rows.features, atol=1e-6, rtol=0)
    both, single = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("both", "alone"))
    assert both == single and both["metrics"].keys() >= {"llm", "text", "image and text"}


def launched(*argv: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", ROOT / "run_reid.py", *argv]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, env=environment)


@pytest.mark.slow
def test_torchrun_evaluates_embeds_and_ends_on_a_broken_image(disk, tmp_path):
    data = ["--dataset", "market1501", "--data_dir", disk / "people", "--batch_size", 5]
    run = launched("evaluate", "--model", disk / "ours", *data, "--output_dir", tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("metrics: ") == 1 and (tmp_path / "sheet.png").is_file()
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"]["llm"]["num_queries"] == 6
    run = launched("embed", "--model", disk / "ours", "--images", disk, "--output", tmp_path / "out", "--batch_size", 3)
    assert run.returncode != 0 and re.search(r"^error: \S*broken.png: broken image", run.stderr, re.MULTILINE)
    assert "UserError" not in run.stderr and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_torchrun_trains_and_evaluates(disk, tmp_path):
    steps = "--max_steps 2 --eval_strategy steps --eval_steps 1 --save_strategy steps --save_steps 1 --use_cpu true"
    sizes = "--identities_per_batch 2 --images_per_identity 2 --val_identities 2 --per_device_eval_batch_size 2"
    data = ["--dataset", "market1501", "--data_dir", disk / "people", "--output_dir", tmp_path]
    run = launched("train", "--model", disk / "ours", *data, *steps.split(), *sizes.split())
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("metrics: ") == run.stdout.count("checkpoint: ") == 1
    assert json.loads((tmp_path / "metrics.json").read_text())["query_images"] == 6
    assert {"sheet.png", "threshold.json"} <= {path.name for path in tmp_path.iterdir()}
