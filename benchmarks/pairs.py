"""Measures what a pair of crops costs.

python benchmarks/pairs.py [--size small] [--queries 1 64] [--verify_top 50] [--dtype float32] [--repeats 20]

The floor is what two crops cost apart: the language model over prefix and image of each, as for an embedding. Against
it stand a question about two crops that are read, and a question with the reading of the candidate, as for a shortlist
whose query is read once; one prompt with both crops is the way without readings. All take turns in inference mode on
the projected tokens of the same random crops. Then whole shortlists are timed as `evaluate --verify_top` scores them:
images, tower, readings, their cache and questions of each number of `--queries` with `--verify_top` candidates, all of
them other crops. Prints ratios, pairs a second and, on a GPU, the largest memory with the weights.
"""

import argparse

import numpy as np
import timing
import torch
from models import SIZES, make_reid
from PIL import Image as Picture
from torch import Tensor

from modeling_mllmreid.evaluation.pair_scores import score_shortlist
from modeling_mllmreid.model import MllmReIDModel, MllmReIDProcessor
from modeling_mllmreid.model.backbone import Image

# With LLaVA's tokenizer the question has 15 tokens.
QUESTION_TOKENS = 15
CANDIDATES = 16


def main() -> None:
    """Prints ratios and speeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--queries", type=int, nargs="+", default=[1])
    parser.add_argument("--verify_top", type=int, default=50)
    timing.add_arguments(parser, repeats=20)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, processor = make_reid(args.size, getattr(torch, args.dtype), args.device)
    model.to(args.device).eval()
    model.config.pair_question_ids, model.config.pair_answer_ids = [7] * QUESTION_TOKENS, [8, 9]
    results = timing.Results(args)
    with torch.inference_mode():
        compare(model, args, results)
    for queries in args.queries:
        shortlists(model, processor, queries, args, results)
    results.append()


def compare(model: MllmReIDModel, args: argparse.Namespace, results: timing.Results) -> None:
    """Times the language model on `CANDIDATES` pairs that share a query."""
    size = model.config.height, model.config.width
    pixels = torch.randn(1 + CANDIDATES, 3, *size, device=args.device)
    image = model.project_image(model.run_tower(pixels))
    query, candidates = (
        Image(image.embeddings[rows], image.grid, tuple(layer[rows] for layer in image.deepstack))
        for rows in (slice(0, 1), slice(1, None))
    )
    both, one = model.read_image(image)[1], model.read_image(query)[1]
    first = torch.zeros(CANDIDATES, dtype=torch.long, device=args.device)
    second = 1 + torch.arange(CANDIDATES, device=args.device)

    def apart() -> None:  # the query is as long as a candidate
        model.read_image(candidates)
        model.read_image(candidates)

    def with_candidate() -> Tensor:
        return model.score_pairs(one, first, second - 1, model.read_image(candidates)[1])

    functions = {
        "floor": apart,
        "question": lambda: model.score_pairs(both, first, second),
        "candidate": with_candidate,
        "prompt": lambda: one_prompt(model, query, candidates),
    }
    seconds = timing.alternate(functions, args.repeats, args.device)
    setting = f"{args.size}, {args.dtype}, {CANDIDATES} pairs"
    names = {
        "candidate": ("pair, candidate read and question / both crops apart", 0.6),
        "question": ("pair, question alone / both crops apart", None),
        "prompt": ("pair, one prompt of one order / both crops apart", None),
    }
    for name, (text, target) in names.items():
        results.ratio(f"{text} ({setting})", seconds[name], seconds["floor"], target)


def one_prompt(model: MllmReIDModel, query: Image, candidates: Image) -> Tensor:
    """Runs the language model on prompts with both crops and the question, without anything kept."""
    prefix = model.embed_tokens(torch.tensor([model.config.image_prefix_ids]))
    question = model.embed_tokens(torch.tensor([model.config.pair_question_ids]))
    count = len(candidates.embeddings)
    parts = [prefix, query.embeddings.to(prefix), None, question]
    parts = [candidates.embeddings.to(prefix) if part is None else part.expand(count, -1, -1) for part in parts]
    hidden: Tensor = model.language_model(inputs_embeds=torch.cat(parts, dim=1), use_cache=False).last_hidden_state
    return hidden[:, -1]


def shortlists(
    model: MllmReIDModel, processor: MllmReIDProcessor, queries: int, args: argparse.Namespace, results: timing.Results
) -> None:
    """Times the shortlists of some queries, and reports the largest memory of a GPU."""
    pixels = np.random.default_rng(0).integers(0, 256, (model.config.height, model.config.width, 3), dtype=np.uint8)
    # Of one picture, as images are told apart by their places.
    query, gallery = [Picture.fromarray(pixels)] * queries, [Picture.fromarray(pixels)] * queries * args.verify_top
    places = np.arange(len(gallery)).reshape(queries, args.verify_top)

    def verify() -> None:
        score_shortlist(model, processor, query, gallery, places, progress=False)

    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = timing.alternate({"verify": verify}, max(args.repeats // 5, 2), args.device)["verify"]
    name = f"verify_top {args.verify_top}, {queries} queries ({args.size}, {args.dtype})"
    results.add(f"pairs a second, {name}", f"{places.size / np.median(seconds):.1f}")
    if args.device == "cuda":
        results.add(f"largest memory, GiB, {name}", f"{torch.cuda.max_memory_allocated() / 2**30:.2f}")


if __name__ == "__main__":
    main()
