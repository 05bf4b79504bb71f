"""The `evaluate` library's module: loaded from its folder without network, the numbers of evaluate_retrieval."""

import json
import re
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
import yaml

from modeling_mllmreid.evaluation import REID_METRIC
from modeling_mllmreid.evaluation.metrics import evaluate_retrieval
from modeling_mllmreid.utils.errors import UserError


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`evaluate.load` offline, with every folder that it writes under tmp_path."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")
    original = evaluate.load
    monkeypatch.setattr(evaluate, "load", lambda path: original(path, cache_dir=tmp_path / "rows"))
    return evaluate.load


def problem(queries=20, gallery=70):
    rng = np.random.default_rng(0)
    qp, gp = rng.integers(0, 8, queries), rng.integers(0, 7, gallery)  # person 7 has no match
    qc, gc = rng.integers(-1, 3, queries), rng.integers(-1, 3, gallery)
    centers = rng.normal(size=(8, 6))
    q, g = (centers[ids] + rng.normal(size=(len(ids), 6)) for ids in (qp, gp))
    return q, g, qp, gp, qc, gc


def add_rows(metric, q, g, qp, gp, qc, gc, step=9):
    """Both sides' rows in small batches, the gallery first."""
    for split, *columns in (("gallery", g, gp, gc), ("query", q, qp, qc)):
        for start in range(0, len(columns[0]), step):
            features, persons, cameras = (column[start : start + step] for column in columns)
            metric.add_batch(features=features, person_ids=persons, camera_ids=cameras, splits=[split] * len(features))


NAMES = ("query_features", "gallery_features", "query_person_ids", "gallery_person_ids")
CAMERAS = ("query_camera_ids", "gallery_camera_ids")


def test_whole_arrays(load):
    metric, inputs = load(REID_METRIC), problem()
    for options in ({}, {"metric": "euclidean", "ranks": (1, 3), "ap": "trapezoid", "block_size": 4}):
        expected = evaluate_retrieval(*inputs, **options).to_dict()
        assert 0 < expected["num_valid"] < expected["num_queries"] and 0 < expected["mAP"] < 1
        assert metric.compute(**dict(zip(NAMES + CAMERAS, inputs, strict=True)), **options) == expected
    without = metric.compute(**dict(zip(NAMES, map(torch.tensor, inputs[:4]), strict=True)), query_camera_ids=None)
    assert without == evaluate_retrieval(*inputs[:4]).to_dict()
    assert json.loads(json.dumps(without)) == without


def test_rows_batch_by_batch(load, tmp_path):
    metric, inputs = load(REID_METRIC), problem()
    q, g, qp, gp, qc, gc = inputs
    options = {"metric": "euclidean", "ranks": (1, 3), "ap": "trapezoid"}
    expected = evaluate_retrieval(*inputs, **options).to_dict()
    name = np.vectorize("{:03}".format)
    for rows in (
        inputs,
        (torch.tensor(q), torch.tensor(g), torch.tensor(qp), torch.tensor(gp), torch.tensor(qc), torch.tensor(gc)),
        (q.tolist(), g.tolist(), qp.tolist(), gp.tolist(), qc.tolist(), gc.tolist()),
        (q, g, name(qp), name(gp), qc, gc),
    ):
        add_rows(metric, *rows)
        assert list((tmp_path / "rows").rglob("*.arrow"))
        assert metric.compute(**options) == expected
        assert not list((tmp_path / "rows").rglob("*.arrow"))
    padded = np.where(np.arange(len(gp)) % 2, name(gp), gp.astype(str))  # "007" and "7" are other persons
    add_rows(metric, q, g, name(qp), padded, name(qc), name(gc))
    assert metric.compute() == evaluate_retrieval(q, g, name(qp), padded, name(qc), name(gc)).to_dict()
    unknown = np.full(len(qp), -1), np.full(len(gp), -1)
    add_rows(metric, q, g, qp, gp, *unknown)
    assert metric.compute() == evaluate_retrieval(q, g, qp, gp).to_dict()


def test_the_cards_example(load, capsys):
    card = (Path(REID_METRIC) / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert {"evaluate", "metric"} <= set(front["tags"]) and front["title"] and front["description"]
    names = {}
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(code, names)
    assert capsys.readouterr().out == re.search(r"```text\n(.*?)```", card, re.DOTALL)[1]
    metric = names["metric"]
    assert metric.name == "reid_metric" and metric.citation in card
    assert "query_camera_ids" in metric.compute.__doc__ and "splits" in metric.add_batch.__doc__


def test_users_mistakes_are_named(load):
    metric, inputs = load(REID_METRIC), problem()
    q, g, qp, gp, qc, gc = inputs
    whole = dict(zip(NAMES + CAMERAS, inputs, strict=True))
    with pytest.raises(UserError, match="query_person_ids: 19 ids for 20 features"):
        metric.compute(**{**whole, "query_person_ids": qp[1:]})
    with pytest.raises(TypeError, match="missing .* 'query_features'"):
        metric.compute(gallery_features=g, query_person_ids=qp, gallery_person_ids=gp)
    add_rows(metric, *inputs)
    with pytest.raises(UserError, match=r"query_features: rows were added before: call compute\(\) on these first"):
        metric.compute(**whole)
    metric.add(features=q[0], person_ids=0, camera_ids=0, splits="probe")
    with pytest.raises(UserError, match="splits: unknown 'probe': use query or gallery"):
        metric.compute()
    add_rows(metric, *inputs)  # the wrong rows are gone
    assert metric.compute() == evaluate_retrieval(*inputs).to_dict()
    metric.add_batch(features=q, person_ids=qp, camera_ids=qc, splits=["query"] * len(q))
    with pytest.raises(UserError, match="20 queries and 0 gallery images: give at least one"):
        metric.compute()
