"""The sidecar files: incomplete lines, resuming, joining, outdated captions."""

import pytest

from modeling_mllmreid.data.captions import (
    CaptionRecord,
    TextKey,
    TextRecord,
    append_records,
    join_captions,
    join_continuations,
    missing_captions,
    read_records,
)
from modeling_mllmreid.data.contract import Sample, make_split
from modeling_mllmreid.utils.errors import UserError

PROVENANCE = {"model": "tiny", "revision": "abc", "instruction": "Continue.", "settings": {"max_new_tokens": 4}}


def record(file_name, index, caption, continuation=None, split="train"):
    text = f"more of {caption}" if continuation is None else continuation
    return TextRecord("set", split, file_name, index, caption, text, PROVENANCE)


@pytest.fixture
def train(tmp_path):
    rows = [Sample("a.jpg", 1, 1, ("red", "blue")), Sample("b.jpg", 1, 2), Sample("c.jpg", 2, 1, ("grün\u2028\n",))]
    return make_split(rows, root=tmp_path, source="set")


RECORDS = [record("c.jpg", 0, "grün\u2028\n"), record("a.jpg", 1, "blue"), record("a.jpg", 0, "red")]


def test_round_trip_and_incomplete_last_line(tmp_path):
    path = tmp_path / "texts.jsonl"
    append_records(path, RECORDS[:1])
    append_records(path, RECORDS[1:])
    assert read_records(path) == RECORDS
    whole = path.read_bytes()
    last_start = whole[:-1].rfind(b"\n") + 1
    for end in (last_start, last_start + 5, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert read_records(path) == RECORDS[:2]
        append_records(path, RECORDS[2:])
        assert path.read_bytes() == whole
    path.write_bytes(whole[:7])
    assert read_records(path) == []
    append_records(path, RECORDS)
    assert path.read_bytes() == whole


def test_wrong_lines(tmp_path):
    path = tmp_path / "texts.jsonl"
    with pytest.raises(UserError, match="texts.jsonl: cannot be read"):
        read_records(path)
    append_records(path, RECORDS)
    whole = path.read_text()
    for wrong in (
        '{"source": \n',
        '{"source": "set"}\n',
        "7\n",
        whole.splitlines()[0].replace(": 0,", ': "0",') + "\n",
    ):
        path.write_text(whole + wrong + whole)
        with pytest.raises(UserError, match="texts.jsonl: line 4 is not a record: .*: remove the line"):
            read_records(path)
    path.write_text(whole + whole)
    assert read_records(path) == RECORDS
    append_records(path, [record("a.jpg", 0, "red", "another")])
    with pytest.raises(UserError, match=r"line 7 repeats caption 0 of a.jpg \(set, train\) with another text"):
        read_records(path)


def test_join_matches_continuations_to_captions(train):
    joined = join_continuations(train, "train", RECORDS)
    assert joined["continuation"][:] == [["more of red", "more of blue"], [], ["more of grün\u2028\n"]]
    assert joined.features == train.features and joined.column_names == train.column_names
    assert join_continuations(train, "query", RECORDS) is train


def test_missing_captions_are_the_rest_of_a_resumed_run(train):
    left = missing_captions(train, "train", RECORDS[1:2])
    assert left == [(TextKey("set", "train", "a.jpg", 0), "red"), (TextKey("set", "train", "c.jpg", 0), "grün\u2028\n")]
    assert missing_captions(train, "train", RECORDS) == []
    assert len(missing_captions(train, "val", RECORDS)) == 3
    with pytest.raises(UserError, match="2 of 3 captions have no continuation, first caption 0 of a.jpg"):
        join_continuations(train, "train", RECORDS[1:2])


@pytest.mark.parametrize("use", [join_continuations, missing_captions])
def test_changed_caption_is_outdated(train, use):
    with pytest.raises(
        UserError, match=r"caption 1 of a.jpg \(set, train\) is outdated, its caption was 'green'.* 'blue'"
    ):
        use(train, "train", [RECORDS[0], record("a.jpg", 1, "green"), RECORDS[2]])


def test_caption_index_continues_over_rows_of_one_image(tmp_path):
    rows = [
        Sample("a.jpg", 1, captions=("red",)),
        Sample("b.jpg", 1, captions=("tall",)),
        Sample("a.jpg", 1, captions=("blue",)),
    ]
    query = make_split(rows, root=tmp_path, source="set")
    keys = [key[2:] for key, _ in missing_captions(query, "query", [])]
    assert keys == [("a.jpg", 0), ("b.jpg", 0), ("a.jpg", 1)]


def test_generated_captions_are_joined_in_order(tmp_path):
    rows = [Sample("a.jpg", 1), Sample("b.jpg", 1, captions=("tall",)), Sample("c.jpg", 1)]
    train = make_split(rows, root=tmp_path, source="set")

    def written(file_name, index, caption, split="train", source="set"):
        return CaptionRecord(source, split, file_name, index, caption, {})

    records = [written("a.jpg", 1, "second"), written("a.jpg", 0, "first")]
    records += [
        written("c.jpg", 0, "of another split", split="query"),
        written("c.jpg", 0, "of another set", source="x"),
    ]
    joined = join_captions(train, "train", records)
    assert joined["caption"][:] == [["first", "second"], ["tall"], []]
    assert joined.features == train.features and joined.column_names == train.column_names
    assert joined["file_name"][:] == train["file_name"][:]
    assert join_captions(train, "query", records)["caption"][2] == ["of another split"]
    with pytest.raises(UserError, match=r"b.jpg \(set, train\) has captions already: leave the generated ones out"):
        join_captions(train, "train", [written("b.jpg", 0, "short")])
