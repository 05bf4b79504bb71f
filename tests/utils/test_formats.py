"""JSON from outside: every fault is one line with the file, the field and what was expected."""

import json
import os

import pytest

from modeling_mllmreid.data.captions import read_records
from modeling_mllmreid.utils.data_formats import (
    CaptionEntryFields,
    SplitsFile,
    TorchreidImageSplit,
    TorchreidPersonSplit,
)
from modeling_mllmreid.utils.errors import UserError
from modeling_mllmreid.utils.json_files import check_content, parse_json, read_file, read_json
from modeling_mllmreid.utils.report_formats import BY_NAME, MetricsFile, ThresholdsFile

THRESHOLD = {
    "distance": 0.5,
    "low": 0.4,
    "high": 0.6,
    "fpir": 0.1,
    "tpir": 0.8,
    "searches": 20,
    "people": 5,
    "gallery": 9,
}


def with_threshold(**changes) -> bytes:
    return json.dumps({"llm": {**THRESHOLD, **changes}}).encode()


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"", SplitsFile, r"f.json: not JSON \(EOF"),
        (b"[" * 100_000, SplitsFile, r"f.json: not JSON \(recursion limit"),
        (b"[1e999999]", list[TorchreidImageSplit], r"f.json: field \[0\]: "),
        (b"\xff\xfe{}", SplitsFile, r"f.json: not UTF-8 text \(byte 0\)"),
        (b"null", SplitsFile, "f.json: the whole content: input should be an object, not None"),
        (b'{"train": [], "query": []}', SplitsFile, "f.json: field gallery: field required"),
        (
            b'{"train": [7], "query": [], "gallery": []}',
            SplitsFile,
            r"field train\[0\]: input should be a valid str",
        ),
        (with_threshold(distance=float("nan")), ThresholdsFile, "field llm.distance: input should be a finite number"),
        (with_threshold(high=float("inf")), ThresholdsFile, "field llm.high: input should be a finite number"),
        (with_threshold(low=0.7), ThresholdsFile, "field llm: value error, low 0.7 is above high 0.6"),
        (
            with_threshold(distance=-0.1),
            ThresholdsFile,
            "field llm.distance: input should be greater than or equal",
        ),
        (with_threshold(tpir="0.5"), ThresholdsFile, "field llm.tpir: input should be a valid number"),
        (with_threshold(searches=True), ThresholdsFile, "field llm.searches: input should be a valid integer"),
        (b'[{"train": [], "test": [1' + b"0" * 30 + b"]}]", list[TorchreidPersonSplit], r"field \[0\].test\[0\]: "),
        (
            b'[{"split": "dev", "captions": [], "id": 1}]',
            list[CaptionEntryFields],
            r"field \[0\].split: .*'train', ",
        ),
        (b'[{"split": "val", "captions": [], "id": "1"}]', list[CaptionEntryFields], r"field \[0\].id: .*not '1'"),
        (b'{"metrics": 3}', MetricsFile, r"field model: field required \(and \d+ more faults\)"),
    ],
)
def test_each_fault_is_one_line(content, kind, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_json(content, kind, where="f.json")
    text = str(caught.value)
    assert text.startswith("f.json: ") and text.endswith(": restore the file") or "save it as UTF-8" in text
    assert "\n" not in text and len(text) < 400


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path, tmp_path / "none.json", "a\0b.json"):
        with pytest.raises(UserError, match="cannot be read|is not a path"):
            read_json(path, SplitsFile)
    # Reading one of these would never end.
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in ("/dev/zero", tmp_path / "pipe.jsonl"):
        for read in (lambda path: read_json(path, SplitsFile), read_records, read_file):
            with pytest.raises(UserError, match="is a pipe or a device, not a file"):
                read(path)


def test_good_content_is_kept_with_what_is_not_named(tmp_path):
    content = {"train": ["a"], "query": ["b"], "gallery": ["c"], "seed": 3}
    (tmp_path / "splits.json").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    found = read_json(tmp_path / "splits.json", SplitsFile)
    assert found.train == ["a"] and found.val == []
    assert check_content({"llm": THRESHOLD}, ThresholdsFile, where="here")["llm"].distance == 0.5
    with pytest.raises(UserError, match="^here: field llm: input should be"):
        check_content({"llm": None}, ThresholdsFile, where="here")


@pytest.mark.parametrize("name", BY_NAME)
def test_no_report_takes_arbitrary_content(name):
    for content in (b"[]", b"7", b'"text"', b"null", b'{"mine": 1}'):
        with pytest.raises(UserError):
            parse_json(content, BY_NAME[name], where=name)
