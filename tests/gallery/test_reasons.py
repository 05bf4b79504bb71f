"""Reasons in searches and comparisons: the model's texts about the query and the rows, mistakes, answers."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_training import train_tiny, world_of

from modeling_mllmreid.commands import gallery as gallery_command
from modeling_mllmreid.data.images import open_image
from modeling_mllmreid.gallery.audit import Audit
from modeling_mllmreid.gallery.encoder import ModelEncoder
from modeling_mllmreid.gallery.filters import Where
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.reasons import reason_lines, reasons
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.serving.service import GalleryService
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.text.captioning import describe_crops
from modeling_mllmreid.text.reasons import NOTE, compare_descriptions
from modeling_mllmreid.utils.errors import NotFound, UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that learned to write a little, and a gallery of copies that tests may change."""
    root = tmp_path_factory.mktemp("reasons")
    write_pedestrians(root / "people", train_identities=8, test_identities=4, images_per_camera=2, cameras=2)
    train_tiny(root, world_of(root / "people"), max_steps=8)
    images = [str(image) for image in sorted((root / "people/bounding_box_test").glob("0*.jpg"))]
    queries = [str(image) for image in sorted((root / "people/query").glob("*.jpg"))]
    encoder = ModelEncoder(ModelArguments(str(root / "run")))
    gallery = Gallery.create(root / "gallery", encoder)
    gallery.add(images)
    return SimpleNamespace(root=root, encoder=encoder, gallery=gallery, queries=queries)


def texts_of(trained, *paths):
    return describe_crops(trained.encoder.model, trained.encoder.processor, [open_image(path) for path in paths])


def test_reasons_compare_the_texts_of_query_and_rows(trained):
    query = trained.queries[0]
    hits = trained.gallery.search(query, 3).hits
    own, *others = texts_of(trained, query, *(hit.file_name for hit in hits))
    assert own and len(set(others)) > 1
    expected = [compare_descriptions(own, other) for other in others]
    assert reasons(trained.gallery, hits, query) == expected
    # Of several photos the first one; of a row its picture.
    assert reasons(trained.gallery, hits, [query, trained.queries[1]]) == expected
    by_row = reasons(trained.gallery, hits[1:], None, hits[0].id)
    assert by_row == [compare_descriptions(others[0], other) for other in others[1:]]
    assert reasons(trained.gallery, [], query) == []


def test_a_description_does_not_depend_on_the_other_crop(trained):
    both = texts_of(trained, *trained.queries[:2])
    assert both == [*texts_of(trained, trained.queries[0]), *texts_of(trained, trained.queries[1])]


def test_the_command_prints_them(trained, capsys):
    query = trained.queries[0]
    hits = trained.gallery.search(query, 4).hits
    gallery_command.search(
        ["--gallery", str(trained.root / "gallery"), "--query", query, "--top_k", "4", "--reasons", "2"]
    )
    printed = capsys.readouterr().out.splitlines()
    lines = reason_lines(reasons(trained.gallery, hits[:2], query))
    assert printed[-len(lines) :] == lines and lines[0] == f"reasons ({NOTE})"
    assert [line[:4] for line in lines[1:] if line[:4].strip()] == ["   1", "   2"]
    gallery_command.search(["--gallery", str(trained.root / "gallery"), "--query", query, "--top_k", "4"])
    assert NOTE not in capsys.readouterr().out


def test_a_row_without_its_picture_has_no_reason(trained, tmp_path):
    gallery = Gallery.create(tmp_path / "gallery", trained.encoder)
    copies = [Path(tmp_path, Path(query).name) for query in trained.queries[:3]]
    for copy, query in zip(copies, trained.queries[:3], strict=True):
        copy.write_bytes(Path(query).read_bytes())
    gallery.add([str(copy) for copy in copies])
    hits = gallery.search(trained.queries[0], 3).hits
    Path(hits[1].file_name).unlink()
    made = reasons(gallery, hits, trained.queries[0])
    assert made[1] is None and made[0] is not None and made[2] is not None
    assert "   2  its picture is missing, broken or not the one that was added" in reason_lines(made)
    with pytest.raises(NotFound, match="and reasons compares it: restore it, give a photo, or leave out reasons"):
        reasons(gallery, hits, None, hits[1].id)


def test_queries_without_a_photo_are_refused(trained):
    hits = trained.gallery.find(Where())
    for query in (None, np.zeros(32)):
        with pytest.raises(UserError, match="^reasons: compares photos, and the query has none: give a photo or an id"):
            reasons(trained.gallery, hits, query)
    with pytest.raises(UserError, match="^reasons: compares photos"):
        gallery_command.search(["--gallery", str(trained.root / "gallery"), "--words", "red", "--reasons", "1"])


def test_a_model_without_a_language_model_is_refused(trained, tmp_path):
    encoder = ModelEncoder(ModelArguments("pedestrians-small"))
    gallery = Gallery.create(tmp_path / "gallery", encoder)
    gallery.add(trained.queries[:2])
    with pytest.raises(UserError) as refused:
        gallery_command.search(
            ["--gallery", str(tmp_path / "gallery"), "--query", trained.queries[2], "--reasons", "1"]
        )
    assert str(refused.value) == (
        "reasons: model pedestrians-small has no language model, which describes crops: leave it out, or compute the "
        "features again with a multimodal LLM (gallery reembed)"
    )
    assert not GalleryService(gallery, Audit(tmp_path / "audit")).describes()


def test_the_end_point(trained, tmp_path):
    from served import client_of, upload  # it skips the test without the extra

    from modeling_mllmreid.serving.server import build_app

    service = GalleryService(trained.gallery, Audit(tmp_path / "audit"))
    client = client_of(build_app(service))
    one, other = trained.queries[:2]
    expected = compare_descriptions(*texts_of(trained, one, other))
    answer = client.post("/api/compare", files=upload(one, other), data={"reasons": True}).json()
    assert answer["reason"]["first"] == expected.first and tuple(answer["reason"]["shared"]) == expected.shared
    assert client.post("/api/compare", files=upload(one, other)).json()["reason"] is None
    assert (
        service.describes()
        and client.post("/api/compare", files=upload(one), data={"reasons": True}).status_code == 400
    )
