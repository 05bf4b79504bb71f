"""Settings of pedestrians-small, compared on val people: size, input, augmentation, number of people and scenes.

python benchmarks/small_settings.py --output runs/small_settings --data data [--steps 1500] [--seeds 0] [--rows ...]

Every row is a training of the recipe pedestrians_small with one setting changed, on as many images. `--data` is the
folder of the recipe's worlds, which are rendered at their first use. The val people are a world of their own: other
people in other scenes than in any named world. No test set is read. The result is a table in Markdown, in percent with
95 % intervals. What is in `--output` already is not computed again; an interrupted training goes on.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from cross_world import random_encoder, run

from modeling_mllmreid.synthetic.worlds import World
from modeling_mllmreid.synthetic.write import write_pedestrians

# Of a seed that no named world and no training of cross_world.py has.
VAL = World(300, scenes=40, images_per_camera=2, test_identities=150)
TOWNS = ("rendered_town", "rendered_town_summer", "rendered_town_winter")
# What a row changes: options of `train`; "encoder" is the shape of the random encoder.
ROWS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "width 16": {"encoder": {"width": 16}},
    "width 32": {"encoder": {"width": 32}},
    "one block a stage": {"encoder": {"blocks": [1, 1, 1, 1]}},
    "without IBN": {"encoder": {"ibn": False}},
    "input 96 x 48": {"height": 96, "width": 48},
    "input 160 x 80": {"height": 160, "width": 80},
    "no color jitter": {"color_jitter": 0},
    "color jitter 0.4": {"color_jitter": 0.4},
    "no downscale": {"downscale": 0},
    "no erasing": {"erase": 0},
    "town alone": {"dataset": TOWNS[0]},
    "town_summer alone": {"dataset": TOWNS[1]},
    "8 images of a person": {"identities_per_batch": 8, "images_per_identity": 8},
}


def train(row: str, seed: int, options: argparse.Namespace) -> Path:
    """Trains the model of a row and seed, unless it is there; returns its folder."""
    setting = dict(ROWS[row])
    shape = setting.pop("encoder", {})
    name = row.replace(" ", "_")
    start, model = (options.output / part / f"{name}_{seed}" for part in ("start", "models"))
    if (model / "config.json").exists():
        return model
    random_encoder(start, seed, (setting.get("height", 128), setting.get("width", 64)), **shape)
    setting = {"dataset": "+".join(TOWNS), **setting}
    folders = {town: str(options.data / town.removeprefix("rendered_")) for town in setting["dataset"].split("+")}
    one = len(folders) == 1
    fixed = {
        "data_dirs": "{}" if one else json.dumps(folders),
        **({"data_dir": folders[setting["dataset"]]} if one else {}),
        "model": start,
        "output_dir": model,
        "seed": seed,
        "max_steps": options.steps,
        "warmup_steps": options.steps // 10,
        "eval_strategy": "no",
        "save_steps": max(1, options.steps // 3),
        "val_identities": 0,
    }
    run(
        "train",
        "pedestrians_small",
        *(word for name, value in (setting | fixed).items() for word in (f"--{name}", value)),
    )
    return model


def main() -> None:
    """Trains, evaluates on the val people, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="Folder of val people, models and evaluations.")
    parser.add_argument("--data", type=Path, required=True, help="Folder of the worlds to train on.")
    parser.add_argument("--steps", type=int, default=1500, help="Steps of a row.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS))
    options = parser.parse_args()
    val = options.output / "val"
    if not val.exists():
        write_pedestrians(val, VAL, captions_per_image=0)
    print("| setting | seed | mAP | Rank-1 |", "|---|---|---|---|", sep="\n")
    for row in options.rows:
        for seed in options.seeds:
            model = train(row, seed, options)
            report = options.output / "evaluation" / model.name
            if not (report / "metrics.json").exists():
                run("evaluate", "--model", model, "--dataset", "market1501", "--data_dir", val, "--output_dir", report)
            intervals = json.loads((report / "metrics.json").read_text())["intervals"]["vision"]
            cells = [
                f"{100 * m['estimate']:.1f} [{100 * m['low']:.1f}, {100 * m['high']:.1f}]"
                for m in (intervals["mAP"], intervals["rank1"])
            ]
            print(f"| {row} | {seed} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
