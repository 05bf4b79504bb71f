"""The table and the JSON of metrics."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from modeling_mllmreid.evaluation.metrics import evaluate_retrieval
from modeling_mllmreid.evaluation.report import format_table
from modeling_mllmreid.evaluation.statistics import Interval
from modeling_mllmreid.utils.outputs import write_json

EYE = np.eye(4, dtype=np.float32)


def test_table_is_percent_with_one_decimal():
    some = evaluate_retrieval(EYE[:3], EYE, [0, 1, 9], [0, 2, 1, 3], ranks=(1, 20))
    none = replace(some, mAP=math.nan, cmc={5: math.nan}, mINP=math.nan, num_queries=1, num_valid=0)
    assert none.to_dict() == {"mAP": None, "rank5": None, "mINP": None, "num_queries": 1, "num_valid": 0}
    lines = format_table([("ours", some), ("a longer name", none)]).splitlines()
    assert lines[0].split() == ["mAP", "Rank-1", "Rank-5", "Rank-20", "mINP", "queries"]
    # Query 1 ties its match with two strangers beyond the nearest: rank 4, precision 1/4.
    assert lines[2].split() == ["ours", "62.5", "50.0", "-", "100.0", "62.5", "2", "of", "3"]
    assert lines[3].split() == ["a", "longer", "name", "-", "-", "-", "-", "-", "0", "of", "1"]
    assert len({len(line) for line in lines[:4]}) == 1
    assert "percent, one decimal" in lines[-1]


def test_intervals_stand_behind_the_values():
    some = evaluate_retrieval(EYE[:3], EYE, [0, 1, 9], [0, 2, 1, 3], ranks=(1, 10))
    known = {"ours": {"mAP": Interval(0.625, 0.25, 1.0, 0.9), "rank1": Interval(0.5, 0.0, 1.0, 0.9)}}
    lines = format_table([("ours", some), ("other", some)], known).splitlines()
    assert "62.5 [25.0, 100.0]  50.0 [0.0, 100.0]" in lines[2] and "[" not in lines[3]
    assert len({len(line) for line in lines[:4]}) == 1 and "90% interval over people" in lines[-1]


def test_json_is_whole_or_the_old_one(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    metrics = evaluate_retrieval(EYE, EYE, range(4), range(4))
    write_json(path, {"Wörter": metrics.to_dict()})
    assert json.loads(path.read_text(encoding="utf-8"))["Wörter"] == {
        **{"mAP": 1.0, "rank1": 1.0, "rank5": 1.0, "rank10": 1.0, "mINP": 1.0},
        **{"num_queries": 4, "num_valid": 4},
    }
    old = path.read_bytes()
    with pytest.raises(ValueError):
        write_json(path, {"loss": float("nan")})
    assert path.read_bytes() == old and [file.name for file in path.parent.iterdir()] == ["metrics.json"]
