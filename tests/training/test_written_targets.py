"""Targets are the ids that the language model wrote: of unequal lengths, with its end-of-text token."""

import logging

import pytest
import torch
from datasets import Dataset

from modeling_mllmreid.data.captions import TextRecord, append_records, join_continuations, read_records
from modeling_mllmreid.data.contract import FEATURES, with_contract_columns
from modeling_mllmreid.research.ablation.controls import permute_captions
from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.training.batches import TrainCollator, TrainDataset
from modeling_mllmreid.training.grad_cache import cached_backward

CAPTIONS = ["a man with a red shirt .", "a woman in a long green coat .", "a person with white shoes ."]
TEXTS = ["he walks .", "she has long hair", "a bag ."]


@pytest.fixture
def split():
    """Three images of three people, with a caption each."""
    columns = {
        "image": [f"{name}.jpg" for name in "abc"],
        "person_id": [1, 2, 3],
        "camera_id": [1, 1, 1],
        "caption": [[caption] for caption in CAPTIONS],
        "continuation": [[], [], []],
        "source": ["s"] * 3,
        "file_name": [f"{name}.jpg" for name in "abc"],
    }
    return Dataset.from_dict(columns, features=FEATURES)


@pytest.fixture
def records(tiny_processor):
    """The ids are those of the texts, and the end-of-text id."""
    end = tiny_processor.tokenizer.convert_tokens_to_ids("</s>")
    ids = [[*tiny_processor.target_ids(text), end] for text in TEXTS]
    digest = tiny_processor.vocabulary_digest
    return [
        TextRecord("s", "train", f"{name}.jpg", 0, caption, text, {}, written, digest)
        for name, caption, text, written in zip("abc", CAPTIONS, TEXTS, ids, strict=True)
    ]


@pytest.fixture
def targets(split, tiny_processor, monkeypatch):
    """targets(records, **batch arguments) -> the target of each image."""

    def make(records, *, changed=lambda joined: joined, **batch):
        joined = changed(join_continuations(split, "train", records))
        samples = TrainDataset(joined, tiny_processor, BatchArguments(**batch), seed=0, language=True)
        return [target for ((_, target),) in samples.texts]

    return make


def test_the_ids_that_were_written_are_the_targets(records, targets, tiny_processor, tmp_path, caplog):
    append_records(tmp_path / "texts.jsonl", records)
    read = read_records(tmp_path / "texts.jsonl")
    assert read == records
    with caplog.at_level(logging.WARNING):
        assert targets(read) == [record.ids for record in records]
        assert [len(ids) for ids in targets(read, max_target_tokens=4)] == [4, 4, 3 + 1]
        # Other targets have their own ids.
        assert targets(read, target="caption") == [tiny_processor.target_ids(caption) for caption in CAPTIONS]
    assert not caplog.records


def test_files_without_ids_are_read(records, targets, tiny_processor, tmp_path, caplog):
    """As earlier versions wrote them."""
    lines = "".join(
        f'{{"source": "s", "split": "train", "file_name": "{record.file_name}", "caption_index": 0, '
        f'"caption": "{record.caption}", "continuation": "{record.continuation}", "provenance": {{}}}}\n'
        for record in records
    )
    (tmp_path / "old.jsonl").write_text(lines)
    old = read_records(tmp_path / "old.jsonl")
    assert [(record.ids, record.tokenizer) for record in old] == [(None, None)] * 3
    assert targets(old) == [tiny_processor.target_ids(text) for text in TEXTS]
    append_records(tmp_path / "again.jsonl", old)
    assert (tmp_path / "again.jsonl").read_text() == lines
    # A file with both kinds.
    mixed = [records[0], *old[1:]]
    assert targets(mixed) == [records[0].ids, *map(tiny_processor.target_ids, TEXTS[1:])]
    assert not caplog.records


def other_text(joined):
    """The texts of the next image, without their ids."""
    moved = [*joined["continuation"][1:], joined["continuation"][0]]
    return joined.remove_columns("continuation").add_column(
        "continuation", moved, feature=joined.features["continuation"]
    )


CAUSES = ["another tokenizer", "another text", "no token", "a special token"]


@pytest.mark.parametrize("cause", CAUSES)
def test_ids_that_do_not_fit_are_not_used(records, targets, tiny_processor, cause, caplog):
    changes = {
        "another tokenizer": {"tokenizer": "0" * 16},
        "another text": {},
        "no token": {"ids": [10**6, 7]},
        "a special token": {"ids": [tiny_processor.image_token_id, *records[0].ids]},
    }[cause]
    changed = [TextRecord(**{**vars(record), **changes}) for record in records]
    texts = TEXTS if cause != "another text" else [*TEXTS[1:], TEXTS[0]]
    with caplog.at_level(logging.WARNING):
        options = {"changed": other_text} if cause == "another text" else {}
        assert targets(changed, **options) == [tiny_processor.target_ids(text) for text in texts]
    assert [record.getMessage() for record in caplog.records] == [
        "3 continuations have ids of another tokenizer or another text: their texts are tokenized instead"
    ]


def test_ids_stay_with_their_texts(records, split, tiny_processor, caplog):
    """Columns of the data contract; a control that moves texts between people moves the ids too."""
    joined = join_continuations(split, "train", records)
    assert joined["continuation_ids"][:] == [[record.ids] for record in records]
    assert with_contract_columns({"train": joined}, "here")["train"].features == joined.features
    assert join_continuations(joined, "train", records).features == joined.features
    moved = permute_captions(joined, 0)
    assert moved["continuation"][:] != joined["continuation"][:]
    samples = TrainDataset(moved, tiny_processor, BatchArguments(), seed=0, language=True)
    by_text = {record.continuation: record.ids for record in records}
    expected = [by_text[text] for (text,) in moved["continuation"]]
    assert [target for ((_, target),) in samples.texts] == expected and not caplog.records


@pytest.fixture
def unequal(tiny_processor):
    """A batch of both branches whose targets have 1, 9, 4 and no tokens."""
    rng = torch.Generator().manual_seed(0)
    targets = [torch.randint(5, 30, (length,), generator=rng).tolist() for length in (1, 9, 4, 0)]
    samples = [
        {
            "pixel_values": torch.randn(3, 64, 32, generator=rng),
            "person_ids": number,
            "instruction": 0,
            "caption": [*CAPTIONS, ""][number],
            "target": target,
        }
        for number, target in enumerate(targets)
    ]
    collator = TrainCollator(tiny_processor, BatchArguments(), language=True, reid_text=False)
    return collator, samples


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_unequal_targets_have_the_losses_and_gradients_of_each_sample_alone(make_model, unequal):
    """Language loss and KL, in one batch with padding, one by one without, and with cached gradients."""
    collator, samples = unequal
    model = make_model(loss_lambda=0.0, distillation_weight=0.5).eval()
    with torch.no_grad():  # weights of a size with which every text has other logits
        for parameter in model.mllm.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    batch = collator(samples)
    output = model(**batch)
    assert output.label_counts == {"image": 14, "text": 14, "distillation": 14}
    output.loss.backward()
    expected, sums = gradients(model), {name: float(value) for name, value in output.language_loss_sums.items()}
    assert sums.keys() == {"image", "text", "distillation"} and min(sums.values()) > 0.1

    model.zero_grad()
    totals = dict.fromkeys(sums, 0.0)
    for sample in samples:
        alone = model(**collator([sample]))
        assert alone.label_counts["image"] == len(sample["target"])
        for name, value in alone.language_loss_sums.items():
            totals[name] += float(value)
        if sample["target"]:
            model.language_loss(alone.language_loss_sums, output.label_counts).backward()
    assert totals == pytest.approx(sums, rel=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)

    for chunk in (1, 3):
        model.zero_grad()
        loss, cached = cached_backward(
            model,
            batch,
            chunk=chunk,
            language_loss=lambda part: model.language_loss(part, output.label_counts),
            reid_weight=0.0,
            backward=lambda value: value.backward() if value.requires_grad else None,
        )
        assert float(loss) == pytest.approx(float(output.loss.detach()), rel=1e-5)
        assert cached.label_counts == output.label_counts
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
