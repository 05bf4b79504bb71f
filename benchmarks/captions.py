"""Texts a second: an engine behind `--endpoint` against a model in this process, the same model and the same texts.

python benchmarks/captions.py --model FOLDER --endpoint URL [--served_model NAME] [--kind continuations]

Both sides take turns, by the clock, as the engine is another process; reading, sending and writing count, loading does
not. Each turn has images or captions of its own: engines keep the prompts that they have seen. `--requests_at_once`
takes several values. An engine without images, such as llama.cpp with a language model, is
measured by continuations: `--gguf FILE` first writes FOLDER, a LLaVA of that language model (its vision tower is random
and takes no part). It needs the package gguf.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from timing import Results, add_arguments
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from modeling_mllmreid.data.captions import CaptionRecord, TextRecord, read_records
from modeling_mllmreid.data.contract import Sample, make_split
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.synthetic.people.captions import sample_descriptions
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.text.captioning import caption_side, write_captions
from modeling_mllmreid.text.continuations import write_continuations
from modeling_mllmreid.text.endpoint import Endpoint
from modeling_mllmreid.text.instructions import COMMON_INSTRUCTION, STANDARD_POOL
from modeling_mllmreid.training.loading import load_config, load_model, load_native_processor, load_text_model


def main() -> None:
    """Measures the texts a second of both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of the model in this process")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--gguf", type=Path, help="GGUF file of a language model, to write --model from")
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--served_model")
    parser.add_argument("--kind", default="captions", choices=("captions", "continuations"))
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=16, help="of the model in this process")
    parser.add_argument("--requests_at_once", type=int, nargs="+", default=[16])
    parser.add_argument("--max_new_tokens", type=int, default=32)
    add_arguments(parser, repeats=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.gguf and not Path(args.model).exists():
        write_llava_of(args.gguf, Path(args.model))
    arguments, results = ModelArguments(args.model, dtype=args.dtype), Results(args)
    with tempfile.TemporaryDirectory() as folder:
        needed = (len(args.requests_at_once) + 1) * args.texts * (args.repeats + 1)
        work = (Captions if args.kind == "captions" else Continuations)(arguments, needed, Path(folder))
        engines = {
            count: Endpoint(args.endpoint, args.served_model or args.model, requests_at_once=count)
            for count in args.requests_at_once
        }
        sides: dict[str, Any] = {"in this process": None}
        sides |= {f"engine, {count} requests at once": engine for count, engine in engines.items()}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(args.repeats + 1):
            for number, name in list(enumerate(sides))[:: 1 if turn % 2 else -1]:
                work.take((turn * len(sides) + number) * args.texts, args.texts)
                file = Path(folder) / f"{turn}_{name}.jsonl"
                start = time.perf_counter()
                written = work.write(sides[name], file, args)
                if turn:  # the first one warms up
                    seconds[name].append((time.perf_counter() - start) / written)
                words = [len(text.split()) for text in work.texts(file)]
                if turn == args.repeats:
                    print(f"{name}: {sum(words) / len(words):.1f} words in a text")
    here = seconds.pop("in this process")
    results.add(f"{args.kind} a second, in this process", f"{1 / float(torch.tensor(here).median()):.2f}")
    for name, there in seconds.items():
        # Texts a second: the quotient of the times, the other way round.
        low, middle, high = torch.quantile(torch.tensor(here) / torch.tensor(there), torch.tensor([0.25, 0.5, 0.75]))
        results.add(f"{args.kind} a second, {name}", f"{1 / float(torch.tensor(there).median()):.2f}")
        met = bool(middle >= 4)
        results.add(f"{name} / in this process", f"{middle:.2f} [{low:.2f}, {high:.2f}]", ">= 4", met)
    results.append()


class Captions:
    """Captions of rendered people."""

    def __init__(self, arguments: ModelArguments, needed: int, folder: Path):
        # 20 images of each person, in one process as the engine runs at the same time.
        write_pedestrians(
            folder / "people", train_identities=needed // 20 + 1, test_identities=1, captions_per_image=0, processes=1
        )
        self.all = self.part = load_reid_dataset("market1501", data_dir=folder / "people")["train"]
        side = caption_side(load_config(arguments, {}).backbone_description)
        self.model, self.processor = load_model(arguments, {"height": side, "width": side})

    def take(self, start: int, count: int) -> None:
        """Chooses the images of a turn."""
        self.part = self.all.select(range(start, start + count))

    def write(self, engine: Endpoint | None, file: Path, args: argparse.Namespace) -> int:
        """Writes a caption of each image; returns their number."""
        options = {"max_new_tokens": args.max_new_tokens, "batch_size": args.batch_size}
        about: dict[str, Any] = {"prompts": STANDARD_POOL, "model_name": "m", "revision": None, "licence": None}
        return write_captions(engine or self.model, self.processor, {"train": self.part}, file, **about, **options)

    def texts(self, file: Path) -> list[str]:
        """Returns what was written."""
        return [record.caption for record in read_records(file, CaptionRecord)]


class Continuations:
    """Continuations of captions of drawn people."""

    def __init__(self, arguments: ModelArguments, needed: int, folder: Path):
        self.mllm = load_text_model(AutoModelForImageTextToText, arguments)
        self.processor = load_native_processor(arguments)
        texts = dict.fromkeys(text for person in sample_descriptions(needed, seed=0) for text in person)
        self.all = [Sample(f"{number}.jpg", number, 1, (text,)) for number, text in enumerate(texts)]
        self.part = make_split([], root=".", source="captions")

    def take(self, start: int, count: int) -> None:
        """Chooses the captions of a turn."""
        if len(self.all) < start + count:
            raise SystemExit(f"{len(self.all)} different captions: give fewer --texts or --repeats")
        self.part = make_split(self.all[start : start + count], root=".", source="captions")

    def write(self, engine: Endpoint | None, file: Path, args: argparse.Namespace) -> int:
        """Writes a continuation of each caption; returns their number."""
        options = {"max_new_tokens": args.max_new_tokens, "batch_size": args.batch_size}
        about: dict[str, Any] = {"instruction": COMMON_INSTRUCTION, "model_name": "m", "revision": None}
        return write_continuations(engine or self.mllm, self.processor, {"train": self.part}, file, **about, **options)

    def texts(self, file: Path) -> list[str]:
        """Returns what was written."""
        return [record.continuation for record in read_records(file, TextRecord)]


def write_llava_of(gguf: Path, folder: Path) -> None:
    """Writes a LLaVA with the language model of a GGUF file and a random vision tower of one block."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    text = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    chat_template = tokenizer.chat_template
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text.resize_token_embeddings(len(tokenizer))
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=64, patch_size=16),
        text_config=text.config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    llava = LlavaForConditionalGeneration(config)
    llava.model.language_model.load_state_dict(text.model.state_dict())
    llava.tie_weights()
    llava.generation_config = text.generation_config
    tokenizer.chat_template = chat_template
    images = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64)
    processor = LlavaProcessor(images, tokenizer, patch_size=16, chat_template=chat_template)
    for part in (llava, processor):
        part.save_pretrained(folder)


if __name__ == "__main__":
    main()
