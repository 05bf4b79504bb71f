"""Trees of one-pixel images with the original file names of each data set, at any size, to test the readers.

They hold what the published archives hold and what systems leave: doubled suffixes, `Thumbs.db`, `readme.txt`, `.mat`
files and folders that are no part of the set.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

Counts = dict[str, tuple[int, int]]  # part -> (images, persons)

# Distractors and junk of Market-1501's gallery are counted apart.
PUBLISHED: dict[str, Counts] = {
    "market1501": {
        "train": (12_936, 751),
        "query": (3_368, 750),
        "gallery": (13_115, 750),
        "nobody": (2_798, 1),
        "junk": (3_819, 1),
    },
    "dukemtmc": {"train": (16_522, 702), "query": (2_228, 702), "gallery": (17_661, 1_110)},
    "occluded_duke": {"train": (15_618, 702), "query": (2_210, 519), "gallery": (17_661, 1_110)},
    "msmt17": {"train": (30_248, 1_041), "val": (2_373, 1_041), "query": (11_659, 3_060), "gallery": (82_161, 3_060)},
    "cuhk03": {"train": (7_365, 767), "query": (1_400, 700), "gallery": (5_332, 700)},
    "cuhk_pedes": {"train": (34_054, 11_003), "val": (3_078, 1_000), "test": (3_074, 1_000)},
    "icfg_pedes": {"train": (34_674, 3_102), "test": (19_848, 1_000)},
    "rstpreid": {"train": (18_505, 3_701), "val": (1_000, 200), "test": (1_000, 200)},
    "cuhk02": {"train": (7_264, 1_816)},
    "cuhk_sysu": {"train": (34_574, 11_934)},
    "viper": {"train": (1_264, 632)},
    "prid": {"a": (385, 385), "b": (749, 749)},
    "grid": {"pairs": (500, 250), "nobody": (775, 1)},
    "ilids": {"train": (476, 119)},
}
SMALL: dict[str, Counts] = {
    "market1501": {"train": (8, 2), "query": (4, 2), "gallery": (8, 2), "nobody": (2, 1), "junk": (2, 1)},
    "dukemtmc": {"train": (8, 2), "query": (4, 2), "gallery": (8, 3)},
    "occluded_duke": {"train": (8, 2), "query": (4, 2), "gallery": (8, 3)},
    "personx": {"train": (8, 2), "query": (4, 2), "gallery": (8, 2)},
    "randperson": {"train": (8, 2)},
    "msmt17": {"train": (8, 2), "val": (2, 2), "query": (4, 2), "gallery": (8, 2)},
    "cuhk03": {"train": (8, 2), "query": (4, 2), "gallery": (8, 2)},
    "cuhk_pedes": {"train": (8, 3), "val": (2, 1), "test": (4, 2)},
    "icfg_pedes": {"train": (8, 3), "test": (4, 2)},
    "rstpreid": {"train": (8, 3), "val": (2, 1), "test": (4, 2)},
    "cuhk02": {"train": (40, 10)},
    "cuhk_sysu": {"train": (8, 2)},
    "viper": {"train": (8, 4)},
    "prid": {"a": (220, 220), "b": (230, 230)},
    "grid": {"pairs": (16, 8), "nobody": (3, 1)},
    "ilids": {"train": (16, 4)},
    "folders": {"train": (16, 4)},
    "table": {"train": (16, 4)},
}
# Captions of the images that have more than two.
MORE_CAPTIONS = {("cuhk_pedes", "train"): 18, ("cuhk_pedes", "val"): 2, ("cuhk_pedes", "test"): 8}
PERSONS_OF_CUHK02 = (971, 306, 107, 193, 239)
# Market-1501's names that end in `.jpg.jpg`: their number in each part.
DOUBLE_SUFFIXES = {"query": 6, "gallery": 13, "nobody": 3, "junk": 2}
# Files that lie in every folder, and what archives hold besides the images of the set.
LITTER = ("Thumbs.db", ".DS_Store", "desktop.ini", "readme.txt", "features.mat", "._0002_c1s1_000451_03.jpg")
FURTHER_FOLDERS = ("__MACOSX", "copies")
FURTHER = {
    "market1501": ("gt_bbox/0001_c1s1_001051_00.jpg", "gt_query/0001_c1s1_001051_00_good.mat"),
    "dukemtmc": ("LICENSE_DukeMTMC-reID.txt", "CITATION.txt", "README.md"),
    "prid": ("multi_shot/cam_a/person_0001/0001.png",),
    "grid": ("img/0001.jpeg",),
    "cuhk03": ("splits_new_detected.json", "images_labeled/1_001_1_01.png"),
    "cuhk_sysu": ("annotation/test.mat",),
}


def write_tree(root: Path, name: str, counts: Counts | None = None) -> Path:
    """The set's tree under root / "set", of the published size where no counts are given. Returns that folder."""
    folder = root / "set"
    TREES[name](folder, PUBLISHED[name] if counts is None else counts)
    write_litter(folder, name)
    return folder


def write_litter(root: Path, name: str) -> None:
    """Adds system and archive files to every folder, and a folder of images that are not in the data set."""
    for path in FURTHER.get(name, ()):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"\0\1")
    own = name in ("folders", "table")  # there each visible folder says something
    for folder, _, _ in list(os.walk(root)):
        for file in LITTER:
            Path(folder, file).write_bytes(b"\0\1")
        if not own:
            for further in FURTHER_FOLDERS:
                Path(folder, further).mkdir()
                Path(folder, further, "holiday.jpg").write_bytes(b"\0\1")


def set_images(root: Path) -> list[Path]:
    """The images of the set in its tree, sorted."""
    others = {*FURTHER_FOLDERS, *(path.split("/")[0] for paths in FURTHER.values() for path in paths)}
    return sorted(
        path
        for path in root.rglob("[!.]*.*")
        if path.suffix in (".jpg", ".jpeg", ".png", ".bmp") and not others & {*path.relative_to(root).parts}
    )


def write_images(root: Path, names: Iterable[str]) -> None:
    """One-pixel images of these names: one file for each suffix, linked as often as needed."""
    folders: set[str] = set()
    for name in names:
        suffix = name.rpartition(".")[2]
        pixel = root.with_name(f"pixel.{suffix}")
        if not pixel.exists():
            root.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (1, 1), "red").save(pixel)
        path = f"{root}/{name}"
        parent = path.rpartition("/")[0]
        if parent not in folders:
            os.makedirs(parent, exist_ok=True)
            folders.add(parent)
        try:
            os.link(pixel, path)
        except OSError:  # a file system has a limit of links to one file
            pixel.unlink()
            Image.new("RGB", (1, 1), "red").save(pixel)
            os.link(pixel, path)


def people(images: int, persons: int, first: int = 2) -> Iterable[tuple[int, int]]:
    """(image, person): so many images of so many persons in turn, numbered from `first` with gaps."""
    return zip(range(images), itertools.cycle(range(first, first + 2 * persons, 2)), strict=False)


def market_layout(
    pattern: str, folders: dict[str, str], cameras: int = 6, doubled: bool = False
) -> Callable[[Path, Counts], None]:
    """A writer of Market-1501's layout: the pattern has `person`, `camera` and `number`.

    doubled: some names of query and gallery end in `.jpg.jpg`.
    """

    def write(root: Path, counts: Counts) -> None:
        first = {"train": 2, "query": 5001, "gallery": 5001}
        for part, (images, persons) in counts.items():
            if part in folders:
                rows = people(images, persons, first[part])
                names = [pattern.format(person=p, camera=1 + n % cameras, number=n) for n, p in rows]
            else:
                label = "0000" if part == "nobody" else "-1"
                names = [f"{label}_c{1 + n % cameras}s2_{n:06d}_02.jpg" for n in range(images)]
            if doubled and part in DOUBLE_SUFFIXES:
                ending = names[-min(DOUBLE_SUFFIXES[part], images // 2) :]
                names[-len(ending) :] = [f"{name}.jpg" for name in ending]
            folder = folders.get(part, folders.get("gallery", ""))
            write_images(root, [f"{folder}/{name}" for name in names])

    return write


def msmt17(root: Path, counts: Counts) -> None:
    """Lists, and images in a folder for each person."""
    for part, (images, persons) in counts.items():
        folder = "train" if part in ("train", "val") else "test"
        hour = {"train": "0303morning", "val": "0303noon", "query": "0113noon", "gallery": "0113afternoon"}[part]
        rows = [(n, p // 2) for n, p in people(images, persons, 0)]
        paths = [f"{p:04d}/{p:04d}_{n:03d}_{1 + n % 15:02d}_{hour}_{n:04d}_{n % 3}.jpg" for n, p in rows]
        write_images(root, [f"{folder}/{path}" for path in paths])
        lines = [f"{path} {p}" for path, (_, p) in zip(paths, rows, strict=True)]
        (root / f"list_{part}.txt").write_text("\n".join(lines) + "\n")


def cuhk03(root: Path, counts: Counts) -> None:
    """Extracted images of the detector's boxes, and the new protocol's file."""
    names, persons, indexes = [], [], {}
    first = {"train": 1, "query": 5001, "gallery": 5001}
    for part, (images, count) in counts.items():
        rows = list(people(images, count, first[part]))
        views = {"train": 1 + np.arange(images) % 2, "query": np.ones(images, int), "gallery": np.full(images, 2)}[part]
        indexes[f"{part}_idx"] = 1 + np.arange(len(names), len(names) + images)[:, None]
        names += [f"{1 + p % 5}_{p:03d}_{view}_{n:02d}.png" for (n, p), view in zip(rows, views, strict=True)]
        persons += [p for _, p in rows]
    write_images(root, [f"images_detected/{name}" for name in names])
    filelist = np.array(names, dtype=object)[:, None]
    config = {"filelist": filelist, "labels": np.array(persons)[:, None], **indexes}
    savemat(root / "cuhk03_new_protocol_config_detected.mat", config)


def caption_set(name: str, json_name: str, key: str, path: str, captions: int) -> Callable[[Path, Counts], None]:
    """A writer of a captions file and its images; the path has `person` and `number`."""

    def write(root: Path, counts: Counts) -> None:
        entries = []
        for place, (part, (images, persons)) in enumerate(counts.items()):
            more = MORE_CAPTIONS.get((name, part), 0) if images > 1_000 else 0
            for number, person in people(images, persons, 1 + 30_000 * place):
                texts = [f"a man in a red shirt, {number} {k} ." for k in range(captions + (number < more))]
                folder = PEDES_FOLDERS[number % len(PEDES_FOLDERS)]
                file_name = path.format(folder=folder, person=person, camera=1 + number % 15, number=number)
                entries.append({"split": part, "captions": texts, key: file_name, "processed_tokens": [], "id": person})
        write_images(root, [f"imgs/{entry[key]}" for entry in entries])
        (root / json_name).write_text(json.dumps(entries))

    return write


def cuhk02(root: Path, counts: Counts) -> None:
    """Five pairs of cameras, two images of each person from each."""
    images, persons = counts["train"]
    of_pairs = PERSONS_OF_CUHK02 if persons == sum(PERSONS_OF_CUHK02) else [persons // 5] * 5
    assert images == 4 * sum(of_pairs)
    for pair, count in enumerate(of_pairs, start=1):
        for camera in (1, 2):
            rows = itertools.product(range(1, count + 1), (1, 2))
            write_images(root, [f"P{pair}/cam{camera}/{person:03d}_{number}.png" for person, number in rows])


def cuhk_sysu(root: Path, counts: Counts) -> None:
    """Crops with the person and the scene in their names."""
    write_images(root, [f"cropped_image/p{person}_s{n}_1.png" for n, person in people(*counts["train"])])


def viper(root: Path, counts: Counts) -> None:
    """One image of each person from each of two cameras."""
    persons = range(0, 2 * counts["train"][1], 2)
    for folder, angle in (("cam_a", 0), ("cam_b", 90)):
        write_images(root, [f"{folder}/{person:03d}_{angle}.bmp" for person in persons])


def prid(root: Path, counts: Counts) -> None:
    """Persons 1 to 200 from both cameras, more from each alone."""
    for camera in "ab":
        names = [f"person_{person:04d}.png" for person in range(1, counts[camera][1] + 1)]
        write_images(root, [f"single_shot/cam_{camera}/{name}" for name in names])


def grid(root: Path, counts: Counts) -> None:
    """Pairs over eight cameras, and images of nobody's pair; partitions as MATLAB stores them."""
    persons = np.arange(1, counts["pairs"][1] + 1)
    write_images(root, [f"probe/{p:04d}_{1 + p % 8}_25004_107_32_106_221.jpeg" for p in persons])
    write_images(root, [f"gallery/{p:04d}_{1 + (p + 1) % 8}_25009_7_3_10_22.jpeg" for p in persons])
    write_images(root, [f"gallery/0000_{1 + n % 8}_{n:05d}_1_2_3_4.jpeg" for n in range(counts["nobody"][0])])
    partitions = np.empty((1, 10), dtype=object)
    for number in range(10):
        trained = np.random.default_rng(number).permutation(persons)[: len(persons) // 2]
        partitions[0, number] = np.array([[(0, 0, trained[None])]], dtype=[(field, object) for field in "abc"])
    savemat(root / "features_and_partitions.mat", {"trainIdxAll": partitions})


def ilids(root: Path, counts: Counts) -> None:
    """Persons with several images, the number of each in its name."""
    images, persons = counts["train"]
    rows = [(1 + n % persons, 1 + n // persons) for n in range(images)]
    write_images(root, [f"Persons/{person:04d}{number:03d}.jpg" for person, number in rows])


def folders(root: Path, counts: Counts) -> None:
    """A folder for each person."""
    write_images(root, [f"person {person}/{n}.jpg" for n, person in people(*counts["train"])])


def table(root: Path, counts: Counts) -> None:
    """Images with a metadata table."""
    rows = list(people(*counts["train"]))
    write_images(root, [f"{n}.jpg" for n, _ in rows])
    lines = ["file_name,person_id,camera_id,caption", *(f"{n}.jpg,{person},{n // 4 % 2},a man" for n, person in rows)]
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")


PARTS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
DUKE = "{person:04d}_c{camera}_f{number:07d}.jpg"
PEDES = "{folder}/{person}_{number}.png"
PEDES_FOLDERS = ("CUHK01", "CUHK03", "Market", "cam_a", "test_query", "train_query")
TREES: dict[str, Callable[[Path, Counts], None]] = {
    "market1501": market_layout("{person:04d}_c{camera}s1_{number:06d}_01.jpg", PARTS, doubled=True),
    "dukemtmc": market_layout(DUKE, PARTS, 8),
    "occluded_duke": market_layout(DUKE, PARTS, 8),
    "personx": market_layout("{person:04d}_c{camera}s1_{number:02d}.jpg", PARTS),
    "randperson": market_layout("{person:06d}_s00_c{camera:02d}_f{number:06d}.jpg", {"train": "randperson_subset"}),
    "msmt17": msmt17,
    "cuhk03": cuhk03,
    "cuhk_pedes": caption_set("cuhk_pedes", "reid_raw.json", "file_path", PEDES, 2),
    "icfg_pedes": caption_set("icfg_pedes", "ICFG-PEDES.json", "file_path", "test/{person:04d}/{number:05d}_ex.jpg", 1),
    "rstpreid": caption_set("rstpreid", "data_captions.json", "img_path", "{person:04d}_c{camera}_{number:04d}.jpg", 2),
    "cuhk02": cuhk02,
    "cuhk_sysu": cuhk_sysu,
    "viper": viper,
    "prid": prid,
    "grid": grid,
    "ilids": ilids,
    "folders": folders,
    "table": table,
}
