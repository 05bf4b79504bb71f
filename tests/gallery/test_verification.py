"""A verified search on a tiny model that was trained with `pair_weight`: order, probabilities, pictures, mistakes."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pair_gallery import FUSION, copy_gallery, make_pair_gallery

from modeling_mllmreid.commands import gallery as gallery_command
from modeling_mllmreid.evaluation.pair_scores import score_shortlist
from modeling_mllmreid.gallery import verification
from modeling_mllmreid.gallery.audit import Audit
from modeling_mllmreid.gallery.encoder import ModelEncoder
from modeling_mllmreid.gallery.filters import Where
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.indexing import build_index
from modeling_mllmreid.gallery.results import Verification, probability_note
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.utils.errors import NotFound, UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return make_pair_gallery(tmp_path_factory.mktemp("verified"))


@pytest.fixture
def copied(trained, tmp_path):
    return copy_gallery(trained, tmp_path)


def by_hand(trained, photos, hits, top, rows=None):
    """The ids in the verified order, and the probabilities of the first ones, by the functions of the evaluation."""
    places = np.tile(np.arange(top), (len(photos), 1))
    names = [hit.file_name for hit in hits[:top]]
    model, processor = trained.encoder.model, trained.encoder.processor
    scores, _ = score_shortlist(model, processor, photos, names, places, progress=False)
    distances = np.array([hit.distance for hit in hits[:top]])
    odds = FUSION.log_odds(distances, scores.mean(axis=0, dtype=np.float64), rows or len(hits))
    order = (-odds).argsort(kind="stable")
    ids = [hits[place].id for place in order]
    return ids + [hit.id for hit in hits[top:]], (1 / (1 + np.exp(-odds[order]))).tolist()


@pytest.mark.parametrize(("top", "photos"), [(1, 1), (7, 1), (7, 3), (100, 1)])
def test_the_first_rows_have_the_order_of_the_fused_log_odds(trained, top, photos):
    query = trained.queries[:photos]
    plain = trained.gallery.search(query, 12)
    found = trained.gallery.search(query, 12, verify_top=top)
    every = trained.gallery.search(query, 1000).hits
    ids, probabilities = by_hand(trained, query, every, min(top, len(every)))
    assert [hit.id for hit in found.hits] == ids[:12]
    stated = [hit.probability for hit in found.hits]
    assert stated[:top] == pytest.approx(probabilities[:12], abs=1e-5) and set(stated[top:]) <= {None}
    assert (top == 1) == (ids[:12] == [hit.id for hit in plain.hits])
    distances = {hit.id: (hit.distance, hit.beyond) for hit in every}
    assert all((hit.distance, hit.beyond) == distances[hit.id] for hit in found.hits)
    made = found.verification
    assert (made.rows, made.unopened, made.top, made.gallery) == (min(top, len(every)), [], 20, len(every))
    assert plain.verification is None and {hit.probability for hit in plain.hits} == {None}


def test_rows_beyond_the_list_are_verified_and_conditions_hold(trained):
    where = Where(cameras=[1])
    every = trained.gallery.search(trained.queries[0], 1000, where=where).hits
    ids, _ = by_hand(trained, trained.queries[:1], every, 5)
    found = trained.gallery.search(trained.queries[0], 2, where=where, verify_top=5)
    assert [hit.id for hit in found.hits] == ids[:2] != [hit.id for hit in every[:2]]
    assert {hit.crop.camera_id for hit in found.hits} == {1} and found.verification.rows == 5


def test_the_rows_that_an_index_finds_are_verified(trained, copied):
    # An index needs many rows: others, far away, whose pictures are not read.
    near = copied.rows().features
    far = np.random.default_rng(0).normal(size=(300, near.shape[1])).astype(np.float32) - 9 * near.mean(0)
    others = [{"id": f"{number:064x}", "file_name": f"/crops/{number}.png"} for number in range(300)]
    copied.add_features(far, others)
    build_index(copied, recall=1.0)
    exact = copied.search(trained.queries[0], 6, verify_top=4)
    found = copied.search(trained.queries[0], 6, verify_top=4, approximate=True)
    assert [hit.id for hit in found.hits] == [hit.id for hit in exact.hits]
    assert found.verification == exact.verification == Verification(4, [], 20, 312)


def test_no_row_meets_the_conditions(trained):
    found = trained.gallery.search(trained.queries[0], where=Where(cameras=[9]), verify_top=5)
    assert found.hits == [] and (found.verification.rows, found.verification.unopened) == (0, [])


def test_nobody_depends_on_the_distances_alone(trained):
    for limit in (0.0, 2.0, None):
        options = {"threshold": limit, "where": Where(cameras=[0])}
        plain = trained.gallery.search(trained.queries[0], 1000, **options)
        assert trained.gallery.search(trained.queries[0], 1000, verify_top=5, **options).nobody == plain.nobody


def test_a_row_as_query_is_its_picture(trained):
    row = trained.gallery.search(trained.queries[0], 1).hits[0]
    every = trained.gallery.search(id=row.id, k=1000).hits
    found = trained.gallery.search(id=row.id, verify_top=6)
    assert [hit.id for hit in found.hits] == by_hand(trained, [row.file_name], every, 6)[0][:10]
    assert row.id not in [hit.id for hit in found.hits]


def test_of_equal_log_odds_the_nearer_row_is_first(trained, monkeypatch):
    flat = replace(FUSION, distance=0.0)
    monkeypatch.setattr(trained.encoder, "pair_fusion", lambda: flat)
    monkeypatch.setattr(
        trained.encoder, "pair_scores", lambda photos, pictures: np.array([[n // 2 % 2 for n in range(len(pictures))]])
    )
    plain = [hit.id for hit in trained.gallery.search(trained.queries[0], 6).hits]
    found = [hit.id for hit in trained.gallery.search(trained.queries[0], 6, verify_top=6).hits]
    assert found == [plain[place] for place in (2, 3, 0, 1, 4, 5)]


def test_pictures_that_cannot_be_opened_follow_the_others(trained, copied):
    query = trained.queries[0]
    plain = copied.search(query, 8).hits
    Path(plain[1].file_name).unlink()
    Path(plain[4].file_name).write_bytes(Path(plain[5].file_name).read_bytes())
    Path(plain[7].file_name).write_bytes(b"broken")  # after the verified rows
    found = copied.search(query, 8, verify_top=6)
    ids, probabilities = by_hand(trained, [query], [plain[place] for place in (0, 2, 3, 5)], 4, len(copied.rows()))
    lost = [plain[1].id, plain[4].id]
    assert [hit.id for hit in found.hits] == [*ids, *lost, plain[6].id, plain[7].id]
    assert [hit.probability for hit in found.hits] == pytest.approx([*probabilities, *[None] * 4], abs=1e-5)
    assert found.hits[4] == plain[1]
    assert (found.verification.rows, found.verification.unopened) == (4, lost)
    for hit in plain:
        Path(hit.file_name).unlink(missing_ok=True)
    found = copied.search(query, 6, verify_top=6)
    assert found.hits == plain[:6] and found.verification.rows == 0
    with pytest.raises(NotFound, match=f"id {plain[0].id[:16]}: its image file is missing, broken or not the one that"):
        copied.search(id=plain[0].id, verify_top=6)


def test_small_copies_are_verified(trained, tmp_path):
    gallery = Gallery.create(tmp_path / "gallery", trained.encoder, keep="thumbnail")
    gallery.add([hit.file_name for hit in trained.gallery.find(Where())])
    query = trained.queries[0]
    found = gallery.search(query, 10, verify_top=10)
    assert found.verification.rows == 10 and None not in {hit.probability for hit in found.hits}
    stored = gallery.search(id=found.hits[0].id, verify_top=3)
    assert stored.verification.rows == 3


def test_few_pictures_are_decoded_at_once(trained, monkeypatch):
    whole = trained.gallery.search(trained.queries[0], 7, verify_top=7)
    sizes, score = [], trained.encoder.pair_scores

    def scores(photos, pictures):
        sizes.append([picture.width * picture.height for picture in pictures])
        return score(photos, pictures)

    monkeypatch.setattr(trained.encoder, "pair_scores", scores)
    monkeypatch.setattr(verification, "PIXELS", 3 * 64 * 128)
    found = trained.gallery.search(trained.queries[0], 7, verify_top=7)
    assert [len(part) for part in sizes] == [3, 3, 1] and all(sum(part) <= 3 * 64 * 128 for part in sizes)
    assert [hit.id for hit in found.hits] == [hit.id for hit in whole.hits]
    for one, other in zip(found.hits, whole.hits, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"verify_top": -1}, "verify_top -1: give 1 or more, or 0 for none"),
        ({"verify_top": 5, "rerank": True}, "verify_top: and rerank order the same rows: leave one of them out"),
        ({"verify_top": 5, "query": None, "words": "red"}, "verify_top: compares photos, and the query has none: give"),
        ({"verify_top": 5, "query": np.zeros(32)}, "verify_top: compares photos, and the query has none: give a photo"),
    ],
)
def test_queries_that_cannot_be_verified(trained, options, message):
    with pytest.raises(UserError, match=message):
        trained.gallery.search(**{"query": trained.queries[0], **options})


def test_models_that_cannot_verify(trained, tmp_path):
    def refused(encoder):
        with pytest.raises(UserError) as error:
            Gallery.create(tmp_path / "gallery", encoder).search(trained.queries[0], verify_top=5)
        shutil.rmtree(tmp_path / "gallery")
        assert "\n" not in str(error.value)
        return str(error.value)

    small = refused("pedestrians-small")
    assert "verify_top: model pedestrians-small has no language model, which compares pairs: leave it out, or" in small
    assert "compute the features again with a checkpoint that was trained with pair_weight (gallery reembed)" in small
    flipped = refused(ModelEncoder(ModelArguments(str(trained.model)), flip_test=True))
    assert "verify_top: the fusion holds for the settings of the training, and the gallery has others (flip_test)" in (
        flipped
    )
    vision = refused(ModelEncoder(ModelArguments(str(trained.model)), {"test_feature": "vision"}))
    assert "has no fusion of pair scores for the feature 'vision': train with pair_weight" in vision
    other = shutil.copytree(trained.model, tmp_path / "other")
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"pair_question_ids"', '"unused"'))
    assert "has no question about pairs: train it with pair_weight, or leave it out" in refused(str(other))


def test_the_command(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    place = ["search", "--gallery", str(trained.root / "gallery"), "--audit", "audit", "--top_k", "6"]
    query = ["--query", trained.queries[0]]
    found = trained.gallery.search(trained.queries[0], 6, verify_top=4)
    gallery_command.main([*place, *query, "--verify_top", "4", "--output", "sheet.png"])
    lines = capsys.readouterr().out.splitlines()
    for hit, line in zip(found.hits, lines[:6], strict=True):
        stated = "-" if hit.probability is None else f"{hit.probability:.1%}"
        assert line.split()[2:4] == [stated, hit.file_name]
    assert f"4 rows verified, most probable first; the probability {probability_note(20, found.searched)}" in lines
    gallery_command.main([*place, *query])
    assert "%" not in capsys.readouterr().out
    first, second = Audit("audit").lines()
    assert first["verify_top"] == 4 and "verify_top" not in second and first["query"] == second["query"]
    with pytest.raises(UserError, match="verify_top: and rerank order the same rows"):
        gallery_command.main([*place, *query, "--verify_top", "4", "--rerank", "true"])
    with pytest.raises(UserError, match="verify_top"):
        gallery_command.main([*place, *query, "--verify_top", "-1"])


def test_the_command_names_rows_that_are_not_verified(trained, copied, capsys):
    hits = copied.search(trained.queries[0], 3).hits
    Path(hits[1].file_name).unlink()
    flags = ["--query", trained.queries[0], "--verify_top", "3"]
    gallery_command.main(["search", "--gallery", copied.store.place, *flags])
    printed = capsys.readouterr().out
    assert (
        f"not verified: 1 row whose picture is missing, broken or another one: {hits[1].id[:16]}" in printed
        and "2 rows verified, most probable first; the probability holds" in printed
    )
    gallery_command.main(["search", "--gallery", copied.store.place, *flags, "--cameras", "77"])
    assert "0 rows verified\n" in capsys.readouterr().out
