"""Results by camera, the worst queries, and the matrix of training sets against test sets."""

import json

import numpy as np
import pytest

from modeling_mllmreid.evaluation.metrics import evaluate_retrieval
from modeling_mllmreid.evaluation.report import by_camera, data_set_matrix, subset, worst_queries
from modeling_mllmreid.utils.errors import UserError


def problem():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 9, 40), rng.integers(0, 8, 90), rng.integers(-1, 3, 40), rng.integers(0, 3, 90)
    return rng.normal(size=(40, 6)), rng.normal(size=(90, 6)), *ids


def test_by_camera_is_the_evaluation_of_its_queries():
    q, g, qp, gp, qc, gc = problem()
    whole = evaluate_retrieval(q, g, qp, gp, qc, gc)
    rows = by_camera(whole, qc)
    assert list(rows) == [-1, 0, 1, 2]
    for camera, row in rows.items():
        some = qc == camera
        assert row.to_dict() == evaluate_retrieval(q[some], g, qp[some], gp, qc[some], gc).to_dict()
    total = sum(row.mAP * row.num_valid for row in rows.values())
    assert total / whole.num_valid == pytest.approx(whole.mAP)
    lost = subset(whole, np.flatnonzero(qp == 8))
    assert np.isnan(lost.mAP) and lost.num_valid == 0 < lost.num_queries and lost.to_dict()["rank1"] is None


def test_worst_queries():
    q, g, qp, gp, qc, gc = problem()
    whole = evaluate_retrieval(q, g, qp, gp, qc, gc)
    worst = worst_queries(whole, 5)
    others = np.setdiff1d(np.flatnonzero(qp != 8), worst)
    assert len(worst) == 5 and whole.average_precision[worst].max() <= whole.average_precision[others].min()
    assert len(worst_queries(whole, 1000)) == whole.num_valid
    equal = evaluate_retrieval(np.ones((3, 2)), np.ones((4, 2)), [1, 1, 1], [1, 2, 2, 1])
    assert worst_queries(equal, 2).tolist() == [0, 1]


def report(path, trained_on, tested_on, score):
    metrics = {"llm": {"mAP": score, "rank1": score + 0.1}, "vision": {"mAP": 0.0, "rank1": 0.0}}
    content = {"trained_on": trained_on, "tested_on": tested_on, "test_feature": "llm", "metrics": metrics}
    path.write_text(json.dumps(content))
    return path


def test_matrix(tmp_path):
    files = [
        report(tmp_path / "a.json", ["market"], ["market"], 0.8),
        report(tmp_path / "b.json", ["market"], ["msmt"], 0.25),
        report(tmp_path / "c.json", ["cuhk", "msmt"], ["market"], 0.5),
        report(tmp_path / "d.json", [], ["msmt"], 0.0),
    ]
    matrix = data_set_matrix(files)
    lines = matrix.format().splitlines()
    assert lines[0].split() == ["trained", "on", "\\", "tested", "on", "market", "msmt"]
    assert lines[2].split() == ["cuhk", "+", "msmt", "50.0", "/", "60.0", "-"]
    assert lines[3].split() == ["market", "80.0", "/", "90.0", "25.0", "/", "35.0"]
    assert lines[4].split()[0] == "nothing"
    cell = {"mAP": 0.25, "rank1": 0.35, "feature": "llm", "file": str(files[1])}
    assert matrix.to_dict()["market"]["msmt"] == cell and "msmt" not in matrix.to_dict()["cuhk + msmt"]


def test_matrix_mistakes(tmp_path):
    first = report(tmp_path / "a.json", ["market"], ["market"], 0.8)
    second = report(tmp_path / "b.json", ["market"], ["market"], 0.7)
    with pytest.raises(UserError, match="b.json and .*a.json: both trained on market and tested on market: give one"):
        data_set_matrix([first, second])
    (tmp_path / "other.json").write_text('{"loss": 1}')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "nan.json").write_text(first.read_text().replace("0.8", "NaN"))
    (tmp_path / "feature.json").write_text(first.read_text().replace('"test_feature": "llm"', '"test_feature": "x"'))
    report(tmp_path / "percent.json", ["market"], ["market"], 80.0)
    for name in ("absent.json", "other.json", "deep.json", "nan.json", "feature.json", "percent.json"):
        with pytest.raises(UserError, match=f"{name}: no metrics of the evaluate command"):
            data_set_matrix([tmp_path / name])
