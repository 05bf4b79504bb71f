"""Measures the share of padding in the tokens that the language model runs on.

python benchmarks/padding.py

Runs one epoch of rendered pedestrians with 16 people x 4 images in a batch, and crops of 128 x 64 with 32 image tokens.
The targets are captions, or continuations made of the other captions of a person, cut as in `train`.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import timing
import torch

from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.data.sampler import PKSampler
from modeling_mllmreid.model import MllmReIDModel, MllmReIDProcessor
from modeling_mllmreid.research.tiny_llava import build_processor, build_tiny_llava
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.training.batches import TrainCollator, TrainDataset

LIMIT = 0.1  # of all tokens of both branches


def main() -> None:
    """Prints the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--append", type=Path, help="append the shares to this table, such as RESULTS.md")
    parser.set_defaults(device="cpu")
    results = timing.Results(parser.parse_args())
    with tempfile.TemporaryDirectory() as folder:
        people = Path(folder) / "people"
        write_pedestrians(people, train_identities=60, test_identities=1)
        train = load_reid_dataset("market1501", data_dir=people, captions_file=people / "reid_raw.json")["train"]
        captions = train["caption"][:]
        continuations = [
            [" ".join([*texts[:i], *texts[i + 1 :], texts[i]]) for i in range(len(texts))] for texts in captions
        ]
        if "continuation" in train.column_names:
            train = train.remove_columns("continuation")
        train = train.add_column("continuation", continuations)
        words = [text for texts in captions for text in texts]
        processor = build_processor(words, height=128, width=64, patch_size=16)
        for target in ("continuation", "caption"):
            batch_args = BatchArguments(target=target)
            samples = TrainDataset(train, processor, batch_args, seed=0, language=True)
            sampler = PKSampler(samples.person_ids, samples.camera_ids, identities_per_batch=16, images_per_identity=4)
            collator = TrainCollator(processor, batch_args, language=True, reid_text=False)
            loader = torch.utils.data.DataLoader(samples, batch_size=64, sampler=sampler, collate_fn=collator)
            for branch, share in padding_as_run(processor, loader).items():
                limit = (f"<= {LIMIT:.0%}", share <= LIMIT) if branch == "both branches" else ()
                results.add(f"padding in what the LLM runs on, {branch}, {target}s, 16 x 4", f"{share:.1%}", *limit)
    results.append()


def padding_as_run(processor: MllmReIDProcessor, loader: Any) -> dict[str, float]:
    """Returns the share of padding in the tokens of the language model over all batches, by branch."""
    llava = build_tiny_llava(processor, hidden_size=32, tower_layers=1, lm_layers=1, seed=0)
    fields = {"height": processor.height, "width": processor.width, "image_prefix_ids": processor.image_prefix_ids}
    model = MllmReIDModel.from_mllm(llava, loss_lambda=0.0, **fields)
    token_counts: list[int] = []
    model.mllm.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: token_counts.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    useful, total = np.zeros(2), np.zeros(2)
    for batch in loader:
        token_counts.clear()
        with torch.no_grad():
            model(**batch)
        # The image branch runs first, in one call.
        total += token_counts[0], sum(token_counts[1:])
        useful += int(batch["attention_mask"].sum()), int(batch["text_attention_mask"].sum())
    text, both = 1 - useful[1] / total[1], 1 - useful.sum() / total.sum()
    return {"text branch": text, "both branches": both}


if __name__ == "__main__":
    main()
