"""Embed and search end to end on a tiny model: their output, files and errors."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image
from refusals import one_line

from modeling_mllmreid.commands import embed, search
from modeling_mllmreid.evaluation.embedding import model_fingerprint
from modeling_mllmreid.evaluation.threshold import Threshold, save_thresholds
from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.retrieval.embeddings import load_embeddings, save_embeddings
from modeling_mllmreid.training.loading import load_model
from modeling_mllmreid.utils.errors import UserError

MARKET = ["--dataset", "market1501", "--data_dir"]


@pytest.fixture
def embedded(disk, tmp_path):
    """A folder with an `index` of the images of `people`, and the `model` that embedded them."""
    shutil.copytree(disk.ours, tmp_path / "model")
    flags = ["--images", str(disk.people), "--output", str(tmp_path / "index")]
    embed.main(["--model", str(tmp_path / "model"), "--test_feature", "vision", *flags])
    return tmp_path


@pytest.fixture(scope="module")
def indexed(disk, tmp_path_factory):
    """A folder with embeddings, for tests that only read it."""
    folder = tmp_path_factory.mktemp("indexed")
    flags = ["--images", str(disk.people), "--output", str(folder)]
    embed.main(["--model", str(disk.ours), "--test_feature", "vision", *flags])
    return folder


def test_embed_takes_every_image_in_order_and_search_finds_the_query_itself(disk, embedded, capsys):
    stored = load_embeddings(embedded / "index")
    assert stored.file_names == sorted(path.relative_to(disk.people).as_posix() for path in disk.people.rglob("*.jpg"))
    assert stored.features.shape == (20, 32) and stored.metadata["test_feature"] == "vision"

    query, sheet = disk.people / stored.file_names[3], embedded / "sheet.png"
    search.main(
        ["--query", str(query), "--embeddings", str(embedded / "index"), "--top_k", "4", "--output", str(sheet)]
    )
    none, *lines = capsys.readouterr().out.splitlines()
    assert none.startswith("threshold: the model has none: choose one with the command calibrate, or give one with --")
    assert len(lines) == 5 and lines[0].split() == ["1", "0.0000", stored.file_names[3]]
    assert lines[-1] == f"ranked sheet: {sheet}" and Image.open(sheet).width > 4 * 96


def test_search_reports_that_no_image_is_within_the_threshold(disk, embedded, capsys):
    """--threshold takes precedence over the threshold of the checkpoint, which is not used for other features."""

    def lines(*flags, query=disk.people / "query/0003_c1s1_000001_01.jpg") -> list[str]:
        paths = ["--embeddings", str(embedded / "index"), "--output", str(embedded / "sheet.png"), "--top_k", "3"]
        search.main(["--query", str(query), *paths, *flags])
        return capsys.readouterr().out.splitlines()[:-1]

    found = [line.split() for line in lines()[1:]]
    distances = [float(distance) for _, distance, _ in found]
    assert distances[0] == 0 and distances[2] > 1e-3
    middle = (distances[1] + distances[2]) / 2 if distances[1] < distances[2] else distances[1]
    threshold = Threshold(middle, middle / 2, middle + 0.1, fpir=0.1, tpir=0.8, searches=20, people=9, gallery=40)
    save_thresholds(embedded / "model", {"vision": threshold})
    message, *rest = lines()
    assert (
        f"threshold: {middle:.4f}" in message
        and "10% of searches for an absent person" in message
        and "80% for" in message
    )
    beyond = ["beyond the threshold" in line for line in rest]
    assert beyond == [distance > middle for distance in distances]
    stranger = embedded / "stranger.png"
    Image.effect_noise((64, 128), 200).convert("RGB").save(stranger)
    *ranked, nobody = lines("--threshold", "0", query=stranger)
    assert nobody.startswith("nobody: no image is within the threshold 0.0000") and len(ranked) == 3
    assert all("beyond the threshold" in line for line in ranked)

    flags = ["--images", str(disk.people), "--output", str(embedded / "index"), "--flip_test", "true"]
    embed.main(["--model", str(embedded / "model"), "--test_feature", "vision", *flags])
    capsys.readouterr()
    message, first, *_ = lines()
    assert "chosen with other settings and is not used" in message and first.split()[1] == "0.0000"
    (embedded / "model/threshold.json").write_text('{"vision": {"distance": 1}}')
    with pytest.raises(UserError, match=r"threshold.json: holds no thresholds \(field vision.low: field required"):
        lines()
    with pytest.raises(UserError, match="threshold nan: is not a cosine distance"):
        lines("--threshold", "nan")
    with pytest.raises(UserError, match="threshold -1.0: is not a cosine distance"):
        lines("--threshold", "-1")


def test_embed_skips_and_lists_the_files_that_it_cannot_embed(disk, tmp_path, capsys):
    """Links out of the folder, names with line breaks, pipes, broken files, other files, hidden files."""
    crops = tmp_path / "crops"
    shutil.copytree(disk.people / "query", crops)
    good = sorted(path.name for path in crops.glob("*.jpg"))
    for name in ("._x.jpg", ".ipynb_checkpoints/a.jpg", "@eaDir/a.jpg"):
        (crops / name).parent.mkdir(exist_ok=True)
        shutil.copy(crops / good[0], crops / name)
    for suffix in (".bmp", ".webp", ".tif", ".gif"):
        with Image.open(crops / good[0]) as image:
            image.save(crops / f"z{suffix}")
        good.append(f"z{suffix}")
    (crops / "notes.txt").touch()
    (crops / "splits.json").touch()  # of `load_reid_dataset`
    (crops / "outside").symlink_to(disk.people)
    flags = ["--model", str(disk.ours), "--output", str(tmp_path / "index"), "--images", str(crops)]
    embed.main(flags)
    stored = load_embeddings(tmp_path / "index")
    assert stored.file_names == sorted(good) and stored.metadata["left_out"] == {}
    assert "left out, files and links that are no images: 2 (notes.txt, outside)" in capsys.readouterr().out
    assert (tmp_path / "index/embeddings.safetensors").stat().st_mode & 0o077 == 0

    bad = {
        "broken.jpg": "broken image",
        "leads_out.jpg": "a symbolic link that leads out of the folder",
        "new\nline.jpg": "a name with control characters",
        os.fsdecode(b"\xff.jpg"): "a name that is not UTF-8",
    }
    (crops / "broken.jpg").write_bytes((crops / good[0]).read_bytes()[:300])
    (crops / "leads_out.jpg").symlink_to(disk.people / "query" / good[1])
    os.mkfifo(crops / "pipe.jpg")
    for name in ("new\nline.jpg", os.fsdecode(b"\xff.jpg")):
        shutil.copy(crops / good[0], crops / name)
    with pytest.raises(UserError, match="leads_out.jpg: a symbolic link that leads out of the folder .3 such images."):
        embed.main(flags)
    embed.main([*flags, "--on_error", "skip"])
    stored = load_embeddings(tmp_path / "index")
    assert stored.file_names == sorted(good)
    escaped = {ascii(name) if name[0] == "\udcff" or "\n" in name else name for name in bad}
    assert stored.metadata["left_out"].keys() == escaped
    assert all(bad["broken.jpg"] in why or why in bad.values() for why in stored.metadata["left_out"].values())
    printed = capsys.readouterr().out
    assert "left out, images that cannot be used: 4 (leads_out.jpg, 'new\\nline.jpg', " in printed
    assert "left out, files and links that are no images: 3 (notes.txt, outside, pipe.jpg)" in printed


def test_embed_says_whose_embeddings_it_replaces(disk, embedded, capsys):
    flags = ["--images", str(disk.people / "query"), "--output", str(embedded / "index")]
    embed.main(["--model", str(embedded / "model"), *flags])
    assert "replaced" not in capsys.readouterr().out
    embed.main(["--model", str(disk.ours), *flags])
    assert f"replaced: the embeddings of {embedded / 'model'}\n" in capsys.readouterr().out


def test_embed_does_not_overwrite_the_files_of_others(disk, tmp_path):
    crops = tmp_path / "crops"
    shutil.copytree(disk.people / "query", crops)

    def refused(output) -> str:
        with pytest.raises(UserError) as error:
            embed.main(["--model", "/absent/model", "--images", str(crops), "--output", str(output)])
        return one_line(error)

    assert "lies inside" in refused(crops) and "lies inside" in refused(crops / "index")
    assert "holds a model: give a folder of its own" in refused(disk.ours)
    for name in ("embeddings.json", "embeddings.safetensors"):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / name).write_text("{}")
        assert f"mine/{name}: exists and was not written by this program" in refused(tmp_path / "mine")
        (tmp_path / "mine" / name).unlink()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "file").touch()
    assert "is a symbolic link" in refused(tmp_path / "link") and "is a file" in refused(tmp_path / "file")
    assert not list((tmp_path / "mine").iterdir()) and len(list(crops.iterdir())) == 6


def test_short_names_of_number_formats_are_searched_too(disk, tmp_path, capsys):
    flags = ["--images", str(disk.people / "query"), "--output", str(tmp_path / "index")]
    embed.main(["--model", str(disk.ours), "--dtype", "bf16", *flags])
    assert load_embeddings(tmp_path / "index").metadata["dtype"] == "bfloat16"
    query = disk.people / "query/0003_c1s1_000001_01.jpg"
    search_flags = ["--query", str(query), "--embeddings", str(tmp_path / "index"), "--output", str(tmp_path / "s.png")]
    search.main(search_flags)
    assert f"0.0000  {query.name}" in capsys.readouterr().out
    # The form that earlier versions wrote.
    stored = load_embeddings(tmp_path / "index")
    save_embeddings(tmp_path / "index", stored.features, stored.file_names, {**stored.metadata, "dtype": "bf16"})
    search.main(search_flags)


def test_search_takes_several_queries_and_prints_before_it_draws(disk, embedded, capsys, monkeypatch):
    index = load_embeddings(embedded / "index")
    first, second, third = (str(disk.people / index.file_names[place]) for place in (3, 9, 12))
    flags = ["--embeddings", str(embedded / "index"), "--output", str(embedded / "sheet.png"), "--top_k", "10000000"]
    search.main(["--query", first, second, "--query", third, *flags])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("query ")] == [f"query {q}" for q in (first, second, third)]
    assert len(lines) == 1 + 3 * 21 + 1 and lines[2].split() == ["1", "0.0000", index.file_names[3]]
    with Image.open(embedded / "sheet.png") as sheet:
        assert sheet.width < 2600 and sheet.height > 3 * 192

    moved = {**index.metadata, "images": str(embedded / "gone")}
    save_embeddings(embedded / "index", index.features, index.file_names, moved)
    search.main(["--query", first, *flags])  # blanks with names
    monkeypatch.setattr(search, "ranked_sheet", lambda *_, **__: (_ for _ in ()).throw(UserError("no room")))
    capsys.readouterr()
    with pytest.raises(UserError, match="no room"):
        search.main(["--query", first, *flags])
    assert len(capsys.readouterr().out.splitlines()) == 1 + 20


def test_search_does_not_overwrite_the_files_of_others(disk, embedded):
    query = embedded / "query.png"
    Image.new("RGB", (32, 64), "red").save(query)
    picture = embedded / "holiday.png"
    picture.write_bytes(query.read_bytes())
    (embedded / "metrics.json").write_text("{}")
    (embedded / "link.png").symlink_to(embedded / "elsewhere.png")
    outputs = {
        query: "is also an input",
        picture: "was not written by this program",
        embedded / "index/embeddings.json": "is also an input",
        embedded / "metrics.json": "was not written by this program",
        embedded / "link.png": "is a symbolic link",
        embedded / "index": "is a folder",
        "/dev/null": "is a device",
    }
    for output, message in outputs.items():
        with pytest.raises(UserError) as error:
            search.main(
                [
                    "--query",
                    str(query),
                    "--embeddings",
                    str(embedded / "index"),
                    "--model",
                    "x",
                    "--output",
                    str(output),
                ]
            )
        assert message in one_line(error)
    assert picture.read_bytes() == query.read_bytes() and not (embedded / "elsewhere.png").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": None}, "metadata: field fingerprint"),
        ({"fingerprint": [0.5] * 3}, "fingerprint has 3 numbers, the embeddings 32"),
        ({"dtype": "float8"}, "metadata: field dtype"),
        ({"revision": 7}, "metadata: field revision"),
        ({"fields": {"height": "x"}}, "metadata: height"),
        ({"fields": {"trust_remote_code": True}}, "unknown field 'trust_remote_code'"),
        ({"flip_test": "yes"}, "metadata: field flip_test"),
        ({"height": 10**9}, "metadata: field height"),
        ({"model": "/absent/model"}, "model /absent/model: no longer exists: give its new place with --model"),
        ({"fingerprint": [float("nan")] * 32}, "metadata: field fingerprint"),
    ],
)
def test_search_refuses_embeddings_with_incomplete_metadata(disk, indexed, tmp_path, changes, message):
    stored = load_embeddings(indexed)
    save_embeddings(tmp_path / "index", stored.features, stored.file_names, {**stored.metadata, **changes})
    query = str(disk.people / stored.file_names[0])
    with pytest.raises(UserError) as error:
        search.main(
            ["--query", query, "--embeddings", str(tmp_path / "index"), "--output", str(tmp_path / "sheet.png")]
        )
    assert message in one_line(error) and not (tmp_path / "sheet.png").exists()


def test_search_refuses_another_model(embedded):
    def refused(*flags) -> str:
        index = ["--embeddings", str(embedded / "index"), "--output", str(embedded / "sheet.png")]
        image = embedded / "query.png"
        Image.new("RGB", (32, 64), "red").save(image)
        with pytest.raises(UserError) as error:
            search.main(["--query", str(image), *index, *flags])
        return one_line(error)

    retrained = MllmReIDModel.from_pretrained(embedded / "model")
    for weight in retrained.mllm.model.vision_tower.parameters():
        weight.data.mul_(1.05)
    shutil.copytree(embedded / "model", embedded / "other")
    retrained.save_pretrained(embedded / "other")
    assert "other: did not compute the embeddings" in refused("--model", str(embedded / "other"))

    settings = embedded / "model" / "processor_config.json"
    settings.write_text(settings.read_text().replace("bicubic", "nearest").replace('"resample": 3', '"resample": 0'))
    assert "did not compute the embeddings" in refused()
    assert "no-index: holds no embeddings" in refused("--embeddings", str(embedded / "no-index"))
    assert not (embedded / "sheet.png").exists()


def test_the_fingerprint_is_deterministic_and_keeps_the_training_mode(disk):
    model, processor = load_model(ModelArguments(str(disk.ours)))
    model.train()
    again = load_model(ModelArguments(str(disk.ours)))
    assert np.array_equal(model_fingerprint(model, processor), model_fingerprint(*again)) and model.training


def test_embed_refuses_a_folder_without_images(disk, tmp_path):
    for folder, message in ((tmp_path, "no image (.jpg, .jpeg, "), (tmp_path / "absent", "no such folder")):
        with pytest.raises(UserError) as error:
            embed.main(["--model", str(disk.ours), "--images", str(folder), "--output", str(tmp_path / "out")])
        assert message in one_line(error)
