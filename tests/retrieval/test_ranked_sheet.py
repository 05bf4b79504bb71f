"""Ranked sheets: frames say hit or miss, and any way to give an image works."""

import numpy as np
import pytest
from PIL import Image, ImageColor

from modeling_mllmreid.errors import UserError
from modeling_mllmreid.retrieval import sheet
from modeling_mllmreid.retrieval.ranking import Ranking
from modeling_mllmreid.retrieval.sheet import ranked_sheet

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
