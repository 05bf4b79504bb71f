"""A new model, the export, the audit trail, and pictures."""

import csv
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from modeling_mllmreid.gallery.audit import Audit, query_digest
from modeling_mllmreid.gallery.export import export_rows
from modeling_mllmreid.gallery.filters import Where
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.pictures import check_proportions, openers
from modeling_mllmreid.gallery.reembedding import reembed
from modeling_mllmreid.gallery.rows import CropInfo
from modeling_mllmreid.gallery.unknown_people import gallery_groups
from modeling_mllmreid.utils.errors import UserError


@pytest.mark.parametrize("keep", ["file_name", "thumbnail"])
def test_a_new_model_replaces_all_features(tmp_path, crops, encoder, keep):
    gallery = Gallery.create(tmp_path / "store", encoder, keep=keep)
    images = crops(9)
    gallery.add(images, CropInfo(camera_id=4, person="Ida"))
    old = [row.tobytes() for row in gallery.rows().features]

    class Other(type(encoder)):
        numbers = 3

        def encode(self, images):
            return np.ascontiguousarray(super().encode(images)[:, :3])

    other = Other("other", weights="1" * 64)
    new = reembed(gallery, other)
    assert new.metadata.model == "other" and new.rows().features.shape == (9, 3)
    assert {hit.crop for hit in new.find()} == {CropInfo(camera_id=4, person="Ida")}
    if keep == "file_name":
        assert new.search(images[5], threshold=None).hits[0].file_name == images[5]
    everything = b"".join(file().read() for _, file in new.store.files())
    assert not any(row in everything for row in old)
    with pytest.raises(UserError, match="was made by another model"):
        Gallery(tmp_path / "store", encoder)


def test_a_missing_picture_stops_a_new_model(gallery, crops, encoder):
    images = crops(3)
    gallery.add(images)
    Path(images[1]).unlink()
    before = gallery.store.version
    with pytest.raises(UserError, match=f"1 of 3 image files cannot be opened, the first is {images[1]}"):
        reembed(gallery, type(encoder)("other"))
    assert gallery.store.version == before


def test_groups_need_a_calibration(gallery, crops):
    gallery.add(crops(2))
    with pytest.raises(UserError, match="groups: model colours has no calibration: train it with validation people"):
        gallery_groups(gallery, Where())


def test_exports(gallery, crops, tmp_path):
    images = crops(3)
    gallery.add(
        images, [CropInfo(camera_id=1, time="2026-11-28T09:00+01:00"), CropInfo(source="=1+1"), CropInfo(person="Ida")]
    )
    assert export_rows(gallery, tmp_path / "rows.csv") == 3
    with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as file:
        rows = {row["file_name"]: row for row in csv.DictReader(file)}
    assert rows[images[0]]["time"] == "2026-11-28T08:00:00+00:00" and rows[images[0]]["camera_id"] == "1"
    assert rows[images[1]]["source"] == "'=1+1" and rows[images[1]]["time"] == ""
    assert export_rows(gallery, tmp_path / "rows.json", Where(equal=["person=Ida"])) == 1
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert (row["file_name"], row["person"], row["source"]) == (images[2], "Ida", "")
    export_rows(gallery, tmp_path / "rows.parquet")
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert table.schema.names == gallery.store.schema.names
    np.testing.assert_array_equal(np.stack(table["feature"].to_numpy()), gallery.rows().features)
    with pytest.raises(UserError, match="rows.csv: exists: move it away or give another path"):
        export_rows(gallery, tmp_path / "rows.csv")
    with pytest.raises(UserError, match=r"ends in none of \.csv, \.json, \.parquet"):
        export_rows(gallery, tmp_path / "rows.xlsx")


def test_the_audit_trail(tmp_path, monkeypatch):
    audit = Audit(tmp_path / "audit", days=2)
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit/notes.jsonl").write_text("mine")
    for day in (1, 2, 3, 4):
        monkeypatch.setattr(
            "modeling_mllmreid.gallery.audit.utc_now", lambda day=day: datetime(2026, 11, day, 12, tzinfo=UTC)
        )
        digest = query_digest([b"photo"])
        audit.write("search", query=digest, where=Where(cameras=[day]), results=7, who="ida")
    lines = list(audit.lines())
    assert [line["time"] for line in lines] == [f"2026-11-0{day}T12:00:00+00:00" for day in (2, 3, 4)]
    assert lines[-1] == {
        "time": "2026-11-04T12:00:00+00:00",
        "who": "ida",
        "action": "search",
        "query": digest,
        "where": "camera_id in 4",
        "results": 7,
    }
    assert (tmp_path / "audit/notes.jsonl").read_text() == "mine"
    assert oct((tmp_path / "audit/2026-11-04.jsonl").stat().st_mode)[-3:] == "600"
    assert query_digest([b"a", b"b"]) != query_digest([b"ab"]) and len(digest) == 64
    with pytest.raises(UserError, match="audit_days 0"):
        Audit(tmp_path, days=0)


def test_an_audit_trail_takes_any_retention_and_any_text(tmp_path):
    audit = Audit(tmp_path / "audit", days=10_000_000)
    audit.write("search", where=Where(equal=["person=one\u2028two\x85"]), results=0, who="ida")
    audit.write("search", results=1, who="ida")
    assert [line["where"] for line in audit.lines()] == ["person=one\u2028two\x85", None]


@pytest.mark.parametrize("keep", ["file_name", "thumbnail"])
def test_pictures(tmp_path, crops, encoder, keep):
    gallery = Gallery.create(tmp_path / "store", encoder, keep=keep)
    gallery.add(crops(2))
    hits = gallery.find()
    pictures = [open_picture() for open_picture in openers(gallery, hits)]
    assert [(picture.mode, picture.size) for picture in pictures] == [("RGB", (32, 64))] * 2


def test_scenes_are_no_crops(tmp_path):
    Image.new("RGB", (192, 108)).save(tmp_path / "scene.png")
    with pytest.raises(UserError, match=r"scene\.png: is 192 x 108 pixels, .* \(a detector is another tool\)"):
        check_proportions(tmp_path / "scene.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (192, 108)).save(tmp_path / "turned.jpg", exif=turned)
    check_proportions(tmp_path / "turned.jpg")
    check_proportions(Image.new("RGB", (60, 60)))
    check_proportions(tmp_path / "missing.jpg")  # reported where it is opened
