"""Continuations in the sidecar: resuming, identical captions, provenance, refusals; targets and the kept share."""

import math
import os
import re
import stat

import pytest
from engine_server import MODEL, engine, text_of

from modeling_mllmreid.data.captions import TextRecord, append_records, join_continuations, read_records
from modeling_mllmreid.data.contract import Sample, make_split
from modeling_mllmreid.text import continuations
from modeling_mllmreid.text.continuations import kept_attribute_share, target_text, write_continuations
from modeling_mllmreid.text.endpoint import Endpoint
from modeling_mllmreid.text.generation import generate_texts
from modeling_mllmreid.text.instructions import COMMON_INSTRUCTION
from modeling_mllmreid.text.sidecar import Sidecar
from modeling_mllmreid.utils.errors import UserError
from modeling_mllmreid.utils.outputs import try_lock

SETTINGS = {"instruction": COMMON_INSTRUCTION, "model_name": "tiny", "revision": "abc", "max_new_tokens": 4}


@pytest.fixture
def splits(tmp_path):
    train = [Sample(f"{i}.jpg", i, 1, (" ".join(f"w{i + j}" for j in range(i + 1)), "w7 w8")) for i in range(6)]
    val = [Sample("0.jpg", 9, 1, ("w7 w8",)), Sample("1.jpg", 9, 2), Sample("0.jpg", 9, 1, ("w50 w51",))]
    return {name: make_split(rows, root=tmp_path, source="s") for name, rows in (("train", train), ("val", val))}


@pytest.fixture
def write(mllm, processor, splits, tmp_path):
    def call(name="texts.jsonl", batch_size=3, dataset_splits=splits, **changes):
        settings = {**SETTINGS, **changes}
        return write_continuations(mllm, processor, dataset_splits, tmp_path / name, batch_size=batch_size, **settings)

    return call


@pytest.fixture
def generated(monkeypatch):
    """The prompts that went through the engine, batch by batch."""
    batches = []

    def spy(mllm, tokenizer, prompts, **settings):
        batches.append(prompts)
        return generate_texts(mllm, tokenizer, prompts, **settings)

    monkeypatch.setattr(continuations, "generate_texts", spy)
    return batches


def test_every_caption_gets_its_own_continuation_and_identical_ones_share_it(
    mllm, processor, splits, write, generated, tmp_path
):
    assert write("new/texts.jsonl") == 14
    assert [len(batch) for batch in generated] == [3, 3, 2]  # 8 texts among 14 captions
    records = read_records(tmp_path / "new/texts.jsonl")
    for record in records:
        prompt = processor.text_prompt_ids(record.caption, COMMON_INSTRUCTION)
        written = generate_texts(mllm, processor.tokenizer, [prompt], max_new_tokens=4)
        assert [(record.continuation, record.ids)] == written
        assert record.tokenizer == processor.vocabulary_digest
    provenance = records[0].provenance
    assert (provenance["model"], provenance["revision"], provenance["max_new_tokens"]) == ("tiny", "abc", 4)
    assert provenance["prompt"] == "USER: {caption}\nContinue the following text. ASSISTANT:"
    for name, split in splits.items():
        joined = join_continuations(split, name, records)
        assert [len(texts) for texts in joined["continuation"]] == [len(texts) for texts in split["caption"]]
    assert write("new/texts.jsonl", temperature=0.5, seed=3) == 0  # greedy: neither has a part
    assert len(generated) == 3


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_killed_run_resumes_to_the_same_texts(write, generated, splits, tmp_path, do_sample):
    path = tmp_path / "texts.jsonl"
    write(do_sample=do_sample)
    whole, prompts = path.read_bytes(), sum(generated, [])
    generated.clear()
    lines = whole.splitlines(keepends=True)
    first_batch = sum(len(line) for line in lines[:3])
    for end in (0, first_batch, first_batch + 20):  # nothing, one batch, one batch and a torn line
        path.write_bytes(whole[:end])
        assert write(do_sample=do_sample) == (14 if end == 0 else 11)
        assert path.read_bytes() == whole
    assert sum(generated, []) == prompts + 2 * prompts[3:]


def test_a_kill_between_batches_loses_only_the_batch_at_work(write, monkeypatch, tmp_path):
    calls = []

    def killed(mllm, tokenizer, prompts, **settings):
        calls.append(prompts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate_texts(mllm, tokenizer, prompts, **settings)

    monkeypatch.setattr(continuations, "generate_texts", killed)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert len(read_records(tmp_path / "texts.jsonl")) == 3
    assert write() == 11 and len(read_records(tmp_path / "texts.jsonl")) == 14


def test_a_known_caption_in_another_row_is_not_generated_again(write, generated, splits, tmp_path):
    write(dataset_splits={"train": splits["train"]})
    generated.clear()
    assert write() == 2 and [len(batch) for batch in generated] == [1]
    by_key = {(record.split, record.caption): record.continuation for record in read_records(tmp_path / "texts.jsonl")}
    assert by_key["val", "w7 w8"] == by_key["train", "w7 w8"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"revision": "def"}, "revision 'abc', not 'def'"),
        ({"max_new_tokens": 5}, "max_new_tokens 4, not 5"),
        ({"instruction": "Go on."}, "instruction 'Continue the following text.', not 'Go on.'"),
        ({"do_sample": True}, "do_sample False, not True"),
    ],
)
def test_another_provenance_is_refused_and_the_file_left_alone(write, tmp_path, change, named):
    write()
    whole = (tmp_path / "texts.jsonl").read_bytes()
    with pytest.raises(UserError, match=f"texts.jsonl: holds texts written with {re.escape(named)}: give another file"):
        write(**change)
    assert (tmp_path / "texts.jsonl").read_bytes() == whole


@pytest.mark.parametrize(("change", "named"), [({"temperature": 2.0}, "temperature 0.5"), ({"seed": 4}, "seed 3")])
def test_what_texts_are_drawn_by_is_kept_and_compared(mllm, processor, write, tmp_path, change, named):
    drawn = {"do_sample": True, "temperature": 0.5, "seed": 3}
    write(licence="mit", **drawn)
    provenance = {
        "model": "tiny",
        "revision": "abc",
        "licence": "mit",
        "instruction": COMMON_INSTRUCTION,
        "prompt": "USER: {caption}\nContinue the following text. ASSISTANT:",
        "max_new_tokens": 4,
        "end_of_text": ["</s>"],
        **drawn,
    }
    records = read_records(tmp_path / "texts.jsonl")
    assert all(record.provenance == provenance for record in records)
    # The engine draws by them, batch by batch.
    first = {record.caption: record.continuation for record in records}
    batch = sorted(first, key=lambda caption: len(caption.split()), reverse=True)[:3]
    prompts = [processor.text_prompt_ids(caption, COMMON_INSTRUCTION) for caption in batch]
    written = generate_texts(mllm, processor.tokenizer, prompts, max_new_tokens=4, **drawn)
    assert [first[caption] for caption in batch] == [text for text, _ in written]
    (name,) = change
    with pytest.raises(UserError, match=f"holds texts written with {named}, not {change[name]}: give another file"):
        write(licence="mit", **{**drawn, **change})
    write("other.jsonl", licence="mit", **{**drawn, **change})
    others = [record.continuation for record in read_records(tmp_path / "other.jsonl")]
    assert others != [record.continuation for record in records]
    write("greedy.jsonl", temperature=0.5, seed=3)
    greedy = read_records(tmp_path / "greedy.jsonl")[0].provenance
    assert greedy == {**provenance, "licence": None, "do_sample": False, "temperature": None, "seed": None}


def test_an_image_token_in_a_caption_is_refused_before_anything_is_written(write, generated, tmp_path):
    rows = [Sample("a.jpg", 1, 1, ("w1",)), Sample("b.jpg", 1, 1, ("w2", "w3 <image> w4"))]
    wrong = make_split(rows, root=tmp_path, source="market")
    with pytest.raises(UserError, match=r"caption 1 of b.jpg \(market, train\).*image token '<image>'"):
        write(dataset_splits={"train": wrong})
    assert not (tmp_path / "texts.jsonl").exists() and not generated


def test_a_path_that_cannot_be_written_fails_before_generation(write, generated, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="texts.jsonl: cannot be written"):
        write("file/texts.jsonl")
    assert not generated


FOREIGN = {
    "captions.json": '[{"split": "train", "captions": ["a man"], "file_path": "a.jpg", "id": 1}]',
    "notes.txt": "line\nanother line without an end",
    "other.jsonl": '{"mine": 1}\n',
    "tail.jsonl": '{"source": "m", "split": "train", "file_name": "a.jpg", "caption_index": 0, "caption": "w1",'
    ' "continuation": "w2", "provenance": {}}\nmy own remark',
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_anything_else_keeps_every_byte(write, generated, tmp_path, name):
    (tmp_path / name).write_text(FOREIGN[name])
    with pytest.raises(UserError, match=f"{name}: exists and was not written by this program"):
        write(name)
    assert (tmp_path / name).read_text() == FOREIGN[name] and not generated
    if not FOREIGN[name].endswith("\n"):
        with pytest.raises(UserError, match="ends in a line that is not a record"):
            append_records(tmp_path / name, [])
    assert (tmp_path / name).read_text() == FOREIGN[name]


def test_an_input_is_never_the_output(write, generated, tmp_path):
    (tmp_path / "texts.jsonl").touch()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "texts.jsonl")
    for name, wrong in (("texts.jsonl", "is also an input"), ("link.jsonl", "is a symbolic link")):
        with pytest.raises(UserError, match=wrong):
            write(name, inputs=[tmp_path / "texts.jsonl"])
    assert not generated


def test_two_runs_never_write_one_file_and_nothing_is_left_of_none(write, tmp_path):
    write()
    assert stat.S_IMODE((tmp_path / "texts.jsonl").stat().st_mode) == 0o600
    whole = (tmp_path / "texts.jsonl").read_bytes()
    lock = try_lock(tmp_path / "texts.jsonl")
    with pytest.raises(UserError, match="texts.jsonl: another run writes there"):
        write()
    os.close(lock)
    assert (tmp_path / "texts.jsonl").read_bytes() == whole
    with pytest.raises(KeyError), Sidecar(tmp_path / "new" / "t.jsonl", TextRecord, {}):
        raise KeyError("a fault before the first record")
    assert not (tmp_path / "new").exists()


def test_target_text():
    assert target_text("a b c", "d e", "continuation") == ("a b c", "d e")
    assert target_text("a b c", None, "caption") == ("a b c", "a b c")
    assert target_text("a b c", None, "split") == ("a b", "c")
    assert target_text("a b c d", "e", "split") == ("a b", "c d")
    for arguments, named in (
        (("a b", None, "continuation"), "'a b' has no continuation: run"),
        (("a", None, "split"), "'a' is too short to split"),
        (("a b", "c", "captions"), "'captions' is unknown, nearest is 'caption'"),
    ):
        with pytest.raises(UserError, match=named):
            target_text(*arguments)


def test_kept_attribute_share():
    def words(text):
        return set(text.split()) & {"red", "blue", "coat"}

    captions = ["a red coat", "nothing here", "blue", "red blue coat"]
    assert kept_attribute_share(captions, ["red red shoes", "red", "green", "coat red blue"], words) == pytest.approx(
        (1 / 2 + 0 + 1) / 3
    )
    assert math.isnan(kept_attribute_share(["none"], ["red"], words))


def test_continuations_by_an_engine(processor, splits, tmp_path):
    path = tmp_path / "texts.jsonl"
    first = {"train": splits["train"].select(range(4))}

    def behave(number, body):
        if number == 3:
            return 400, "", {}
        return f"</s>w5 {len(text_of(body))} <ima<image>ge>"

    with engine(behave) as server:
        there = Endpoint(server.url, MODEL, requests_at_once=1)
        with pytest.raises(
            UserError, match=r"refused the request for caption 0 of .*\.jpg \(s, train\): it answered 400"
        ):
            write_continuations(there, processor, first, path, **SETTINGS)
        begun = len(read_records(path))
        assert write_continuations(there, processor, first, path, **SETTINGS) == 8 - begun
    records = read_records(path)
    assert len(records) == 8 and len(server.requests) == 6  # five texts among eight captions, one of them twice
    texts = {record.caption for record in records}
    assert {text_of(body) for body in server.requests} == {f"{text}\n{COMMON_INSTRUCTION}" for text in texts}
    for record in records:
        assert record.continuation.split() == ["w5", str(len(f"{record.caption}\n{COMMON_INSTRUCTION}"))]
        assert (record.ids, record.tokenizer) == (None, None)
        processor.target_ids(record.continuation)  # no special token
    assert records[0].provenance == {
        **{"model": "tiny", "revision": "abc", "licence": None, "instruction": COMMON_INSTRUCTION},
        **{"prompt": "USER: {caption}\nContinue the following text. ASSISTANT:", "max_new_tokens": 4},
        **{"do_sample": False, "temperature": None, "seed": None},
        **{"endpoint": "localhost", "served_model": MODEL, "remote": False},
    }
    assert isinstance(records[0], TextRecord)
