"""Published sets that are broken on disk: links that lead out, folders that cannot be read, foreign `.mat` and JSON."""

import errno
import json
import os
import threading

import numpy as np
import pytest
from trees import SMALL, set_images, write_tree

from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.data.readers import cuhk, matlab_files, rendered
from modeling_mllmreid.data.readers import file_names as data_folder
from modeling_mllmreid.data.readers.cuhk import extract_images
from modeling_mllmreid.data.readers.file_names import DataFolder
from modeling_mllmreid.data.readers.matlab_files import load_matlab
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.utils.errors import UserError

h5py = pytest.importorskip("h5py")
scipy_io = pytest.importorskip("scipy.io")

PUBLISHED = [name for name in SMALL if name not in ("folders", "table")]
LISTED = ("msmt17", "cuhk03", "cuhk_pedes", "icfg_pedes", "rstpreid")
NAMED = [name for name in PUBLISHED if name not in LISTED]


@pytest.fixture
def small(tmp_path):
    return lambda name: write_tree(tmp_path, name, SMALL[name])


def refused(name, root, match, **options):
    with pytest.raises(UserError, match=match) as caught:
        load_reid_dataset(name, data_dir=root, **options)
    text = str(caught.value)
    assert "\n" not in text
    text.encode()  # it can be printed and listed
    return text


def test_links_out_of_the_data_folder_are_refused(tmp_path):
    root, outside = tmp_path / "data", tmp_path / "outside"
    for path in (root / "a/b.jpg", root / "a/..c.jpg", outside / "c.jpg"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "link").symlink_to(outside)
    (root / "inner").symlink_to(root / "a")
    (root / "a/link.jpg").symlink_to(outside / "c.jpg")
    (root / "a/inner.jpg").symlink_to("b.jpg")
    (root / "a/nowhere.jpg").symlink_to("absent.jpg")
    (root / "a/round").symlink_to("round")
    (tmp_path / "alias").symlink_to(root)
    (root / "a/folder.jpg").mkdir()
    for at in (root, tmp_path / "alias"):
        files = DataFolder(at)
        for listed in ("a/b.jpg", "a//./b.jpg", "./a/b.jpg/", "a\\b.jpg", "a/..c.jpg", "inner/b.jpg", "a/inner.jpg"):
            assert files.has(files.relative(listed)), listed
        for listed in (
            "b.jpg",
            "a/B.JPG",
            "x/y/b.jpg",
            "a/b.jpg/c.jpg",
            "a/nowhere.jpg",
            "a/folder.jpg",
            "a",
            "a/round",
        ):
            assert not files.has(files.relative(listed)), listed
        for listed in ("link/c.jpg", "a/link.jpg", "link"):
            with pytest.raises(UserError, match="leaves the data folder .* by a symbolic link"):
                files.relative(listed)
        for listed in (
            *("", ".", "./", "/", "/etc/passwd", str(outside / "c.jpg"), "../outside/c.jpg", "a/../../outside/c.jpg"),
            *(
                "a/../a/b.jpg",
                "a\0b",
                "..\\outside\\c.jpg",
                "C:\\a\\b.jpg",
                "\\\\server\\b.jpg",
                "a/\udce9.jpg",
                "\ud800",
            ),
        ):
            with pytest.raises(UserError, match="is not inside the data folder .*: give a path relative"):
                files.relative(listed)


@pytest.mark.parametrize("name", LISTED)
def test_each_folder_is_scanned_once(small, name, monkeypatch):
    root = small(name)
    folders = {str(path.parent) for path in set_images(root)}
    scanned, resolved = [], []
    scan, realpath = os.scandir, os.path.realpath
    monkeypatch.setattr(data_folder.os, "scandir", lambda path: (scanned.append(str(path)), scan(path))[1])
    monkeypatch.setattr(data_folder.os.path, "realpath", lambda path: (resolved.append(str(path)), realpath(path))[1])
    load_reid_dataset(name, data_dir=root)
    assert sum(os.path.normpath(path) in folders for path in scanned) <= len(folders) + 2
    assert sum(path.startswith(str(root)) for path in resolved) <= len(folders) + 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_unreadable_folder_and_file_instead_of_folder(small, name, monkeypatch):
    root = small(name)

    def deny(path="."):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", deny)
        refused(name, root, "cannot be (read|listed) .Permission denied")
    folder = root / set_images(root)[0].relative_to(root).parts[0]
    folder.rename(root / "copies" / "moved")
    folder.write_bytes(b"")
    refused(name, root, str(root))
    refused(name, folder, str(folder))


@pytest.mark.parametrize("name", NAMED)
def test_names_that_are_not_utf8(small, tmp_path, name):
    """Bytes that are not UTF-8, and a line break: a table and a line of a message hold neither."""
    root = small(name)
    count = sum(map(len, load_reid_dataset(name, data_dir=root).values()))
    image = os.fsencode(set_images(root)[-1])
    stem, suffix = os.path.splitext(image)
    for stray in (stem + b"\xe9" + suffix, stem + b"\n" + suffix):
        os.link(image, stray)
        listed = tmp_path / "skipped.txt"
        refused(name, root, r"not UTF-8: rename|not a name like")
        skipped = load_reid_dataset(name, data_dir=root, on_error="skip", skipped_file=listed)
        assert sum(map(len, skipped.values())) == count and len(listed.read_text().splitlines()) == 1
        os.unlink(stray)


@pytest.mark.parametrize("name", PUBLISHED)
def test_broken_and_circular_links(small, name):
    """Next to the images of a set they stop nobody, unless they have the name of an image."""
    root = small(name)
    before = load_reid_dataset(name, data_dir=root)
    folders = {path.parent for path in set_images(root)}
    for folder in folders:
        (folder / "round").symlink_to("round")
        (folder / "absent.txt").symlink_to("nowhere")
    assert list(map(len, load_reid_dataset(name, data_dir=root).values())) == list(map(len, before.values()))
    if name in NAMED:
        (min(folders) / "round.jpg").symlink_to("round.jpg")
        refused(name, root, "round.jpg: not a file, or a broken link: restore the image or remove the name")


@pytest.mark.parametrize("name", ["market1501", "msmt17", "cuhk_pedes"])
def test_data_folder_with_a_path_that_is_not_utf8(tmp_path, name):
    root = write_tree(tmp_path, name, SMALL[name])
    foreign = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9")
    os.rename(root, foreign)
    refused(name, foreign, r"the path '.*\\udce9.*' is not UTF-8: rename")


# ---- MATLAB files


@pytest.mark.parametrize("compressed", [False, True])
def test_matlab_files_are_nested_lists(tmp_path, compressed):
    cells = np.empty((2, 3), dtype=object)
    for place in range(6):
        cells.flat[place] = [np.arange(place), "text", "é人", np.array([[]]), cells[:1, :1].copy(), 7][place]
    structs = np.array([[(1, "a"), (np.eye(2), "b")]], dtype=[("field", object), ("a longer name", object)])
    content = {kind: np.arange(6, dtype=kind).reshape(2, 3) for kind in ("f8", "f4", "i1", "u1", "i4", "u8")}
    expected = dict.fromkeys(content, [[0, 1, 2], [3, 4, 5]])
    content |= {"cells": cells, "structs": structs, "rows": np.array(["ab", "cd"]), "odd": [[1j]]}
    expected["cells"] = [[[], ["text"], ["é人"]], [[[]], [[[]]], [[7]]]]
    expected["structs"] = [[[[[1]], ["a"]], [[[1, 0], [0, 1]], ["b"]]]]
    expected |= {"rows": ["ab", "cd"], "odd": [[None]]}
    path = tmp_path / "x.mat"
    scipy_io.savemat(path, content, do_compression=compressed, long_field_names=True)
    assert load_matlab(path, list(content), remedy="") == expected
    assert load_matlab(path, ["rows", "other"], remedy="") == {"rows": ["ab", "cd"]}


@pytest.mark.parametrize(
    ("name", "file"), [("cuhk03", "cuhk03_new_protocol_config_detected.mat"), ("grid", "features_and_partitions.mat")]
)
def test_broken_mat_files(small, name, file):
    path = small(name) / file
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for text in (b"", content[:-40], b"no archive", b"\x89HDF\r\n\x1a\n" + bytes(600)):
        path.write_bytes(text)
        refused(name, path.parent, f"{file}: (not readable as a MATLAB file .*: restore the file|has no|does not have)")
    for _ in range(6):
        damaged = bytearray(content)
        for place in rng.integers(128, len(content), 4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            load_reid_dataset(name, data_dir=path.parent)
        except UserError as error:
            assert "\n" not in str(error)
    path.unlink()
    path.mkdir()
    refused(name, path.parent, f"{file}: no such file")


def test_mat_files_that_crash_scipy(tmp_path):
    """One byte another: the array's class, the length of a text, the kind of a cell. scipy 1.17 reads outside of its
    memory at each, which ends the process by a signal."""
    cells = np.array([["a.png"], ["b.png"]], dtype=object)
    path = tmp_path / "x.mat"
    scipy_io.savemat(path, {"filelist": cells})
    content = path.read_bytes()
    assert load_matlab(path, ["filelist"], remedy="") == {"filelist": [[["a.png"]], [["b.png"]]]}
    for place, value in ((144, 14), (212, 0), (233, 1)):
        assert content[place] != value
        path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
        with pytest.raises(UserError, match=r"x.mat: not readable as a MATLAB file \(.*\): restore the file$"):
            load_matlab(path, ["filelist"], remedy="")


LIMIT = f"import runpy; runpy.run_path({str(matlab_files.PROGRAM)!r})['limit_resources']()"


@pytest.mark.parametrize(
    ("program", "match"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"\(scipy's reader ended with code -11\): restore"),
        ("raise ValueError('of\\nlines')", r"\(lines\): restore"),
        (f"{LIMIT}; bytearray(2**32)", r"\(MemoryError\): restore"),
        (f"{LIMIT}; open(__file__, 'ab', 0).write(b'x')", r"\(OSError: .* File too large\): restore"),
        ("import time; time.sleep(60)", r"\(not finished after 0.5 s\): restore"),
        ("print('Segmentation fault')", r": not JSON \(.*\): restore"),
        ("print('[1]')", r": the whole content: input should be an object, not \[1\]: restore"),
    ],
)
def test_failed_reading_process(tmp_path, monkeypatch, program, match):
    (tmp_path / "x.mat").touch()
    (tmp_path / "program.py").write_text(program)
    monkeypatch.setattr(matlab_files, "PROGRAM", tmp_path / "program.py")
    monkeypatch.setattr(matlab_files, "TIMEOUT_SECONDS", 0.5 if "sleep" in program else 60)
    with pytest.raises(UserError, match=f"x.mat: not readable as a MATLAB file ?{match} the file$"):
        load_matlab(tmp_path / "x.mat", ["filelist"], remedy="")


def test_mat_file_with_too_much_content(tmp_path):
    path = tmp_path / "x.mat"
    scipy_io.savemat(path, {"labels": np.zeros((2**12, 2**11), np.uint8)}, do_compression=True)
    with pytest.raises(UserError, match=r"x.mat: not readable .*more than 16 MiB of content\): restore the file"):
        load_matlab(path, ["labels"], remedy="")


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("labels", np.full((20, 1), 1.5), "labels: not all are whole numbers"),
        ("labels", np.full((20, 1), np.nan), "labels: not all are whole numbers"),
        ("labels", np.full((20, 1), np.inf), "labels: not all are whole numbers"),
        ("labels", np.full((20, 1), 1e30), "labels: not all are whole numbers"),
        ("labels", np.full((20, 1), -1), "labels: not all are whole numbers"),
        ("labels", "text", "labels: not all are whole numbers"),
        ("labels", {"a": "text"}, "labels: not all are whole numbers"),
        ("labels", [[1]], "train_idx repeats an image or has a wrong index"),
        ("train_idx", [[1.5]], "train_idx: not all are whole numbers"),
        ("query_idx", np.array(["1"], dtype=object), "query_idx: not all are whole numbers"),
        ("filelist", [[1]], "filelist: not all are texts"),
        ("filelist", np.array([np.array(["a", "b"])] * 20, dtype=object), "not a name like|repeats"),
    ],
)
def test_wrong_protocols_of_cuhk03(small, key, value, match):
    root = small("cuhk03")
    path = root / "cuhk03_new_protocol_config_detected.mat"
    config = {name: array for name, array in scipy_io.loadmat(path).items() if not name.startswith("__")}
    scipy_io.savemat(path, {**config, key: value})
    refused("cuhk03", root, f"{path.name}: .*({match})")


def test_cuhk03_in_the_layout_of_torchreid(small, tmp_path):
    root = small("cuhk03")
    (tmp_path / "torchreid").mkdir()
    root.rename(tmp_path / "torchreid/cuhk03_release")
    config = tmp_path / "torchreid/cuhk03_release/cuhk03_new_protocol_config_detected.mat"
    config.rename(tmp_path / "torchreid" / config.name)
    assert len(load_reid_dataset("cuhk03", data_dir=tmp_path / "torchreid")["train"]) == 8


def write_archive(path, images=1, pixels=None):
    """An archive of one pair, and so many images of one person."""
    with h5py.File(path, "w") as mat:
        cells = mat.create_dataset("cells", (10, 1), dtype=h5py.ref_dtype)
        for place in range(10):
            content = np.full((3, 4, 8), place, np.uint8) if place < images else np.zeros(2, np.uint64)
            content = content if pixels is None else pixels
            cells[place, 0] = mat.create_dataset(f"image{place}", data=content).ref
        mat.create_dataset("detected", (1, 1), dtype=h5py.ref_dtype)[0, 0] = cells.ref


def test_killed_and_concurrent_extractions(tmp_path, monkeypatch):
    archive, folder = tmp_path / "cuhk-03.mat", tmp_path / "images_detected"
    write_archive(archive, images=3)
    (tmp_path / ".images_detected.part").mkdir()
    (tmp_path / ".images_detected.part" / "9_999_1_01.png").write_bytes(b"of a killed run")
    for content, match in (
        (archive.read_bytes()[:-3000], "not readable as CUHK03's archive"),
        (b"no archive", "not readable as CUHK03's archive"),
    ):
        (tmp_path / "bad.mat").write_bytes(content)
        with pytest.raises(UserError, match=match):
            extract_images(tmp_path / "bad.mat", folder, "detected")
        assert not folder.exists()
    for pixels in (np.full((3, 4, 8), 300.0), np.full((4, 4, 8), 3, np.uint8)):
        write_archive(tmp_path / "other.mat", pixels=pixels)
        with pytest.raises(UserError, match="not readable as CUHK03's archive .pixels of kind"):
            extract_images(tmp_path / "other.mat", folder, "detected")
    with pytest.raises(UserError, match="not readable as CUHK03's archive"):
        extract_images(archive, folder, "labeled")
    with monkeypatch.context() as patched:
        patched.setattr(
            cuhk.Image.Image,
            "save",
            lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")),
        )
        with pytest.raises(UserError, match="images_detected: cannot be written .no space left"):
            extract_images(archive, folder, "detected")
    assert not folder.exists()
    results = []

    def extract():
        try:
            extract_images(archive, folder, "detected")
            results.append("extracted")
        except UserError as error:
            results.append(str(error))

    threads = [threading.Thread(target=extract) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "extracted" in results
    assert sorted(path.name for path in folder.iterdir()) == [f"1_001_1_0{n}.png" for n in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.glob(".images*")) == [".images_detected.part"]


# ---- JSON files

KEYS = ("split", "captions", "file_path", "img_path", "id")
ODD = ([], {}, None, 7, -1, 2**70, 1.5, "x", True, [[]], [[[]]], [None], [{}], [7], {"train": []}, [["x"], 3])


@pytest.mark.parametrize("name", ["viper", "ilids", "prid"])
def test_wrong_split_files(small, name):
    """Whatever stands wherever in the file: one line, never a traceback and never another split."""
    root = small(name)
    names = [str(path.relative_to(root)) for path in set_images(root)]
    if name == "prid":
        file, right = root / "splits_single_shot.json", {"train": [*range(2, 201)], "test": [1]}
    else:
        file = root / "splits.json"
        right = {"train": [[names[0], 1, 1]], "query": [[names[-1], 1, 1]], "gallery": [names[len(names) // 2 - 1]]}
    file.write_text(json.dumps([right]))
    assert len(load_reid_dataset(name, data_dir=root)["query"]) == 1
    for odd in ODD:
        whole = [odd, [odd], [right, odd]]
        whole += [[{**right, key: wrong}] for key in right for wrong in (odd, [odd])]
        for content in whole:
            if content == [{**right, "train": [7]}] and name == "prid":
                continue  # a training of one person
            file.write_text(json.dumps(content))
            refused(name, root, file.name)
    for key in right:
        file.write_text(json.dumps([{**right, key: [*right[key], right["train"][0]]}]))
        refused(name, root, file.name)  # twice, or in training and test
    for text in (b"", b"\xff\xfe[", b"[" * 100_000, b"[NaN]", b"nul"):
        file.write_bytes(text)
        refused(name, root, file.name)


@pytest.mark.parametrize("name", ["cuhk_pedes", "icfg_pedes", "rstpreid"])
def test_wrong_captions_files(small, name):
    root = small(name)
    path = next(root.glob("*.json"))
    entries = json.loads(path.read_text())
    for odd in ODD:
        # An image may have no caption, and a person the number 7.
        keys = [key for key in KEYS if key in entries[0] and (key, odd) not in (("captions", []), ("id", 7))]
        for content in (odd, [odd, *entries], *([{**entries[0], key: odd}, *entries[1:]] for key in keys)):
            path.write_text(json.dumps(content))
            refused(name, root, path.name)
    for text in (b"", b"\xff\xfe[", b"[" * 100_000, b'[{"id": ' + b"9" * 10_000 + b"}]", b'["\\ud800"]'):
        path.write_bytes(text)
        refused(name, root, path.name)


# ---- rendered worlds


def test_world_rendered_by_a_concurrent_process(tmp_path, monkeypatch):
    folder = tmp_path / "street"

    def write(root, name):
        """As `write_world`, of few people; another process is quicker."""
        few = {"train_identities": 2, "test_identities": 2, "images_per_camera": 2, "cameras": 2, "named": name}
        write_pedestrians(root, **few)
        write_pedestrians(root, **few)

    monkeypatch.setattr(rendered, "write_flat_world", write)
    assert len(load_reid_dataset("rendered_street", data_dir=folder)["train"]) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["street"]


def test_incomplete_world_is_not_read(tmp_path, monkeypatch):
    """What a killed run left next to the folder is not taken over, and goes at the next start."""
    left = tmp_path / ".street.abc.part"
    (left / "query").mkdir(parents=True)
    (left / "query" / "0001_c1s1_000001_01.jpg").touch()
    few = {"train_identities": 2, "test_identities": 2, "images_per_camera": 2, "cameras": 2}
    monkeypatch.setattr(rendered, "write_flat_world", lambda root, name: write_pedestrians(root, **few, named=name))
    assert len(load_reid_dataset("rendered_street", data_dir=tmp_path / "street")["query"]) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["street"]
