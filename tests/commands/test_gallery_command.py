"""`gallery`: the commands of docs/gallery.md on rendered people, and their mistakes."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from documents import ROOT, code_blocks
from PIL import Image

from modeling_mllmreid.commands import gallery as command
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.synthetic.worlds import World
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.utils.errors import UserError

PAGE = ROOT / "docs/gallery.md"


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Four people from three cameras, two images each."""
    folder = tmp_path_factory.mktemp("people")
    world = World(7, scenes=3, cameras=3, images_per_camera=2, test_identities=4)
    write_pedestrians(folder / "world", world, captions_per_image=0, processes=1)
    (folder / "crops").mkdir()
    for path in sorted((folder / "world/bounding_box_test").glob("0*.jpg")):
        path.rename(folder / "crops" / path.name)
    return folder


@pytest.fixture(scope="module")
def filled(people):
    """A folder with the gallery of these people."""
    with open(people / "rows.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "camera_id", "time", "person"])
        for path in sorted((people / "crops").iterdir()):
            person, camera = path.name.split("_")[0], path.name.split("_c")[1][0]
            writer.writerow([path.name, camera, f"2026-11-28T0{camera}:00:00+00:00", "Ida" if person == "0001" else ""])
    place, images, rows = (str(people / name) for name in ("filled/runs/gallery", "crops", "rows.csv"))
    known = ["--columns", rows, "--keep_days", "30"]
    command.main(["add", "--gallery", place, "--images", images, "--model", "pedestrians-small", *known])
    return people / "filled"


@pytest.fixture
def place(people, filled, tmp_path, monkeypatch):
    """A copy of the gallery in the working folder: runs/gallery. Returns the folder of the crops."""
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    Path("CROPS").symlink_to(people / "crops")
    return people / "crops"


def run(capsys, *words):
    """Runs a command; returns its lines."""
    capsys.readouterr()
    command.main([words[0], "--gallery", "runs/gallery", *words[1:]])
    return capsys.readouterr().out.splitlines()


def test_add_search_delete_expire(place, capsys):
    images = sorted(place.iterdir())
    query = str(next((place.parent / "world/query").glob("0001_*.jpg")))
    assert len(images) == 12
    lines = run(capsys, "add", "--images", "CROPS")
    assert lines == ["0 images added, 12 already there: 12 rows in runs/gallery"]
    lines = run(capsys, "search", "--query", query, "--top_k", "3", "--output", "sheet.png")
    assert "person Ida" in lines[0] and lines[0].startswith("   1  0.") and "searched 12 rows" in lines
    assert Image.open("sheet.png").width > 300
    lines = run(capsys, "search", "--query", query, "--cameras", "2", "--since", "2026-11-28T01:30:00+00:00")
    assert "searched 4 rows" in lines and all("camera_id 2" in line for line in lines[:-1] if line.startswith("   "))
    lines = run(capsys, "search", "--query", query, "--where", "person=", "--threshold", "0.001")
    assert lines[-1] == "nobody: no image is within the threshold 0.0010"
    with pytest.raises(UserError, match="no row is within the threshold: give another photo, or a larger --thr"):
        run(capsys, "delete", "--query", query, "--threshold", "0.001")
    lines = run(capsys, "delete", "--where", "person=Ida")
    assert lines[-2] == "nothing is erased: to erase 3 rows, repeat the command with --confirm true"
    assert lines[-1].endswith("gallery add of the folder brings the rows back: --files true deletes them")
    lines = run(capsys, "delete", "--where", "person=Ida", "--confirm", "true")
    assert lines[-3] == "3 rows erased" and lines[-2].startswith("traces: 0 (searched 0.0 MiB of files for 9 byte")
    assert lines[-1].startswith("still there: 3 image files, such as ")
    for confirm in ("true", "false"):
        with pytest.raises(UserError, match="no row meets person=Ida: gallery export lists the values"):
            run(capsys, "delete", "--where", "person=Ida", "--confirm", confirm)
    assert not any("Ida" in line for line in run(capsys, "search", "--query", query, "--top_k", "20"))
    assert run(capsys, "expire")[0] == "0 rows erased"
    info = json.loads("\n".join(run(capsys, "info", "--json", "true")))
    assert (info["rows"], info["cameras"], info["model"]["model"]) == (9, {"1": 3, "2": 3, "3": 3}, "pedestrians-small")
    assert run(capsys, "info")[0] == "rows      9 (0 expired), 0 named persons"
    assert run(capsys, "export", "--output", "rows.json") == ["9 rows: rows.json"]
    trail = [json.loads(line) for path in Path("runs/gallery.audit").iterdir() for line in path.open()]
    assert [line["action"] for line in trail] == ["search"] * 4 + ["delete", "search", "expire"]
    assert all(len(line["query"]) == 64 for line in trail if line["action"] == "search")


def test_an_index(place, capsys):
    gallery = Gallery("runs/gallery")
    own = gallery.rows().ids[0]
    features = np.random.default_rng(0).normal(size=(300, gallery.metadata.numbers)).astype(np.float32)
    gallery.add_features(features, [{"id": f"{number:064x}"} for number in range(300)])
    assert run(capsys, "info")[-1] == "index     none"
    lines = run(capsys, "index", "--recall", "1")
    assert lines[0] == "312 rows in 2 parts; a search reads the nearest 2"
    assert lines[1] == "recall of the nearest 10: 1.000 of those of the exact search (sampled rows as queries)"
    assert run(capsys, "info")[-1] == "index     a search with --approximate reads 2 parts"
    exact = run(capsys, "search", "--id", own)
    assert run(capsys, "search", "--id", own, "--approximate", "true") == exact and len(exact) > 10


def test_a_person_on_a_photo_is_shown_and_then_erased(place, capsys):
    query = str(next((place.parent / "world/query").glob("0002_*.jpg")))
    lines = run(capsys, "delete", "--query", query, "--threshold", "0.45", "--output", "shown.png")
    end = lines.index("not among them, look at these too:")
    shown = {Path(line.split()[2]).name for line in lines[:end]}
    assert shown and all(name.startswith("0002") for name in shown) and Path("shown.png").exists()
    beyond = lines[end + 1 : end + 6]
    assert all(line.endswith("beyond the threshold") and float(line.split()[1]) > 0.45 for line in beyond)
    assert len(json.loads("\n".join(run(capsys, "info", "--json", "true")))["cameras"]) == 3
    run(capsys, "delete", "--query", query, "--threshold", "0.45", "--confirm", "true")
    left = run(capsys, "search", "--query", query, "--top_k", "20")
    assert not any(name in line for name in shown for line in left)


def test_groups_follow_the_names_that_a_human_gave(place, capsys):
    copy = place.parent / "copies"
    copy.mkdir(exist_ok=True)
    image = next(path for path in sorted(place.iterdir()) if path.name.startswith("0003"))
    Image.open(image).save(copy / "again.jpg", quality=70)
    run(capsys, "add", "--images", str(copy))
    lines = run(capsys, "groups", "--output", "groups.csv", "--duplicates", "true")
    assert lines[0].startswith("13 rows: ") and lines[-1] == "groups: groups.csv"
    with open("groups.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["group"] for row in rows if row["person"] == "Ida"}) == 1
    (line,) = [line for line in lines if "person Ida" in line]
    assert "cameras 1, 2, 3" in line or ": 4 crops" in line or ": 3 crops" in line
    ids = {Path(row["file_name"]).name: row["id"] for row in rows}
    pair = {ids[image.name][:16], ids["again.jpg"][:16]}
    assert [set(line.split(": ")[1].split(" and ")) for line in lines if line.startswith("almost")] == [pair]
    # Times one hour apart in different cameras are no obstacle; with two hours of travel they are.
    far = run(capsys, "groups", "--travel_seconds", "7200", "--where", "person=")
    assert not any("cameras 1, 2" in line or "cameras 2, 3" in line for line in far if line.startswith("group"))
    with pytest.raises(UserError, match="overlapping '1:2': is no pair of cameras"):
        command.main(["groups", "--gallery", "runs/gallery", "--overlapping", "1:2"])


def groups_of(capsys, path):
    """The rows of each group, by the command."""
    run(capsys, "groups", "--output", path)
    found: dict[str, set[str]] = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["group"], set()).add(row["id"])
    return found


def test_decisions(place, capsys):
    before = groups_of(capsys, "before.csv")
    unnamed = [line for line in run(capsys, "groups") if line.startswith("group") and "person" not in line]
    first, second = (line.split()[1].rstrip(":") for line in unnamed[:2])
    lines = run(capsys, "confirm", "--groups", "before.csv", "--group", first, second, "--person", "Eva")
    both = before[first] | before[second]
    assert f"{len(both)} rows, one person: Eva" in lines[0]
    assert both in groups_of(capsys, "joined.csv").values()  # one group now
    assert any(line.endswith("person Eva") for line in run(capsys, "groups"))
    one = sorted(both)[0]
    lines = run(capsys, "split", "--where", f"id={one}", "--person", "Bo")
    assert "1 row, another person: Bo" in lines[0]
    after = groups_of(capsys, "split.csv").values()
    assert {one} in after and both - {one} in after
    assert "renamed: Zoe" in run(capsys, "rename", "--person", "Bo", "--new", "Zoe")[0]
    listed = run(capsys, "decisions")
    assert [line.split(", ")[1] for line in listed] == ["one person: Eva", "another person: Bo", "renamed: Zoe"]
    assert [made["ids"] for made in json.loads("\n".join(run(capsys, "decisions", "--json", "true")))][1] == [one]
    assert run(capsys, "undo", "--decision", listed[2].split()[0]) == [f"undone: {listed[2]}"]
    run(capsys, "undo"), run(capsys, "undo")
    assert run(capsys, "decisions") == ["no decisions"]
    assert groups_of(capsys, "undone.csv") == before
    trail = [json.loads(line) for path in Path("runs/gallery.audit").iterdir() for line in path.open()]
    made = [line for line in trail if line["query"] and len(line["query"]) == 16]
    assert [line["action"] for line in made] == ["confirm", "split", "rename", "undo", "undo", "undo"]


def test_the_python_of_the_page_runs(place, monkeypatch, capsys):
    (code,) = code_blocks(PAGE, "python")
    Path("person.jpg").write_bytes(next(path for path in place.iterdir() if "_c3" in path.name).read_bytes())
    exec(code, {})
    assert "person.jpg" not in (out := capsys.readouterr().out) and "(0.0, '" in out


def test_a_search_imports_no_torch(place):
    """The first result of a cold search takes about a second of processor time."""
    query = str(next(place.iterdir()))
    code = (
        "import sys; from modeling_mllmreid.commands import gallery;"
        f"gallery.main(['search', '--gallery', 'runs/gallery', '--query', {query!r}, '--output', 'sheet.png']);"
        "loaded = {'torch', 'transformers', 'datasets'} & set(sys.modules); assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "searched 12 rows" in done.stdout


GALLERY = ["--gallery", "runs/gallery"]
ADD = ["add", *GALLERY, "--images", "CROPS"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serch"], "gallery: unknown command 'serch': did you mean 'search'?"),
        (["search", "--gallery", "nothing", "--query", "a.jpg"], "gallery nothing: is no gallery"),
        (["add", "--gallery", "new", "--images", "CROPS"], "gallery new: does not exist yet: add --model"),
        (["add", *GALLERY, "--images", "nothing"], "images nothing: no such folder or image"),
        (["add", *GALLERY, "--images", "scene.png"], "(a detector is another tool)"),
        ([*ADD, "--columns", "wrong.csv"], "line 2: camera_id 'x'"),
        ([*ADD, "--columns", "sign.csv"], "line 2: camera_id '--5': give a whole number"),
        ([*ADD, "--columns", "square.csv"], "line 2: camera_id '²': give a whole number"),
        ([*ADD, "--columns", "twice.csv"], "the first line names 'camera_id' twice: remove one of them"),
        ([*ADD, "--keep_days", "10000000"], "keep_days 10000000: ends after the year 9999: give fewer days"),
        ([*ADD, "--columns", "other.csv"], "unknown column 'colour'"),
        ([*ADD, "--columns", "zone.csv"], "line 2: time '2026-11-28T08:00': has no zone"),
        ([*ADD, "--model", "./nothing"], "model ./nothing: "),
        ([*ADD, "--keep", "thumbnail"], "keeps file_name of its images, not thumbnail: leave keep out"),
        ([*ADD, "--flip_test", "true"], "gallery add: flip_test is a setting of the model: add --model"),
        ([*ADD, "--height", "64"], "gallery add: height is a setting of the model: add --model"),
        (["search", *GALLERY, "--query", "nothing.jpg"], "nothing.jpg: no such image"),
        (["search", *GALLERY, "--query", "scene.png"], "scene.png: is 192 x 108 pixels, wider than"),
        (["search", *GALLERY, "--words", "a man"], "model pedestrians-small has no language model"),
        (
            ["search", *GALLERY, "--query", "scene.png", "--any_shape", "true", "--verify_top", "5"],
            "verify_top: model pedestrians-small has no language model",
        ),
        (["search", *GALLERY, "--id", "0"], "id 0: is not in the gallery"),
        (["search", *GALLERY], "query: give a photo, words or an id"),
        (["search", *GALLERY, "--id", "0", "--where", "colour=red"], "no such column"),
        (["search", *GALLERY, "--id", "0", "--since", "2026-11-28"], "has no zone"),
        (["delete", *GALLERY, "--confirm", "true"], "delete: give a photo or a condition"),
        (["confirm", *GALLERY], "confirm: choose rows by --groups and --group, or by conditions"),
        (["confirm", *GALLERY, "--group", "1"], "confirm: groups and group belong together"),
        (
            ["split", *GALLERY, "--groups", "nothing.csv", "--group", "1"],
            "nothing.csv: cannot be read (No such file or directory): give the file",
        ),
        (["split", *GALLERY, "--groups", "wrong.csv", "--group", "1"], "wrong.csv: has no groups of rows"),
        (["confirm", *GALLERY, "--where", "person=nobody"], "no row is chosen: give conditions that rows meet"),
        (
            ["rename", *GALLERY, "--person", "Eve", "--new", "x"],
            "rename: no row has the name 'Eve': the names are",
        ),
        (["undo", *GALLERY, "--decision", "x"], "undo: there is no decision 'x': gallery decisions lists them"),
        (["reembed", *GALLERY], "gallery reembed: model is not given"),
        (["export", *GALLERY, "--output", "rows.xlsx"], "ends in none of"),
    ],
)
def test_mistakes(place, words, message):
    name = next(place.iterdir()).name
    Image.new("RGB", (192, 108)).save("scene.png")
    Path("wrong.csv").write_text(f"file_name,camera_id\n{name},x\n")
    Path("other.csv").write_text(f"file_name,colour\n{name},red\n")
    Path("sign.csv").write_text(f"file_name,camera_id\n{name},--5\n")
    Path("square.csv").write_text(f"file_name,camera_id\n{name},²\n", encoding="utf-8")
    Path("twice.csv").write_text(f"file_name,camera_id,camera_id\n{name},1,2\n")
    Path("zone.csv").write_text(f"file_name,time\n{name},2026-11-28T08:00\n")
    with pytest.raises(UserError, match=re.escape(message)):
        command.main(words)
