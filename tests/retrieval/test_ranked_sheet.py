"""Ranked sheets: frames say hit or miss, and any way to give an image works."""

import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from modeling_mllmreid.retrieval import sheet
from modeling_mllmreid.retrieval.exact import Ranking
from modeling_mllmreid.retrieval.sheet import ranked_sheet
from modeling_mllmreid.utils.errors import UserError

RANKING = Ranking(np.array([[1, 0], [2, -1]]), np.array([[0.1, 0.2], [0.3, np.inf]], dtype=np.float32))
IDS = {"query_person_ids": [5, 6], "gallery_person_ids": [6, 5, 9]}


def frame_color(path, row, column):
    """The pixel in the middle of a cell's left frame edge; column 0 is the query."""
    cell = sheet.CROP[0] + 2 * sheet.FRAME
    left = sheet.MARGIN if column == 0 else sheet.MARGIN + cell + sheet.QUERY_GAP + (column - 1) * (cell + sheet.GAP)
    top = sheet.HEADER + row * (sheet.CROP[1] + 2 * sheet.FRAME + sheet.CAPTION + sheet.GAP)
    with Image.open(path) as image:
        return image.getpixel((left + 2, top + 100))


@pytest.fixture
def images(tmp_path):
    Image.new("RGB", (10, 30), "purple").save(tmp_path / "crop.png")
    gallery = [Image.new("L", (40, 20), 120), tmp_path / "crop.png", lambda: Image.new("RGB", (64, 128), "orange")]
    return [str(tmp_path / "crop.png"), None], gallery


def test_hits_green_misses_red(tmp_path, images):
    path = tmp_path / "sheets" / "ranked.png"
    cameras = {"query_camera_ids": [1, -1], "gallery_camera_ids": [1, 2, -1]}
    ranked_sheet(path, *images, RANKING, **IDS, **cameras, query_titles=["x" * 99, "a man in a red coat " * 30])
    rgb = ImageColor.getrgb
    assert [frame_color(path, 0, column) for column in range(3)] == [rgb(sheet.QUERY), rgb(sheet.HIT), rgb(sheet.MISS)]
    assert frame_color(path, 1, 1) == rgb(sheet.MISS)
    assert frame_color(path, 1, 2) == rgb(sheet.PAPER)  # a short row
    assert [file.name for file in path.parent.iterdir()] == ["ranked.png"]


def test_a_search_has_neutral_frames(tmp_path, images):
    ranked_sheet(tmp_path / "s.png", *images, RANKING, columns=1)
    assert frame_color(tmp_path / "s.png", 0, 1) == ImageColor.getrgb(sheet.NEUTRAL)
    assert frame_color(tmp_path / "s.png", 0, 2) == ImageColor.getrgb(sheet.PAPER)


def saturation(path, column, row=0):
    """How colourful the middle of a cell is, 0 to 255."""
    with Image.open(path) as image:
        left = sheet.MARGIN + sheet.CROP[0] + 2 * sheet.FRAME + sheet.QUERY_GAP
        left += (column - 1) * (sheet.CROP[0] + 2 * sheet.FRAME + sheet.GAP)
        top = sheet.HEADER + row * (sheet.CROP[1] + 2 * sheet.FRAME + sheet.CAPTION + sheet.GAP)
        return image.convert("HSV").getpixel((left + 50, top + 100))[1]


def count_of(path, color):
    with Image.open(path) as image:
        return int((np.asarray(image) == ImageColor.getrgb(color)).all(-1)[sheet.HEADER - 4 :].sum())


@pytest.mark.parametrize("threshold, within", [(0.05, 0), (0.15, 1), (0.2, 2), (0.9, 3)])
def test_images_beyond_the_threshold_are_grey_behind_a_line(tmp_path, monkeypatch, threshold, within):
    header = []
    monkeypatch.setattr(sheet, "_draw_header", lambda *args: header.extend(args[3:5]))
    red = Image.new("RGB", (32, 64), "red")
    ranking = Ranking(np.array([[0, 1, 2, -1]]), np.array([[0.1, 0.2, 0.3, np.inf]], dtype=np.float32))
    threshold = float(np.float32(threshold))
    ranked_sheet(tmp_path / "s.png", [red], [red] * 3, ranking, threshold=threshold, title="Nearest of 3")
    verdict, notes = header
    assert verdict == (f"{within} of 3" if within else "nobody") + f" within the threshold {threshold:.4f}"
    assert notes == "Nearest of 3; cosine distance"
    assert [saturation(tmp_path / "s.png", column) > 200 for column in (1, 2, 3)] == [n < within for n in range(3)]
    line = 3 * (sheet.CROP[1] + 2 * sheet.FRAME + 6)
    assert count_of(tmp_path / "s.png", sheet.LIMIT) == (line if within < 3 else 0)


def test_a_sheet_is_of_a_size_that_can_be_shown_and_reports_it(tmp_path, monkeypatch):
    header = []
    monkeypatch.setattr(sheet, "_draw_header", lambda *args: header.extend(args[3:5]))
    many = Ranking(np.zeros((40, 3000), dtype=int), np.zeros((40, 3000), dtype=np.float32))
    one = Image.new("RGB", (8, 16))
    ranked_sheet(tmp_path / "s.png", [one] * 40, [one], many, columns=3000, threshold=0.1, title="Nearest")
    assert header == [
        "40 of 40 queries find somebody within the threshold 0.1000",
        "Nearest; cosine distance; the first 20 of 3,000 columns; the first 30 of 40 rows",
    ]
    with Image.open(tmp_path / "s.png") as image:
        assert image.width < 2600 and image.height < 8200


def test_unknown_distances_are_not_drawn(tmp_path, monkeypatch, images):
    texts = []
    draw = sheet.ImageDraw.ImageDraw.text
    monkeypatch.setattr(sheet.ImageDraw.ImageDraw, "text", lambda *args, **k: (texts.append(args[2]), draw(*args, **k)))
    for value in (0.0, np.nan):
        ranked_sheet(tmp_path / "s.png", *images, Ranking(RANKING.indices, np.full((2, 2), value, np.float32)))
        shown = [text for text in texts if text in ("0.000", "cosine distance")]
        assert (shown != []) == (value == 0)
        texts.clear()


def test_what_cannot_be_opened_is_a_blank_with_its_name(tmp_path, monkeypatch):
    (tmp_path / "drawing.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    (tmp_path / "folder.png").mkdir()

    def leaves():
        raise UserError("path '../x.jpg' is not inside the data folder: give a path relative to that folder")

    sources = [tmp_path / "drawing.jpg", str(tmp_path / "gone.jpg"), tmp_path / "folder.png", leaves]
    written, wrapped = [], sheet._wrapped
    monkeypatch.setattr(sheet, "_wrapped", lambda text, *args: written.append(text) or wrapped(text, *args))
    ranking = Ranking(np.arange(4)[None], np.zeros((1, 4), dtype=np.float32))
    names = ["a/drawing.jpg", "gone.jpg", "folder.png", "../x.jpg"]
    ranked_sheet(tmp_path / "s.png", [Image.new("RGB", (8, 8))], sources, ranking, gallery_titles=names)
    assert [text.split(" ", 1)[0] for text in written] == ["drawing.jpg", "gone.jpg", "folder.png", "x.jpg"]
    assert "no such image" in written[1] and "not an image of a known format" in written[0]
    ranked_sheet(tmp_path / "s.png", [None], sources[1:2], Ranking(np.array([[0]]), np.zeros((1, 1))))
    assert written[-1] == "gone.jpg no such image"


def test_sixteen_bit_pixels_are_scaled_not_clipped(tmp_path):
    deep = Image.fromarray(np.full((64, 32), 1000, dtype=np.uint16))
    for source in (deep, lambda: deep):
        ranked_sheet(tmp_path / "s.png", [deep], [source], Ranking(np.array([[0]]), np.zeros((1, 1))))
        left = sheet.MARGIN + sheet.CROP[0] + 2 * sheet.FRAME + sheet.QUERY_GAP
        with Image.open(tmp_path / "s.png") as image:
            assert max(image.getpixel((left + 50, sheet.HEADER + 100))) < 10


def test_names_are_shown_as_they_are(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(sheet, "_draw_caption", lambda draw, place, lines, **_: shown.append([*filter(None, lines)]))
    one = Image.new("RGB", (8, 16))
    ranking = Ranking(np.array([[0, 1, 2]]), np.array([[0.1, 2.5e-4, 0.3]], dtype=np.float32))
    ids = {"query_person_ids": ["anna"], "gallery_person_ids": ["anna", "bob", "-1"]}
    cameras = {"query_camera_ids": np.array(["cam1"]), "gallery_camera_ids": ["door", "-1", ""]}
    ranked_sheet(tmp_path / "s.png", [one], [one] * 3, ranking, **ids, **cameras, gallery_titles=["a/1", "2", "3"])
    expected = [["query 1", "anna, cam1"], ["0.100", "anna, door", "1"], ["0.000", "bob", "2"], ["0.300", "3"]]
    assert shown == expected
    assert frame_color(tmp_path / "s.png", 0, 1) == ImageColor.getrgb(sheet.HIT)
    assert frame_color(tmp_path / "s.png", 0, 2) == ImageColor.getrgb(sheet.MISS)
    shown.clear()
    near = Ranking(ranking.indices, ranking.distances * 1e-6)
    ranked_sheet(tmp_path / "s.png", [one], [one] * 3, near, gallery_camera_ids=torch.tensor([3, -1, 0]))
    assert shown[1:] == [["0.000000100", "cam 3"], ["0.000000000"], ["0.000000300", "cam 0"]]
    with pytest.raises(UserError, match="person_ids: int64 in the queries"):
        ranked_sheet(tmp_path / "s.png", [one], [one] * 3, ranking, **{**ids, "query_person_ids": [5]})


def test_names_that_no_font_has(tmp_path):
    one = Image.new("RGB", (8, 16))
    names = ["line\nbreak.jpg", os.fsdecode(b"\xff.jpg"), "\u4eba" * 5000]
    ranking = Ranking(np.arange(3)[None], np.zeros((1, 3)))
    ranked_sheet(tmp_path / "s.png", [one], [one] * 3, ranking, query_titles=names[:1], gallery_titles=names)


def test_mistakes_in_a_sheet(tmp_path, images):
    queries, gallery = images
    path = tmp_path / "s.png"
    with pytest.raises(UserError, match="query_images: 1 for 2 queries"):
        ranked_sheet(path, queries[:1], gallery, RANKING)
    with pytest.raises(UserError, match="gallery_person_ids: 2 for 3 gallery images"):
        ranked_sheet(path, queries, gallery, RANKING, query_person_ids=[1, 2], gallery_person_ids=[1, 2])
    with pytest.raises(UserError, match="the ranking names image 2"):
        ranked_sheet(path, queries, gallery[:2], RANKING)
    with pytest.raises(UserError, match=r"missing\.png: not readable as an image"):
        ranked_sheet(path, [tmp_path / "missing.png", None], gallery, RANKING)
    assert not path.exists()
