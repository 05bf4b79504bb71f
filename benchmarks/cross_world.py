"""What carries over: one small encoder, trained on each kind of rendered people and tested on all of them.

python benchmarks/cross_world.py --output runs/cross_world [--outside FOLDER] [--models FOLDER ...]
                                 [--steps 2500] [--seeds 0] [--people 600]

Every row is a training on as many people, images and steps. The rows in three dimensions differ from the whole
renderer in one part, which stays the same in all images. `--outside` is a folder in Market-1501 layout that is tested
on as well, `--models` are trained models that are tested alone. The result is a table in Markdown: mAP in percent with
its 95 % interval. What is in `--output` already is not computed again; an interrupted training goes on.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from modeling_mllmreid.model.crops import crop_image_processor
from modeling_mllmreid.model.reid_resnet import ReIDResNetConfig, ReIDResNetModel
from modeling_mllmreid.synthetic.body.body import body_data
from modeling_mllmreid.synthetic.body.cloth import SIZE
from modeling_mllmreid.synthetic.body.dressed import dress
from modeling_mllmreid.synthetic.flat.write import write_pedestrians as write_flat
from modeling_mllmreid.synthetic.people import attributes
from modeling_mllmreid.synthetic.people.attributes import Body, Build, Gait
from modeling_mllmreid.synthetic.rendering.crops import stranger
from modeling_mllmreid.synthetic.rendering.scenes import make_scene
from modeling_mllmreid.synthetic.rendering.sensor import Sensor
from modeling_mllmreid.synthetic.worlds import World
from modeling_mllmreid.synthetic.write import write_pedestrians, write_world

RUN = [sys.executable, str(Path(__file__).parent.parent / "run_reid.py")]
SYNTHETIC = "modeling_mllmreid.synthetic"
# Of a seed that no named world has.
SEED = 120
ONE_SENSOR = Sensor((1, 1, 1), 0.3, 1, 1, 1, 0, 1, 0.2, 0, 0, 0.004, 92)
ONE_BUILD = Build(male=0.5, age=0.2, muscle=0.5, weight=0.5, ancestry=(0.33, 0.33, 0.34), stature=1)
ONE_GAIT = Gait(3, 20, 15, 1.5)
PLAIN_AUGMENTATION = ["--flip", "0", "--pad", "0", "--erase", "0", "--color_jitter", "0", "--downscale", "0"]


def one_body(rng: Random, gender: str | None = None, *, draw: Callable[..., Body] = attributes.random_body) -> Body:
    """A body as drawn, with the same build and gait as all others."""
    return replace(draw(rng, gender), build=ONE_BUILD, gait=ONE_GAIT)


def plain_cloth(rng: Random, base: tuple[float, float, float], *pattern: Any) -> np.ndarray:
    """Cloth of one colour, without pattern, weave and wear."""
    cloth = np.zeros((SIZE, SIZE, 4), np.float32)
    cloth[..., :3] = base
    return cloth


def no_folds(rng: Random, smoothness: float) -> np.ndarray:
    """A surface without folds."""
    return np.zeros((SIZE, SIZE), np.float32)


# Parts of the renderer that a row holds constant, as replacements of functions.
CONSTANT: dict[str, dict[str, Callable[..., Any]]] = {
    "one sensor": {"rendering.scenes.draw_sensor": lambda rng: ONE_SENSOR},
    "one body": {"people.attributes.random_body": one_body},
    "plain cloth": {"body.dressed.weave": plain_cloth, "body.dressed.noise": no_folds},
}
ROWS = ("flat people", "3D people", "four scenes", *CONSTANT, "a quarter of the people", "no augmentation")
TESTS = {
    "flat people": "rendered_street",
    "3D, other scenes": "rendered_elsewhere",
    "3D, look-alikes": "rendered_doubles",
}


def render_training(folder: Path, row: str, people: int) -> None:
    """Renders the training set of a row."""
    world = World(
        SEED, scenes=max(12, people // 10), cameras=6, images_per_camera=2, train_identities=people, test_identities=1
    )
    if row == "flat people":
        write_flat(folder, seed=SEED, train_identities=people, test_identities=1, images_per_camera=3, cameras=4)
        return
    if row == "four scenes":
        world = replace(world, scenes=4, cameras=4, images_per_camera=3)
    if row == "a quarter of the people":
        world = replace(world, train_identities=people // 4, cameras=6, images_per_camera=8)
    with ExitStack() as constant:
        for name, replacement in CONSTANT.get(row, {}).items():
            constant.enter_context(patch(f"{SYNTHETIC}.{name}", replacement))
        for cached in (dress, stranger, make_scene, body_data):
            cached.cache_clear()
        # In this process: others would not see the replacements.
        write_pedestrians(folder, world, captions_per_image=0, processes=1)


def random_encoder(folder: Path, seed: int, size: tuple[int, int] = (128, 64), **shape: Any) -> None:
    """Saves the encoder of the recipe pedestrians_small with random weights; `shape` changes its configuration."""
    torch.manual_seed(seed)
    shape = {"width": 24, "blocks": [2, 2, 2, 2], "non_local": [0, 0, 0, 0], "ibn": True} | shape
    ReIDResNetModel(ReIDResNetConfig(**shape)).save_pretrained(folder)
    crop_image_processor({"height": size[0], "width": size[1]}).save_pretrained(folder)


def run(*arguments: object) -> None:
    """Runs a command of the package; its output is shown."""
    subprocess.run([*RUN, *map(str, arguments)], check=True)


def train(row: str, seed: int, options: argparse.Namespace) -> Path:
    """Trains the model of a row and seed, unless it is there; returns its folder."""
    name = row.replace(" ", "_")
    data, start, model = (options.output / part for part in (f"data/{name}", f"start_{seed}", f"{name}_{seed}"))
    if (model / "config.json").exists():
        return model
    if row == "no augmentation":
        data = options.output / "data/3D_people"
    if not data.exists():
        render_training(data, row, options.people)
    if not start.exists():
        random_encoder(start, seed)
    fixed = [
        "--dataset",
        "market1501",
        "--data_dirs",
        "{}",
        "--data_dir",
        data,
        "--model",
        start,
        "--output_dir",
        model,
        "--seed",
        seed,
    ]
    schedule = ["--max_steps", options.steps, "--warmup_steps", options.steps // 20, "--eval_strategy", "no"]
    schedule += ["--save_steps", max(1, options.steps // 4), "--val_identities", 0]
    run("train", "pedestrians_small", *fixed, *schedule, *(PLAIN_AUGMENTATION if row == "no augmentation" else ()))
    return model


def measure(model: Path, tests: dict[str, tuple[str, Path]], output: Path) -> dict[str, dict[str, float]]:
    """Evaluates a model on all test sets; returns estimate, low and high of mAP by test set."""
    results = {}
    for title, (dataset, folder) in tests.items():
        report = output / "evaluation" / model.name / title.replace(" ", "_").replace(",", "")
        if not (report / "metrics.json").exists():
            run("evaluate", "--model", model, "--dataset", dataset, "--data_dir", folder, "--output_dir", report)
        metrics = json.loads((report / "metrics.json").read_text())
        results[title] = metrics["intervals"]["vision"]["mAP"]
    return results


def main() -> None:
    """Trains, evaluates, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="Folder of data, models and evaluations.")
    parser.add_argument("--outside", type=Path, help="Folder of another test set, in Market-1501 layout.")
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="Trained models, one row each.")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--people", type=int, default=600)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    options = parser.parse_args()
    tests = {}
    for title, name in TESTS.items():
        folder = options.output / "data" / name
        if not folder.exists() and name != "rendered_street":
            write_world(folder, name.removeprefix("rendered_"))
        tests[title] = (name, folder)
    if options.outside:
        tests["outside crops"] = ("market1501", options.outside)
    rows = [(model.name, None, model) for model in options.models]
    rows += [(row, seed, train(row, seed, options)) for row in options.rows for seed in options.seeds]
    lines = []
    for title, seed, model in rows:
        measured = measure(model, tests, options.output)
        cells = [f"{100 * m['estimate']:.1f} [{100 * m['low']:.1f}, {100 * m['high']:.1f}]" for m in measured.values()]
        lines.append(f"| {title} | {'' if seed is None else seed} | {' | '.join(cells)} |")
    print(f"| trained on | seed | {' | '.join(tests)} |", "|---|---|" + "---|" * len(tests), *lines, sep="\n")


if __name__ == "__main__":
    main()
