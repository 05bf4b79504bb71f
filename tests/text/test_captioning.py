"""Captions by any image-text-to-text model: what is written, resuming, several processes."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from noise_people import write_noise_people
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, GenerationConfig, LlavaForConditionalGeneration, LlavaProcessor

from modeling_mllmreid.commands import caption, train
from modeling_mllmreid.data.captions import CaptionRecord, TextKey, read_records
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.research.tiny_llava import build_processor, build_tiny_llava
from modeling_mllmreid.text import captioning
from modeling_mllmreid.text.generation import generation_settings
from modeling_mllmreid.text.instructions import STANDARD_INSTRUCTION, STANDARD_POOL
from modeling_mllmreid.training.loading import load_model
from modeling_mllmreid.utils.errors import UserError


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """A tiny LLaVA whose tower is trained on squares of 64 pixels, on disk."""
    folder = tmp_path_factory.mktemp("native")
    processor = build_processor(
        ["a red shirt and blue jeans .", "a woman in a coat"], height=64, width=64, patch_size=16
    )
    model = build_tiny_llava(processor, hidden_size=32, tower_layers=1, lm_layers=1, seed=0)
    for part in (model, processor.tokenizer, processor.image_processor):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def people(tmp_path):
    return write_noise_people(tmp_path / "people", train=5)


def flags(native, people, output):
    data = ["--dataset", "market1501", "--data_dir", str(people)]
    return ["--model", str(native), *data, "--output", str(output), "--max_new_tokens", "5", "--batch_size", "3"]


def test_captions_are_written_and_read(native, people, tmp_path, capsys):
    path = tmp_path / "captions.jsonl"
    caption.main(flags(native, people, path))
    assert "10 captions written" in capsys.readouterr().out
    records = read_records(path, CaptionRecord)
    assert len({record.key for record in records}) == 10 and {record.split for record in records} == {"train"}
    provenance = records[0].provenance
    assert provenance["model"] == str(native) and provenance["licence"] is None
    assert len(provenance["prompts"]) == 10 and provenance["max_new_tokens"] == 5
    dataset = load_reid_dataset("market1501", data_dir=people, captions_file=str(path))
    assert all(len(captions) == 2 and all(captions) for captions in dataset["train"]["caption"])
    assert dataset["query"]["caption"][:] == [[]]
    caption.main(flags(native, people, path))
    assert "0 captions written" in capsys.readouterr().out
    with pytest.raises(UserError, match="captions.jsonl: holds texts written with max_new_tokens 5, not 6"):
        caption.main([*flags(native, people, path), "--max_new_tokens", "6"])
    path.write_text("")
    with pytest.raises(UserError, match="captions.jsonl: no record belongs to this data set"):
        load_reid_dataset("market1501", data_dir=people, captions_file=str(path))


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_killed_run_goes_on_to_the_same_captions(native, people, tmp_path, monkeypatch, do_sample):
    draw = ["--do_sample", str(do_sample).lower()]
    caption.main([*flags(native, people, tmp_path / "whole.jsonl"), *draw])
    real, calls = captioning.describe_images, []

    def dies(model, processor, images, *rest):
        if len(calls) == 6:
            raise KeyboardInterrupt
        calls.extend(images)
        return real(model, processor, images, *rest)

    monkeypatch.setattr(captioning, "describe_images", dies)
    with pytest.raises(KeyboardInterrupt):
        caption.main([*flags(native, people, tmp_path / "cut.jsonl"), *draw])
    with (tmp_path / "cut.jsonl").open("ab") as file:
        file.write(b'{"source": "mark')  # torn by the kill
    monkeypatch.setattr(captioning, "describe_images", real)
    assert len(read_records(tmp_path / "cut.jsonl", CaptionRecord)) == 6
    caption.main([*flags(native, people, tmp_path / "cut.jsonl"), *draw])
    whole, cut = ((tmp_path / f"{name}.jsonl").read_bytes() for name in ("whole", "cut"))
    assert cut == whole


def test_what_captions_are_drawn_by_is_kept_and_compared(native, people, tmp_path):
    def write(name, *more):
        caption.main([*flags(native, people, tmp_path / name), *more])
        records = read_records(tmp_path / name, CaptionRecord)
        return records[0].provenance, [record.caption for record in records]

    drawn = ["--do_sample", "true", "--temperature", "0.5", "--seed", "3"]
    provenance, texts = write("c.jsonl", *drawn)
    expected = {"model": str(native), "licence": None, "prompts": list(STANDARD_POOL), "max_new_tokens": 5}
    expected |= {"do_sample": True, "temperature": 0.5, "seed": 3, "revision": None}
    assert provenance == expected
    for flag, value, named in (("temperature", "2.0", "temperature 0.5"), ("seed", "4", "seed 3")):
        with pytest.raises(UserError, match=f"c.jsonl: holds texts written with {named}, not {value}: give another"):
            write("c.jsonl", *drawn, f"--{flag}", value)
        assert write(f"{flag}.jsonl", *drawn, f"--{flag}", value)[1] != texts
    # The likeliest text has no temperature; the seed still draws its prompt.
    greedy, likeliest = write("greedy.jsonl", "--temperature", "0.5", "--seed", "3")
    assert greedy == {**expected, "do_sample": False, "temperature": None} and likeliest != texts
    assert write("other.jsonl", "--temperature", "2.0", "--seed", "3")[1] == likeliest


def test_the_seed_and_the_image_draw_the_prompts():
    prompts = list("abcdef")

    def drawn(seed, file_name="1.jpg", source="market1501", split="train"):
        keys = [TextKey(source, split, file_name, index) for index in range(8)]
        return [captioning._prompt(prompts, key, seed) for key in keys]

    assert sorted(drawn(0)[:6]) == prompts and drawn(0)[6:] == drawn(0)[:2] and drawn(0) == drawn(0)
    for name, values in {
        "seed": range(6),
        "file_name": ["1.jpg", "2.jpg", "3.jpg"],
        "source": ["a", "b", "c"],
        "split": ["train", "query", "gallery"],
    }.items():
        assert len({tuple(drawn(**{"seed": 0, name: value})) for value in values}) == len(values), name


SHARE = """
from modeling_mllmreid.commands import caption
from modeling_mllmreid.utils.processes import this_process
from modeling_mllmreid.text import captioning

real, wrote = captioning.describe_images, []
captioning.describe_images = lambda mllm, processor, images, *rest: wrote.extend(images) or real(
    mllm, processor, images, *rest
)
caption.main({flags!r})
state = this_process()
print(f"process {{state.process_index}} of {{state.num_processes}} wrote {{len(wrote)}}", flush=True)
"""


@pytest.mark.slow
def test_two_processes_write_shares(native, people, tmp_path):
    """Both write all ten captions together, and none twice, a part that a killed run left included."""
    path = tmp_path / "captions.jsonl"
    (tmp_path / "run.py").write_text(SHARE.format(flags=flags(native, people, path)))
    caption.main(flags(native, people, tmp_path / "alone.jsonl"))
    alone = {record.key: record for record in read_records(tmp_path / "alone.jsonl", CaptionRecord)}
    first = (tmp_path / "alone.jsonl").read_text().splitlines(keepends=True)[0]
    (tmp_path / "captions.jsonl.part-00007").write_text(first)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(tmp_path / "run.py")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-2000:]
    # Nine captions were left, in batches of three.
    assert "process 0 of 2 wrote 6" in run.stdout and "process 1 of 2 wrote 3" in run.stdout
    together = {record.key: record for record in read_records(path, CaptionRecord)}
    assert together.keys() == alone.keys() and len(path.read_text().splitlines()) == 10
    assert not list(tmp_path.glob("*.part-*"))


def test_prompts_of_one_image_differ(native, people, tmp_path, monkeypatch):
    seen = []
    real = captioning.describe_images

    def spy(model, processor, images, prompt, *rest):
        seen.extend([(prompt, image.tobytes()) for image in images])
        assert all(image.width == image.height == 40 for image in images)  # whole crops in squares
        assert (processor.height, processor.width) == (64, 64)
        return real(model, processor, images, prompt, *rest)

    monkeypatch.setattr(captioning, "describe_images", spy)
    caption.main([*flags(native, people, tmp_path / "c.jsonl"), "--captions_per_image", "3"])
    assert len(seen) == len(set(seen)) == 15 and len({image for _, image in seen}) == 5
    assert len({prompt for prompt, _ in seen}) > 3


def test_mistakes(native, people, disk, tmp_path):
    good = flags(native, people, tmp_path / "c.jsonl")
    for more, message in (
        (["--splits", "val"], "has no split val: give one of train, query, gallery"),
        (["--prompts", "one"], "2 captions of one prompt would be .*: give do_sample, or more prompts"),
        (["--captions_per_image", "0"], "captions_per_image 0, 10 prompts: give at least one of each"),
        (["--model", "/absent/model"], "model /absent/model: not loadable"),
        (["--model", str(disk.ours)], "is fine-tuned for ReID: give the native model that it is based on"),
    ):
        with pytest.raises(UserError, match=message):
            caption.main([*good, *more])
    assert not (tmp_path / "c.jsonl").exists()


def test_a_model_that_is_not_whole_writes_nothing(native, people, tmp_path):
    for kind in ("lost", "broken", "pickled"):
        shutil.copytree(native, tmp_path / kind)
        weights = tmp_path / kind / "model.safetensors"
        tensors = load_file(weights)
        weights.unlink()
        if kind == "lost":
            tensors.pop(sorted(tensors)[-1])
            save_file(tensors, weights, metadata={"format": "pt"})
        elif kind == "broken":
            weights.write_bytes(b"x" * 40)
        else:
            torch.save(tensors, tmp_path / kind / "pytorch_model.bin")
        message = {"lost": "1 weights are missing, ", "broken": "cut off or broken", "pickled": "is a pickle"}[kind]
        with pytest.raises(UserError, match=message):
            caption.main([*flags(native, people, tmp_path / "c.jsonl"), "--model", str(tmp_path / kind)])
    assert not (tmp_path / "c.jsonl").exists()
    caption.main([*flags(native, people, tmp_path / "c.jsonl"), "--dtype", "bf16"])


def test_the_licence_is_the_models_own_or_the_given_one(native, people, tmp_path, monkeypatch):
    first, given = tmp_path / "first.jsonl", tmp_path / "given.jsonl"
    caption.main(flags(native, people, first))
    assert train.provenances_of_texts(str(first), None)[0]["licence"] is None  # of the architecture alone
    caption.main([*flags(native, people, given), "--licence", "Llama 2"])
    provenance = train.provenances_of_texts(str(given), None)[0]
    assert provenance["licence"] == "llama2" and provenance["model"] == str(native)
    assert json.loads(given.read_text().splitlines()[0])["caption_index"] in (0, 1)
    # A relative path reads like a name on the Hub.
    monkeypatch.chdir(native.parent)
    caption.main([*flags(native.name, people, given), "--licence", "llama2"])
    with pytest.raises(UserError, match="licence '<b>': not a licence: give a name that the Hub uses"):
        caption.main([*flags(native, people, given), "--licence", "<b>"])


@pytest.mark.parametrize("do_sample", [False, True])
def test_the_checkpoints_own_generation_settings_have_no_part(native, do_sample):
    """Provenance names every setting that a caption depends on."""
    model, processor = load_model(ModelArguments(str(native)), {"height": 64, "width": 64})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))

    def written():
        temperature = 1.0 if do_sample else None
        return captioning.describe_images(model, processor, [image] * 3, "a red coat", 8, temperature, 0)

    plain, own = written(), GenerationConfig(repetition_penalty=9.0, no_repeat_ngram_size=1, top_p=0.1)
    model.mllm.generation_config = own
    model.mllm.train()
    assert written() == plain and model.mllm.generation_config is own and model.mllm.training


def test_captions_are_those_of_the_stock_processor_and_model(native):
    """A LLaVA describes a padded crop as in transformers: the same pixels, the same prompt, the same text."""
    model, processor = load_model(ModelArguments(str(native)), {"height": 64, "width": 64})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 40, 3), dtype=np.uint8))
    square = captioning._square(image)
    stock = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64),
        processor.tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    text = f"USER: <image>\n{STANDARD_INSTRUCTION} ASSISTANT:"
    inputs = stock(images=[square], text=[text], return_tensors="pt")
    settings = generation_settings(model.mllm, processor.tokenizer, 9, None)
    native_mllm = LlavaForConditionalGeneration.from_pretrained(native).eval()
    with torch.inference_mode():
        ids = native_mllm.generate(**inputs, generation_config=settings)[0, inputs["input_ids"].shape[1] :]
    expected = processor.tokenizer.decode(ids, skip_special_tokens=True)
    got = captioning.describe_images(model, processor, [square], STANDARD_INSTRUCTION, 9, None, 0)
    assert got == [expected] and len(expected.split()) > 5
