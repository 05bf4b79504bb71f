"""Samples and batches by hand, with settings that are not the defaults: every setting changes the batches."""

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset

from modeling_mllmreid.data.augmentation import PersonAugmentation, rng_for
from modeling_mllmreid.data.contract import FEATURES, image_sources
from modeling_mllmreid.data.images import open_image
from modeling_mllmreid.text.instructions import STANDARD_INSTRUCTION, STANDARD_POOL
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.training.batches import TrainCollator, TrainDataset, label_counts
from modeling_mllmreid.training.trainer import ReIDTrainer
from modeling_mllmreid.utils.errors import UserError

CAPTIONS = [
    ["a man with a red shirt and blue jeans .", "a man in black shoes ."],
    ["a woman in a long green coat ."],
    [],
]
CONTINUATIONS = [["he has a bag .", "he walks ."], ["she has long hair and a yellow hat ."], []]


@pytest.fixture(scope="module")
def images(world):
    """Six images of three people. Those of the third person have no caption."""
    train = world["train"]
    rows = [train["person_id"][:].index(person) + i for person in (1, 2, 3) for i in (0, 1)]
    columns = {name: train.select(rows)[name][:] for name in FEATURES if name != "image"}
    columns |= {"caption": [CAPTIONS[row // 2] for row in range(6)]}
    columns |= {"continuation": [CONTINUATIONS[row // 2] for row in range(6)]}
    paths = image_sources(train.select(rows))
    return Dataset.from_dict({**columns, "image": list(map(str, paths))}, features=FEATURES)


@pytest.fixture(scope="module")
def samples(images, parts):
    """samples(seed=..., language=..., dataset=..., **batch arguments)."""

    def make(seed=5, language=True, dataset=images, **batch):
        return TrainDataset(dataset, parts[0], BatchArguments(**batch), seed=seed, language=language)

    return make


def equal(one, other):
    return all(
        torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name]
        for name, value in one.items()
    )


def test_an_index_alone_draws_the_augmentation_from_torch(samples):
    made = samples(flip=0.5, pad=4, erase=0.5)
    torch.manual_seed(3)
    first, second = made[1], made[1]
    torch.manual_seed(3)
    assert equal(made[1], first) and not equal(first, second)
    epoch = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(3)))
    assert equal(first, made[1, epoch, 1])
    # A loader of torch shuffles by the same generator.
    batches = [next(iter(torch.utils.data.DataLoader(made, 4, shuffle=True, collate_fn=list))) for _ in range(2)]
    assert [len(batch) for batch in batches] == [4, 4] and not equal(batches[0][0], batches[1][0])


def test_a_sample_by_hand(samples, images, parts):
    processor = parts[0]
    settings = {"flip": 0.7, "pad": 2, "erase": 0.6, "color_jitter": 0.3, "downscale": 0.4}
    made = samples(**settings, instruction="pool", target="continuation", max_target_tokens=3)
    assert len(made) == 6 and made.num_identities == 3 and made.labels == [0, 0, 1, 1, 2, 2]
    columns = {"person_ids": "person_id", "camera_ids": "camera_id", "sources": "source", "file_names": "file_name"}
    assert all(getattr(made, name) == images[column][:] for name, column in columns.items())
    assert made.person_names == list(map(str, images["person_id"]))
    augmentation = PersonAugmentation(64, 32, **settings)
    sources = image_sources(images)
    for index, epoch, position in np.ndindex(6, 3, 3):
        rng = rng_for(5, epoch, position, index)
        image = augmentation.transform_image(open_image(sources[index]), rng)
        pixels = processor(images=[image])["pixel_values"][0]
        caption, target, instruction = "", [], 0
        if texts := list(zip(CAPTIONS[index // 2], CONTINUATIONS[index // 2], strict=True)):
            caption, target = texts[rng.integers(len(texts))]
            target = processor.target_ids(target)[:3]
            instruction = int(rng.integers(len(STANDARD_POOL)))
        expected = {
            "pixel_values": augmentation.erase(pixels, rng),
            "person_ids": index // 2,
            "camera_ids": images["camera_id"][index],
            "instruction": instruction,
            "caption": caption,
            "target": target,
            # Some of these images have no caption.
            "language_row": bool(target),
        }
        got = made[index, epoch, position]
        assert got.keys() == expected.keys() and equal(expected, got), (index, epoch, position)


# Option, another value, the fields of a sample that it changes.
OPTIONS = [
    ("flip", 0.0, {"pixel_values"}),
    ("flip", 1.0, {"pixel_values"}),
    # No shift draws no random number, so the later draws differ.
    ("pad", 0, {"pixel_values", "caption", "target"}),
    ("pad", 2, {"pixel_values"}),
    ("erase", 0.0, {"pixel_values"}),
    ("erase", 1.0, {"pixel_values"}),
    # Their draws come before those of the caption.
    ("color_jitter", 0.2, {"pixel_values", "caption", "target"}),
    ("downscale", 0.5, {"pixel_values", "caption", "target"}),
    ("max_target_tokens", 2, {"target"}),
    ("target", "split", {"caption", "target"}),
    ("target", "continuation", {"target"}),
    # The instruction draws before the erased box.
    ("instruction", "pool", {"instruction", "pixel_values"}),
    ("seed", 6, {"pixel_values", "caption", "target"}),
]


@pytest.mark.parametrize(("name", "value", "changes"), OPTIONS, ids=[f"{name}-{value}" for name, value, _ in OPTIONS])
def test_every_option_changes_its_fields_and_nothing_else(samples, name, value, changes):
    before, after = samples(target="caption"), samples(**{"target": "caption", name: value})
    pairs = [(before[place], after[place]) for place in np.ndindex(4, 2, 8)]
    assert {key for one, other in pairs for key in one if not equal({key: one[key]}, other)} == changes


def test_disabled_augmentation_never_happens(samples, images, parts):
    still = samples(target="caption", flip=0, pad=0, erase=0)
    sources = image_sources(images)
    for index, epoch, position in np.ndindex(6, 2, 4):
        resized = open_image(sources[index]).convert("RGB").resize((32, 64))
        expected = parts[0](images=[resized])["pixel_values"][0]
        assert torch.equal(still[index, epoch, position]["pixel_values"], expected)


def test_draws_reach_every_text_and_every_instruction(samples, parts):
    made = samples(target="caption", instruction="pool")
    drawn = [made[0, epoch, position] for epoch in range(4) for position in range(30)]
    assert {sample["instruction"] for sample in drawn} == set(range(len(STANDARD_POOL)))
    counts = [sum(sample["caption"] == caption for sample in drawn) for caption in CAPTIONS[0]]
    assert sum(counts) == 120 and min(counts) > 40
    assert all(parts[0].target_ids(sample["caption"]) == sample["target"] for sample in drawn)
    for instruction in ("common", "standard"):
        alone = samples(target="caption", instruction=instruction)
        assert {alone[0, 0, position]["instruction"] for position in range(9)} == {0}
    # An epoch, a position and an image have their own draws.
    for places in ([(0, e, 0) for e in range(6)], [(0, 0, p) for p in range(6)]):
        assert len({made[place]["pixel_values"].numpy().tobytes() for place in places}) == 6


@pytest.mark.parametrize("target", ["caption", "split", "continuation"])
def test_targets_are_cut_and_nothing_else_is(samples, parts, target):
    whole, cut = samples(target=target, max_target_tokens=99), samples(target=target, max_target_tokens=4)
    for long, short in zip(whole.texts, cut.texts, strict=True):
        assert [(prompt, ids[:4]) for prompt, ids in long] == short
    assert max(len(ids) for texts in whole.texts for _, ids in texts) > 4
    prompt, ids = whole.texts[0][0]
    words = CAPTIONS[0][0].split()
    expected = {
        "caption": (CAPTIONS[0][0], CAPTIONS[0][0]),
        "split": (" ".join(words[:5]), " ".join(words[5:])),
        "continuation": (CAPTIONS[0][0], CONTINUATIONS[0][0]),
    }[target]
    assert (prompt, ids) == (expected[0], parts[0].target_ids(expected[1]))


def test_without_language_no_text_is_read(samples):
    made = samples(language=False, instruction="pool")
    assert made.texts == [[]] * 6
    sample = made[0, 0, 0]
    assert (sample["caption"], sample["target"], sample["instruction"]) == ("", [], 0)


def test_images_without_captions_are_counted_and_none_at_all_is_refused(samples, images, caplog):
    with caplog.at_level(logging.WARNING):
        made = samples(target="caption")
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 6 training images have no caption: they take part in the ReID losses on images alone"
    ]
    assert [len(texts) for texts in made.texts] == [2, 2, 1, 1, 0, 0]
    caplog.clear()
    samples(target="caption", dataset=images.select(range(4)))
    assert not caplog.records
    with pytest.raises(UserError, match="no training image has a caption: give captions, or set loss_lambda to 1"):
        samples(target="caption", dataset=images.select([4, 5]))


def test_the_language_loss_reads_a_share_of_the_images(samples, images, parts):
    captioned = images.select(range(4))
    for share, read in ((1.0, [0, 1, 2, 3]), (0.5, [1, 3]), (0.25, [3]), (0.75, [1, 2, 3])):
        made = samples(dataset=captioned, target="caption", language_share=share)
        whole = samples(dataset=captioned, target="caption")
        for position in range(8):
            sample, expected = made[position % 4, 0, position], whole[position % 4, 0, position]
            is_read = position % 4 in read
            assert sample["target"] == (expected["target"] if is_read else []) and expected["target"]
            assert sample["caption"] == expected["caption"]
            assert torch.equal(sample["pixel_values"], expected["pixel_values"])
            assert sample.get("language_row", "all") == ("all" if share == 1 else is_read)
    for share in (0.0, -0.5, 1.1):
        with pytest.raises(UserError, match=f"^language_share {share}: give a share above 0 and up to 1$"):
            BatchArguments(language_share=share)


def test_batches_name_the_images_that_the_language_loss_reads(samples, parts, images):
    half = {"target": "caption", "language_share": 0.5}
    places = [(0, 0, 0), (1, 0, 1), (2, 0, 2), (4, 0, 3)]
    _, batch = batch_of(samples, parts, places, **half)
    # The last has no caption.
    assert batch["language_rows"].tolist() == [False, True, False, False]
    assert (batch["labels"] != -100).any(dim=1).tolist() == batch["language_rows"].tolist()
    assert (batch["text_labels"] != -100).any(dim=1).tolist() == batch["language_rows"].tolist()
    assert batch["text_caption_mask"].any(dim=1).tolist() == [True, True, True, False]
    # All processes have it where any image has no text.
    _, batch = batch_of(samples, parts, places[:2], target="caption")
    assert batch["language_rows"].tolist() == [True, True]
    whole = {"target": "caption", "dataset": images.select(range(4))}
    rows = [samples(**whole)[place] for place in places[:2]]
    collator = TrainCollator(parts[0], BatchArguments(target="caption"), language=True, reid_text=False)
    assert "language_rows" not in collator(rows)
    _, batch = batch_of(samples, parts, places, language=False, reid_text=True, **half)
    assert "language_rows" not in batch and batch["text_caption_mask"].any(dim=1).tolist() == [True, True, True, False]


def test_a_text_that_cannot_be_a_target_is_named(samples, images):
    bare = images.remove_columns("continuation").add_column("continuation", [[]] * 6, feature=FEATURES["continuation"])
    name = images["file_name"][0]
    with pytest.raises(UserError, match=f"^{name}: caption 'a man with .* has no continuation: run the continuations"):
        samples(target="continuation", dataset=bare)
    assert samples(target="caption", dataset=bare).texts == samples(target="caption").texts
    few = images.remove_columns("continuation").add_column(
        "continuation", [["one alone"]] * 6, feature=FEATURES["continuation"]
    )
    with pytest.raises(ValueError, match="shorter"):
        samples(target="continuation", dataset=few)
    odd = images.remove_columns("caption").add_column("caption", [["man"]] * 6, feature=FEATURES["caption"])
    with pytest.raises(UserError, match=f"^{name}: caption 'man' is too short to split"):
        samples(
            target="split",
            dataset=odd.remove_columns("continuation").add_column(
                "continuation", [[]] * 6, feature=FEATURES["continuation"]
            ),
        )


def batch_of(samples, parts, places, *, language=True, reid_text=False, **batch):
    """Returns the samples and their batch."""
    made = samples(**batch)
    rows = [made[place] for place in places]
    return rows, TrainCollator(parts[0], BatchArguments(**batch), language=language, reid_text=reid_text)(rows)


PLACES = [(0, 0, 0), (2, 0, 1), (4, 0, 2), (1, 0, 3)]  # the third has no caption
IMAGE_ROWS = {"input_ids", "attention_mask", "labels", "language_rows"}
TEXT_ROWS = {"text_input_ids", "text_attention_mask", "text_caption_mask"}


def padded(rows, value):
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


@pytest.mark.parametrize("instruction", ["common", "standard", "pool"])
def test_a_batch_by_hand(samples, parts, instruction):
    processor = parts[0]
    settings = {"instruction": instruction, "target": "continuation", "max_target_tokens": 3}
    rows, batch = batch_of(samples, parts, PLACES, **settings)
    texts = {"common": ["Continue the following text."], "standard": [STANDARD_INSTRUCTION], "pool": STANDARD_POOL}
    chosen = [texts[instruction][row["instruction"]] for row in rows]
    assert instruction != "pool" or len(set(chosen)) > 2
    targets = [row["target"] for row in rows]
    image = [processor.image_prompt_ids(text) for text in chosen]
    # Words do not join in this vocabulary.
    after = [processor.target_ids(f"{text} assistant:") for text in chosen]
    prefix = processor.image_prefix_ids
    captions = [processor.target_ids(row["caption"]) for row in rows]
    text = [prefix + caption + suffix for caption, suffix in zip(captions, after, strict=True)]
    assert batch.keys() == {"pixel_values", "person_ids", *IMAGE_ROWS, *TEXT_ROWS, "text_labels"}
    assert torch.equal(batch["pixel_values"], torch.stack([row["pixel_values"] for row in rows]))
    assert batch["person_ids"].tolist() == [0, 1, 2, 0]
    pad = processor.tokenizer.pad_token_id
    for name, prompts in (("", image), ("text_", text)):
        full = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
        labels = [[-100] * len(prompt) + target for prompt, target in zip(prompts, targets, strict=True)]
        assert torch.equal(batch[f"{name}input_ids"], padded(full, pad))
        assert torch.equal(batch[f"{name}attention_mask"], padded([[1] * len(ids) for ids in full], 0))
        assert torch.equal(batch[f"{name}labels"], padded(labels, -100))
    mask = batch["text_caption_mask"]
    assert mask.shape == batch["text_input_ids"].shape and mask.dtype == torch.bool
    assert [ids[kept].tolist() for ids, kept in zip(batch["text_input_ids"], mask, strict=True)] == captions
    counts = label_counts(batch)
    assert counts.shape == (2,) and counts.tolist() == [sum(map(len, targets))] * 2 and counts[0] > 3


@pytest.mark.parametrize(
    ("language", "text_branch", "reid_text", "names", "counted"),
    [
        (True, True, False, IMAGE_ROWS | TEXT_ROWS | {"text_labels"}, (True, True)),
        (True, True, True, IMAGE_ROWS | TEXT_ROWS | {"text_labels"}, (True, True)),
        (True, False, False, IMAGE_ROWS, (True, False)),
        (True, False, True, IMAGE_ROWS | TEXT_ROWS, (True, False)),
        (False, True, False, set(), (False, False)),
        (False, False, False, set(), (False, False)),
        (False, True, True, TEXT_ROWS, (False, False)),
    ],
)
def test_tensors_of_a_batch(samples, parts, language, text_branch, reid_text, names, counted):
    settings = {"target": "caption", "text_branch": text_branch}
    rows, batch = batch_of(samples, parts, PLACES, language=language, reid_text=reid_text, **settings)
    assert batch.keys() == {"pixel_values", "person_ids", *names}
    assert tuple(label_counts(batch) > 0) == counted
    if names >= TEXT_ROWS and not (language and text_branch):
        # These sequences end with the caption.
        prefix = parts[0].image_prefix_ids
        expected = padded(
            [prefix + parts[0].target_ids(row["caption"]) for row in rows], parts[0].tokenizer.pad_token_id
        )
        assert torch.equal(batch["text_input_ids"], expected)


def test_the_first_label_is_no_target():
    """A model predicts the next token, so no token predicts the first label."""
    labels = torch.tensor([[7, 8, -100], [-100, 9, 9]])
    assert label_counts({"labels": labels, "text_labels": labels[:1]}).tolist() == [3, 1]


@pytest.fixture(scope="module")
def sampler_of(world, parts, trainer_folder):
    """sampler_of(**training arguments) -> the sampler of the trainer's own loader, over two sets of unequal size."""
    train = world["train"]
    people = train["person_id"][:]
    sources = ["large" if person != people[0] and person != people[-1] else "small" for person in people]
    two = train.remove_columns("source").add_column("source", sources, feature=FEATURES["source"])
    samples = TrainDataset(two, parts[0], BatchArguments(), seed=0, language=False)

    def make(**arguments):
        settings = {"identities_per_batch": 4, "images_per_identity": 2, "eval_strategy": "no", "use_cpu": True}
        args = ReIDTrainingArguments(trainer_folder, **{**settings, **arguments})
        trainer = ReIDTrainer(model=parts[1], args=args, train_dataset=samples)
        return two, trainer, trainer._get_train_sampler()

    return make


@pytest.fixture(scope="module")
def trainer_folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("trainer"))


def test_p_and_k_are_those_of_the_batches(sampler_of):
    for p, k in ((4, 2), (3, 4)):
        dataset, trainer, sampler = sampler_of(identities_per_batch=p, images_per_identity=k)
        assert trainer.args.per_device_train_batch_size == p * k
        batches = np.array([index for index, _, _ in sampler]).reshape(-1, p * k)
        assert len(batches) == len(dataset) // (p * k) == len(trainer.get_train_dataloader())
        people = np.array(dataset["person_id"][:])[batches].reshape(-1, p, k)
        assert (people == people[:, :, :1]).all() and all(len(set(batch)) == p for batch in people[:, :, 0])


def test_balance_sets_gives_every_set_as_many_people(sampler_of):
    shares = {}
    for balance in (False, True):
        dataset, _, sampler = sampler_of(balance_sets=balance)
        sources = np.array(dataset["source"][:])[[index for index, _, _ in sampler]].reshape(-1, 8)
        shares[balance] = (sources == "small").mean(axis=1).tolist()
    assert set(shares[True]) == {0.5} and np.mean(shares[False]) < 0.3


def test_the_seed_and_the_epoch_order_the_images(sampler_of):
    orders = {seed: list(sampler_of(seed=seed)[2]) for seed in (0, 1)}
    assert orders[0] == list(sampler_of(seed=0)[2]) != orders[1]
    sampler = sampler_of(seed=0)[2]
    sampler.set_epoch(1)
    later = list(sampler)
    assert [index for index, _, _ in later] != [index for index, _, _ in orders[0]]
    assert {epoch for _, epoch, _ in later} == {1}
