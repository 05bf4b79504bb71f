"""Measures how often reasons are right, on a data set whose query and gallery have captions, such as a rendered one.

python benchmarks/reasons.py MODEL --data_dir FOLDER [--queries 300]

Every query is compared with its nearest gallery image from another camera. A statement is right if the captions of the
people say so: all captions of a person for what is stated, and one caption of the crop for what is expected. The first
row is the model. In the second each pair has the descriptions of another pair: what is right by chance. In the third
another caption of each crop is its description: what people reach who write captions like these.
"""

import argparse
from collections import defaultdict

import torch
from datasets import concatenate_datasets

from modeling_mllmreid.data.contract import image_sources
from modeling_mllmreid.data.images import open_image
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.evaluation.protocol import embed_query_gallery, evenly_spaced, same_person
from modeling_mllmreid.evaluation.reason_rates import Truth, reason_rates, truth_of
from modeling_mllmreid.model import MllmReIDModel, MllmReIDProcessor
from modeling_mllmreid.retrieval.ranking import rank_gallery
from modeling_mllmreid.text.captioning import describe_crops
from modeling_mllmreid.text.reasons import compare_descriptions


def main() -> None:
    """Prints the table, and some reasons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--show", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    captions_file = f"{args.data_dir}/reid_raw.json"
    dataset = load_reid_dataset("market1501", data_dir=args.data_dir, captions_file=captions_file)
    query = dataset["query"].select(evenly_spaced(len(dataset["query"]), args.queries))
    model, processor = MllmReIDModel.from_pretrained(args.model).eval(), MllmReIDProcessor.from_pretrained(args.model)
    nearest = nearest_images(model, processor, query, dataset["gallery"])
    crops = concatenate_datasets([query, dataset["gallery"].select(nearest)])
    texts = describe_crops(model, processor, [open_image(source) for source in image_sources(crops)])
    truths = pair_truths(crops, concatenate_datasets([dataset["query"], dataset["gallery"]]))
    reasons = reasons_of(texts)
    captions = [captions[-1] for captions in crops["caption"][:]]
    rows = {
        "the model": reasons,
        # Far away in the list: the next queries show the same person and look-alikes.
        "descriptions of another pair": [*reasons[len(reasons) // 2 :], *reasons[: len(reasons) // 2]],
        "another caption": reasons_of(captions),
    }
    print(f"{len(query)} pairs, of one person: {same_share(crops):.1%}\n")
    print("| | statement | stated | right | expected | found |\n|---|---|---:|---:|---:|---:|")
    for name, row in rows.items():
        for kind, rates in reason_rates(row, truths).items():
            print(
                f"| {name} | {kind} | {rates.stated:,} | {rates.precision:.1%} | {rates.expected:,} | "
                f"{rates.recall:.1%} |"
            )
    for reason in reasons[: args.show]:
        print("", reason.first, reason.second, *reason.lines("first", "second"), sep="\n")


def nearest_images(model, processor, query, gallery) -> list[int]:
    """Returns the nearest gallery image of each query by the test feature."""
    query_features, gallery_features = embed_query_gallery(model, processor, query, gallery)
    feature = model.config.test_feature
    rule = same_person(query, gallery)
    return rank_gallery(query_features[feature], gallery_features[feature], 1, same_person=rule).indices[:, 0].tolist()


def reasons_of(texts):
    """Returns the reasons of descriptions: those of the queries, then those of their nearest images."""
    half = len(texts) // 2
    return [compare_descriptions(*pair) for pair in zip(texts[:half], texts[half:], strict=True)]


def pair_truths(crops, everyone) -> list[tuple[Truth, Truth]]:
    """Returns what is known about both crops of each pair."""
    of_person = defaultdict(list)
    for person, captions in zip(everyone["person_id"][:], everyone["caption"][:], strict=True):
        of_person[person] += captions
    known = [
        truth_of(of_person[person], captions[0])
        for person, captions in zip(crops["person_id"][:], crops["caption"][:], strict=True)
    ]
    half = len(known) // 2
    return list(zip(known[:half], known[half:], strict=True))


def same_share(crops) -> float:
    """Returns the share of the pairs that show one person."""
    persons = crops["person_id"][:]
    half = len(persons) // 2
    return sum(map(int.__eq__, persons[:half], persons[half:])) / half


if __name__ == "__main__":
    main()
