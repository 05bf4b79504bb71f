"""Measures what the image is worth for the language loss, on people that the model has not seen.

python benchmarks/image_helps.py MODEL --dataset rendered_elsewhere --data_dir FOLDER [--texts FILE [--examples PNG]]

Prints the loss of each caption, or with `--texts` of its continuation, in nats a token, after its own image and after
an image of another person, and the difference with its 95 % interval over people. `--texts` takes the images that have
one. `--examples` draws images with what the model writes about them: the best and the worst.
"""

import argparse

import numpy as np
import torch

from modeling_mllmreid.data.captions import caption_keys, join_continuations, read_records
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.evaluation.protocol import evenly_spaced
from modeling_mllmreid.evaluation.statistics import people_error
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.research.agreement import branch_agreement, draw_agreement
from modeling_mllmreid.research.language_gain import own_and_other_losses
from modeling_mllmreid.text.instructions import COMMON_INSTRUCTION, STANDARD_INSTRUCTION
from modeling_mllmreid.training.loading import load_model


def main() -> None:
    """Prints one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_dir")
    parser.add_argument("--captions_file")
    parser.add_argument("--texts", help="continuations of the query split, which the common instruction asks for")
    parser.add_argument("--examples", help="picture of texts of the model, with --texts")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--max_target_tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.examples and not args.texts:
        parser.error("--examples: draws what --texts measures: give both")
    torch.set_num_threads(args.threads)
    size = {"height": args.height, "width": args.width}
    fields = {side: value for side, value in size.items() if value is not None}
    model, processor = load_model(ModelArguments(args.model, dtype=args.dtype), fields)
    query = load_reid_dataset(args.dataset, data_dir=args.data_dir, captions_file=args.captions_file)["query"]
    column, instruction = "caption", STANDARD_INSTRUCTION
    if args.texts:
        column, instruction = "continuation", COMMON_INSTRUCTION
        records = read_records(args.texts)
        described = {record.key for record in records}
        keys = [[key for key, _ in captions] for captions in caption_keys(query, "query")]
        query = query.select([place for place, own in enumerate(keys) if own and described.issuperset(own)])
        if not len(query):
            parser.error(f"--texts {args.texts}: has a continuation of no query image: give those of this data set")
        query = join_continuations(query, "query", records)
    query = query.select(evenly_spaced(len(query), args.images))
    texts = [texts[0] for texts in query[column][:]]
    targets = [processor.target_ids(text, args.max_target_tokens) for text in texts]
    if args.examples:
        agreement = branch_agreement(
            model, processor, query, texts, instruction=instruction, max_target_tokens=args.max_target_tokens
        )
        draw_agreement(args.examples, query, agreement, [captions[0] for captions in query["caption"][:]])
        own, other = agreement.image_nats, agreement.other_image_nats
    else:
        prompt = processor.image_prompt_ids(instruction)
        own, other = own_and_other_losses(model, processor, query, prompt, targets, batch_size=32)
    persons, places = np.unique(query["person_id"][:], return_inverse=True)
    tokens, gains = np.zeros(len(persons)), np.zeros(len(persons))
    np.add.at(tokens, places, [len(target) for target in targets])
    np.add.at(gains, places, other - own)
    gain = gains.sum() / tokens.sum()
    low, high = people_error(gains, tokens).interval(gain)
    print(
        f"{len(query)} images of {len(persons)} people, {tokens.sum():.0f} tokens of their {column}s: "
        f"{own.sum() / tokens.sum():.3f} nats a token after the own image, {other.sum() / tokens.sum():.3f} after "
        f"another person's: {gain:+.3f} [{low:+.3f}, {high:+.3f}]"
    )


if __name__ == "__main__":
    main()
