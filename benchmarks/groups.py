"""Groups of unknown people on rendered worlds: agreement with the true people, at the suggested threshold.

python benchmarks/groups.py --output runs/groups [--model pedestrians-small]

Three worlds of 200 people with 10 crops from 5 of 40 cameras are rendered and embedded with the model's ONNX file. The
first is that of the model's calibration (see `hub/pack.py`), the others are no named worlds. Every world is grouped as
it is, with invented times (people walk past their cameras one after the other), and with a track for each person and
camera. The table is Markdown. "Suggested" counts the pairs of groups that a human sees, with the share that is right
and their mean confidence. What is in `--output` is not rendered or embedded again.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from modeling_mllmreid.data.contract import image_sources
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.evaluation.calibration import probability
from modeling_mllmreid.evaluation.embedding import embed_images
from modeling_mllmreid.evaluation.grouping import GroupingMetrics, grouping_metrics
from modeling_mllmreid.evaluation.onnx_encoder import load_onnx
from modeling_mllmreid.evaluation.threshold import load_thresholds
from modeling_mllmreid.gallery.constraints import Rules
from modeling_mllmreid.gallery.groups import Crops, UnknownPeople, find_groups
from modeling_mllmreid.hub.pack import CALIBRATION
from modeling_mllmreid.model.shipped_models import PRETRAINED
from modeling_mllmreid.options.arguments import OnnxArguments
from modeling_mllmreid.synthetic.people.attributes import Crowd
from modeling_mllmreid.synthetic.write import write_pedestrians

WORLDS = {
    "val": CALIBRATION,
    "test": replace(CALIBRATION, seed=311),
    "look-alikes": replace(CALIBRATION, seed=312, crowd=Crowd(copies=4)),
}
TRAVEL = np.timedelta64(20, "s")
STARTS = 1200  # seconds


def embedded(folder: Path, name: str, model: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Renders and embeds a world; returns ids, features, persons and cameras of its crops."""
    stored = folder / f"{name}.npz"
    if not stored.exists():
        if not (folder / name).exists():
            write_pedestrians(folder / name, WORLDS[name], captions_per_image=0)
        dataset = load_reid_dataset("market1501", data_dir=folder / name, strict=False)
        encoder, processor = load_onnx(model, OnnxArguments(), {})
        splits = [dataset["query"], dataset["gallery"]]
        features = [embed_images(encoder, processor, image_sources(s), names=("vision",))["vision"] for s in splits]
        columns = {c: np.concatenate([s[c][:] for s in splits]) for c in ("file_name", "person_id", "camera_id")}
        np.savez(stored, features=np.concatenate(features), **columns)
    with np.load(stored) as arrays:
        return arrays["file_name"], arrays["features"], arrays["person_id"], arrays["camera_id"]


def invented_times(persons: np.ndarray, cameras: np.ndarray) -> np.ndarray:
    """Returns a time for each crop: everybody starts within 20 minutes and is at the next camera a minute later."""
    random = np.random.default_rng(0)
    times = np.empty(len(persons), "datetime64[us]")
    for person in np.unique(persons):
        at = random.integers(STARTS)
        for camera in random.permutation(np.unique(cameras[persons == person])):
            seen = np.flatnonzero((persons == person) & (cameras == camera))
            times[seen] = np.datetime64("2026-01-01T08:00:00") + (at + np.arange(len(seen))).astype("timedelta64[s]")
            at += 60
    return times


def row(title: str, result: UnknownPeople, metrics: GroupingMetrics, persons: np.ndarray, seconds: float) -> str:
    """Returns a line of the table."""
    person_of = {
        int(label): int(persons[place])
        for label, place in zip(*np.unique(result.labels, return_index=True), strict=True)
    }
    right = [person_of[merge.first] == person_of[merge.second] for merge in result.merges]
    stated = [merge.confidence for merge in result.merges]
    suggested = f"{len(right)}, {np.mean(right):.0%} right, {np.mean(stated):.0%} stated" if right else "0"
    values = (metrics.precision, metrics.recall, metrics.ari, metrics.nmi)
    return f"| {title} | {' | '.join(f'{v:.3f}' for v in values)} | {metrics.groups} | {suggested} | {seconds:.1f} |"


def main() -> None:
    """Renders, embeds, groups, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="Folder of worlds and features.")
    parser.add_argument("--model", default="pedestrians-small", help="A model that comes with the package.")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    worlds = {name: embedded(options.output, name, PRETRAINED / options.model / "model.onnx") for name in WORLDS}
    calibration = load_thresholds(str(PRETRAINED / options.model))["vision"].calibration
    if calibration is None:
        raise SystemExit(f"{options.model} has no calibration: python -m modeling_mllmreid.hub.pack writes it")
    print(f"confidence of the threshold: {probability(calibration.least):.2f}\n")
    print("| crops | precision | recall | ARI | NMI | groups | suggested | s |", "|---|" + "---|" * 7, sep="\n")
    for name, (ids, features, persons, cameras) in worlds.items():
        nothing = np.full(len(ids), -1)
        unknown, times = np.full(len(ids), "NaT", "datetime64[us]"), invented_times(persons, cameras)
        tracks = np.unique(persons * 1000 + cameras, return_inverse=True)[1]
        for title, time_column, track_column in (
            (name, unknown, nothing),
            (f"{name}, times", times, nothing),
            (f"{name}, times and tracks", times, tracks),
        ):
            start = time.perf_counter()
            crops = Crops(ids, features, cameras, time_column, track_column)
            result = find_groups(crops, calibration, Rules(travel_time=TRAVEL))
            seconds = time.perf_counter() - start
            print(row(title, result, grouping_metrics(result.labels, persons), persons, seconds), flush=True)


if __name__ == "__main__":
    main()
