"""Prepared data to the Hub and back, over the loopback: private, refused where public, and by `load_dataset`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TABLES = {f"data/{split}-00000-of-00001.parquet" for split in ("gallery", "query", "train")}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    """The results of `walk`. The Hub's address is read at import: one new process for everything."""
    command = [sys.executable, __file__, str(tmp_path_factory.mktemp("push"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def walk(folder: Path) -> dict:
    """Pushes, loads what was pushed, and is refused."""
    from hub_server import HubServer
    from trees import SMALL, write_tree

    with HubServer() as hub:
        os.environ.update(hub.environment(folder / "home"))
        from datasets import load_dataset

        from modeling_mllmreid.commands import prepare
        from modeling_mllmreid.commands.prepare import main
        from modeling_mllmreid.data.contract import image_sources
        from modeling_mllmreid.data.images import open_image
        from modeling_mllmreid.data.load import load_reid_dataset
        from modeling_mllmreid.utils.errors import UserError

        root = write_tree(folder, "market1501", SMALL["market1501"])
        source = ["--dataset", "market1501", "--data_dir", str(root), "--push_to", "tester/people"]

        def files() -> list[str]:
            known = ("datasets", "tester/people") in hub.repos
            return sorted(set(hub.files("datasets", "tester/people")) - {".gitattributes"}) if known else []

        def refused(number: int) -> dict:
            message, output = "", folder / f"out{number}"
            try:
                main([*source, "--output", str(output)])
            except UserError as error:
                message = str(error)
            # What was prepared stays, whatever comes of the push.
            left = sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
            return {"message": message, "left": left, "prepared": (output / "README.md").is_file(), "files": files()}

        token = os.environ["HF_TOKEN"]
        os.environ["HF_TOKEN"] = "hf_wrong"
        results: dict = {"wrong token": refused(1), "repositories": len(hub.repos)}
        os.environ["HF_TOKEN"] = token
        hub.fail["POST commit"] = lambda number: 500
        results["failing server"] = refused(2)
        hub.fail.clear()
        hub.repos["datasets", "tester/people"].private = False
        asked = hub.seen.copy()
        results["public"] = refused(3)
        results["changed"] = [route for route in hub.seen - asked if not route.startswith(("GET", "HEAD"))]
        hub.repos["datasets", "tester/people"].private = True
        repo = hub.repos["datasets", "tester/people"]
        repo.commit({**hub.files("datasets", "tester/people"), "data/train-00001-of-00002.parquet": b"of another run"})
        # What else lies in the folder is not of this output.
        write = prepare.write_prepared

        def with_notes(output, *args, **options):
            write(output, *args, **options)
            for name in ("notes.txt", "data/notes.txt", "data/deeper/train-00000-of-00001.parquet"):
                (Path(output) / name).parent.mkdir(exist_ok=True)
                (Path(output) / name).write_text("names of people")

        prepare.write_prepared = with_notes
        main([*source, "--output", str(folder / "out4")])
        results |= {"pushed": files(), "private": hub.repos["datasets", "tester/people"].private}
        shutil.rmtree(root)
        ours, theirs = load_reid_dataset("tester/people"), load_dataset("tester/people")
        results["loaded"] = {
            name: {
                "samples": len(split),
                "by the library": len(theirs[name]),
                "first": split["file_name"][0],
                "size": open_image(image_sources(split)[0]).size,
            }
            for name, split in ours.items()
        }
        pushed = hub.files("datasets", "tester/people")
        shard = pushed["data/train-00000-of-00001.parquet"]
        for name, files in (
            ("of two runs", {**pushed, "data/train-00001-of-00002.parquet": shard}),
            ("missing", {name: content for name, content in pushed.items() if "train" not in name}),
        ):
            repo.commit({**files, "data/train-00000-of-00002.parquet": shard} if name == "missing" else files)
            try:
                load_reid_dataset("tester/people")
            except UserError as error:
                results[name] = str(error)
    return results


def test_round_trip(results):
    assert results["private"] and set(results["pushed"]) == {"README.md", *TABLES}
    samples = {name: split["samples"] for name, split in results["loaded"].items()}
    assert samples == {"train": 8, "query": 4, "gallery": 10}
    assert all(split["samples"] == split["by the library"] for split in results["loaded"].values())
    assert results["loaded"]["train"]["first"] == "bounding_box_train/0002_c1s1_000000_01.jpg"
    assert results["loaded"]["query"]["size"] == [1, 1]


def test_incomplete_upload_is_refused(results):
    assert "are of two runs: prepare the data again" in results["of two runs"]
    assert "train-00001-of-00002.parquet is missing" in results["missing"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("wrong token", "push_to tester/people: "),
        ("failing server", "push_to tester/people: "),
        ("public", "is public and would publish pictures of people: make it private or give another name"),
    ],
)
def test_refused_push_uploads_nothing_and_keeps_the_folder(results, case, message):
    assert message in results[case]["message"] and results[case]["prepared"] and results[case]["files"] == []
    assert results["repositories"] == 0 and results["changed"] == [] and results[case]["left"] == []


if __name__ == "__main__":
    print(json.dumps(walk(Path(sys.argv[1]))))
