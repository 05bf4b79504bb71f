"""The numbers of the report, from synthetic queries: variants, contrasts, Holm's correction, verdicts, tables."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from modeling_mllmreid.research.ablation import results as comparison
from modeling_mllmreid.research.ablation import tables
from modeling_mllmreid.research.ablation.contrasts import Contrast, contrast, interval_over_seeds
from modeling_mllmreid.research.ablation.plan import FEATURES
from modeling_mllmreid.research.ablation.results import View

PERSONS = np.repeat(np.arange(12), [1, 2, 3, 4] * 3)
VIEW = View("steps", "a", "b", "vision")
CONTRASTS = {"clear": ["S", "B"], "none": ["B", "C"], "both": [["S", "B"], ["C", "C"]]}


@pytest.fixture(scope="module")
def values():
    rng = np.random.default_rng(0)
    return {
        name: {
            "mAP": rng.uniform(0.2, 0.5, (3, len(PERSONS))) + gain,
            "rank1": (rng.random((3, len(PERSONS))) < 0.4).astype(float),
            "person_ids": PERSONS,
        }
        for name, gain in {"S": 0.3, "B": 0.0, "C": 0.0}.items()
    }


@pytest.fixture(scope="module")
def results(values):
    def queries(cell, test_set, feature, seeds=None):
        assert (cell[0], cell[2], test_set, feature) == ("steps", "a", "b", "vision")
        chosen = slice(None) if seeds is None else seeds
        return {key: array if key == "person_ids" else array[chosen] for key, array in values[cell[1]].items()}

    return SimpleNamespace(queries=queries, cells={("steps", name, "a") for name in values})


def test_variants_and_contrasts_are_those_of_the_queries(values, results):
    found = comparison.variant_intervals(results, VIEW, ["S", "C"])
    assert list(found) == ["S", "C"] and found["C"]["rank1"] == interval_over_seeds(values["C"]["rank1"], PERSONS)
    assert comparison.intervals_as_json(found)["S"]["mAP"] == found["S"]["mAP"].to_dict()
    args = SimpleNamespace(contrasts=CONTRASTS, seeds=[0, 1, 2], seeds_of={})
    tested = comparison.tested_contrasts(results, VIEW, args)
    for metric in ("mAP", "rank1"):
        s, b, c = (values[name][metric] for name in "SBC")
        expected = [contrast(s, b, PERSONS), contrast(b, c, PERSONS), contrast((s + b) / 2, c, PERSONS)]
        actual = [tested[name][metric] for name in CONTRASTS]
        for got, wanted in zip(actual, expected, strict=True):
            assert vars(got.contrast) == pytest.approx(vars(wanted), nan_ok=True)
        order = np.argsort([wanted.p_value for wanted in expected])
        raised = np.maximum.accumulate([min(1, (3 - n) * expected[i].p_value) for n, i in enumerate(order)])
        assert [actual[i].adjusted for i in order] == pytest.approx(raised.tolist())
    written = json.loads(json.dumps(comparison.contrasts_as_json(tested)))["clear"]["mAP"]
    assert (written["holm"], written["verdict"]) == (tested["clear"]["mAP"].adjusted, "better")
    assert written["low"] > 0 and written["p_value"] < 0.05
    one_seed = {
        name: {key: array[:1] if key != "person_ids" else PERSONS for key, array in arrays.items()}
        for name, arrays in values.items()
    }
    stub = SimpleNamespace(queries=lambda cell, *_: one_seed[cell[1]], cells=results.cells)
    single = comparison.tested_contrasts(stub, VIEW, args)
    written = comparison.contrasts_as_json(single)["clear"]["mAP"]
    assert written["holm"] is None and written["p_value"] is None and written["verdict"] == "one seed: no test"


def test_a_contrast_takes_the_seeds_of_both_sides_and_needs_runs_of_both(values, results):
    args = SimpleNamespace(contrasts=CONTRASTS, seeds=[0, 1, 2], seeds_of={"C": [2, 0]})
    tested = comparison.tested_contrasts(results, VIEW, args)
    s, b, c = (values[name]["mAP"] for name in "SBC")
    assert tested["clear"]["mAP"].contrast == contrast(s, b, PERSONS)
    assert tested["none"]["mAP"].contrast == contrast(b[[0, 2]], c[[0, 2]], PERSONS)
    fewer = SimpleNamespace(queries=results.queries, cells=results.cells - {("steps", "C", "a")})
    assert list(comparison.tested_contrasts(fewer, VIEW, args)) == ["clear"]
    assert list(comparison.variant_intervals(fewer, VIEW, ["S", "C"])) == ["S"]


def judged(difference, p_value, detectable=0.02, adjusted=None, seeds=np.nan):
    found = Contrast(difference, difference - 0.01, difference + 0.01, p_value, 0.004, detectable, seeds)
    return comparison.Tested(found, p_value if adjusted is None else adjusted)


@pytest.mark.parametrize(
    "found, word, verdict",
    [
        (judged(0.1, 0.001), "better", "better"),
        (judged(-0.1, 0.001), "worse", "worse"),
        (judged(0.1, 0.05), "unclear", "no difference seen; one of 2.0 would have been"),
        (judged(0.1, 0.03, adjusted=0.06), "unclear", "no difference seen; one of 2.0 would have been"),
        (judged(0.0, 1.0, detectable=0.0), "unclear", "equal in every query"),
        (judged(0.1, 0.0, detectable=0.0), "better", "the same difference in every query"),
        (judged(0.1, np.nan, detectable=np.nan), "unclear", "one seed: no test"),
    ],
)
def test_verdicts(found, word, verdict):
    assert (found.word, found.verdict) == (word, verdict)


def test_tables_show_difference_interval_and_both_p_values():
    by_metric = {"mAP": judged(0.1234, 0.0004, adjusted=0.0012), "rank1": judged(-0.02, 0.0412, adjusted=0.0824)}
    lines = tables.view_contrasts(VIEW, {VIEW: {"language": by_metric}}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| language")]
    assert cells == [
        ["language", "mAP", "+12.3 [+11.3, +13.3]", "< 0.001", "0.001", "0.4", "better"],
        ["language", "Rank-1", "-2.0 [-3.0, -1.0]", "0.041", "0.082", "0.4", by_metric["rank1"].verdict],
    ]
    plan = SimpleNamespace(args=SimpleNamespace(contrasts={"x": [], "y": []}, seeds=[0, 1, 2], seeds_of={}))
    sure, weak = judged(0.1, 0.001), judged(0.01, 0.5, detectable=0.0313)
    views = {VIEW._replace(feature=feature): {"x": {"mAP": sure}, "y": {"mAP": weak}} for feature in FEATURES}
    text = tables.verdicts(plan, views)
    assert "+10.0 [+9.0, +11.0] better" in text and "+1.0 [+0.0, +2.0] unclear" in text
    assert "with 3 seeds and these people" in text and "vision 2.0 to 3.1" in text
    assert "too low for a verdict" in text and "x (" not in text
    assert "- vision: y (no number, but more test people)" in text
    weak = judged(0.01, 0.5, detectable=0.0313, seeds=7.0)
    assert "- llm: y (7)" in tables.verdicts(plan, {view: {"y": {"mAP": weak}} for view in views})
    assert tables.verdicts(plan, {}) == ""
    plan.args.seeds_of = {"A": [0]}
    assert "with 3 seeds, fewer where the list above says so, and these people" in tables.verdicts(plan, views)
