"""The leaderboard as a file of JSON lines, one for each model and commit, and as the page docs/leaderboard.md.

The newest line of each name is its row on the page. The page is written from the lines alone.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modeling_mllmreid.utils.markdown import code, escape
from modeling_mllmreid.utils.outputs import atomic_file

LINES, PAGE = Path("benchmarks/leaderboard.jsonl"), Path("docs/leaderboard.md")
OUTSIDE = "outside_crops"
# Column of the first table -> what the test set is.
TESTS = {
    "rendered_elsewhere": "rendered people in other scenes than those of any training world, and distractors",
    "rendered_doubles": "rendered people, four of five with almost the clothes of another: the hard set",
    OUTSIDE: "crops of computer-generated people of other projects: few people, wide intervals; not in this repository",
}
METRICS = {"mAP": "mAP", "rank1": "Rank-1", "mINP": "mINP"}
# What two rows have in common exactly if they are of the same model with the same settings.
IDENTITY = ("weights", "revision", "settings")
HEAD = """\
# Leaderboard
<!-- Written by `python benchmarks/leaderboard.py`. Do not edit: the next row replaces the page. -->
Models measured by the code of this repository: on rendered worlds, which everyone can render, and on a few crops of
computer-generated people from elsewhere. No row is of photographs, and none predicts a result on them. Models that
ship, and recipes: [model_zoo.md](model_zoo.md).

## Models
mAP in percent, with 95 % intervals over people. One row a model, the newest of each name, sorted by the first test set.
"Trained on" are the data sets of people that the checkpoint names; a dash means that it names none.

"""
MIDDLE = """
Two rows whose intervals overlap can still differ, as both are of the same queries: `evaluate --model A --compare B`
gives the interval of the difference.

## Add a row
In a checkout, with your changes committed:
```bash
pip install -c constraints.txt -e '.[onnx]'
python benchmarks/leaderboard.py --model MODEL --name "NAME OF THE ROW"
```
`MODEL` is what `evaluate` takes: a checkpoint, a vision encoder, a name on the Hub, an ONNX file. Its options, such as
`--height` or `--test_feature`, can be added. The command renders the worlds at its first use, measures, adds a line to
[leaderboard.jsonl](../benchmarks/leaderboard.jsonl) and writes this page. Commit both files and open a pull request.

- Nothing is measured if the code differs from its commit, or if the model names a test set among its training sets.
- The same model measured again on the same commit replaces its line. On a later commit it adds one, and the page shows
  the newer one.
- A name is one model with one setting. Another feature or another size of the crops is another name.
- The outside crops cannot be shipped. If you have them, as a folder in Market-1501 layout, `python
  benchmarks/leaderboard.py --model MODEL --outside FOLDER` measures them too, and refuses other crops.
- After a merge conflict keep the lines of both sides; `python benchmarks/leaderboard.py` writes the page again.

## Test sets
Queries find gallery images of their person from other cameras. [worlds.md](worlds.md) describes the rendered worlds.
Metrics are in percent, with 95 % intervals over people. "Images" are the first digits of the SHA-256 of all test
images: rows with other digits are of other pixels, such as those of another version of the renderer.

"""
END = """
## How each row was measured
The commit is that of the code. Weights are identified by the first digits of their SHA-256, or by their commit on the
Hub. A path outside of the checkout is recorded by its last name. `mllmreid parts --output runs/parts` makes the models
of `runs/parts` out of packages ([compose.md](compose.md#parts-without-the-hub)).

"""


def read_lines(root: Path) -> list[dict[str, Any]]:
    """Returns the rows of all commits in the order of the file; none without a file."""
    path = root / LINES
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def with_row(rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the rows with a new one, in the place of the row of the same name and commit or at the end."""
    key = (row["name"], row["commit"])
    if any((other["name"], other["commit"]) == key for other in rows):
        return [row if (other["name"], other["commit"]) == key else other for other in rows]
    return [*rows, row]


def write(root: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the lines and the page."""
    lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    for path, text in ((root / LINES, lines), (root / PAGE, page(rows))):
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def shown(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the newest row of each name, the best on the first test set first."""
    newest = {row["name"]: row for row in rows}
    first = next(iter(TESTS))
    return sorted(newest.values(), key=lambda row: (-row["results"][first]["mAP"]["estimate"], row["name"]))


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the page of these rows in Markdown."""
    models = shown(rows)
    names = {row["name"]: escape(row["name"]) for row in models}
    best = [
        [names[row["name"]], _trained_on(row), _count(row["parameters"]), *(_cell(row, test, "mAP") for test in TESTS)]
        for row in models
    ]
    parts = [HEAD, _table(["model", "trained on", "parameters", *map(code, TESTS)], best), MIDDLE]
    sizes = [[code(test), text, *_sizes(models, test)] for test, text in TESTS.items()]
    parts.append(_table(["test set", "what", "people", "queries", "gallery images"], sizes))
    for test in TESTS:
        measured = [row for row in models if test in row["results"]]
        images = {row["name"]: code(row["results"][test]["images"][:8]) for row in measured}
        cells = [
            [names[row["name"]], *(_cell(row, test, metric) for metric in METRICS), images[row["name"]]]
            for row in measured
        ]
        parts += [f"\n### {test}\n", _table(["model", *METRICS.values(), "images"], cells)]
    how = [[names[row["name"]], *_provenance(row)] for row in models]
    titles = ["model", "weights", "feature", "crop", "commit", "date", "command", "machine", "versions"]
    return "".join([*parts, END, _table(titles, how)])


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cell(row: Mapping[str, Any], test: str, metric: str) -> str:
    """Returns a metric with its interval in percent."""
    if test not in row["results"]:
        return "not measured"
    return percent(row["results"][test][metric])


def percent(interval: Mapping[str, float]) -> str:
    """Returns an estimate with its interval in percent."""
    estimate, low, high = (f"{100 * interval[name]:.1f}" for name in ("estimate", "low", "high"))
    return f"{estimate} [{low}, {high}]"


def _trained_on(row: Mapping[str, Any]) -> str:
    return ", ".join(map(code, row["trained_on"])) or "-"


def _count(parameters: int) -> str:
    """Returns a number of parameters in millions; a dash for a model without any."""
    return f"{parameters / 1e6:,.1f} M" if parameters else "-"


def _sizes(models: Sequence[Mapping[str, Any]], test: str) -> list[str]:
    """Returns the number of people, queries and gallery images, of the rows that have the test set."""
    keys = ("people", "queries", "gallery_images")
    found = sorted({tuple(row["results"][test][key] for key in keys) for row in models if test in row["results"]})
    return [", ".join(f"{sizes[i]:,}" for sizes in found) for i in range(len(keys))]


def _provenance(row: Mapping[str, Any]) -> list[str]:
    settings, versions = row["settings"], row["versions"]
    weights = (row["revision"] or row["weights"] or "")[:12]
    size = f"{settings['height']} x {settings['width']}" if "height" in settings else "as it is"
    feature = f"{code(settings['feature'])}, {row['embedding_size']:,} numbers"
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    where = [code(weights) if weights else "-", feature, size, code(row["commit"][:12]), row["date"]]
    return [*where, code(row["command"]), escape(row["machine"]), escape(listed)]
