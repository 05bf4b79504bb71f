"""ROC, EER and TPR at FPR against all pairs compared at every threshold."""

import json

import numpy as np
import pytest
import torch

from modeling_mllmreid.evaluation import verification as module
from modeling_mllmreid.evaluation.verification import verification_from_blocks
from modeling_mllmreid.retrieval import ranking
from modeling_mllmreid.retrieval.matching import SamePerson
from modeling_mllmreid.utils.errors import UserError


def problem(seed, queries=30, gallery=120, persons=9, cameras=3, shift=0.1):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, persons, queries), rng.integers(0, persons, gallery)
    ids += rng.integers(-1, cameras, queries), rng.integers(-1, cameras, gallery)
    matrix = rng.normal(0.5, 0.1, (queries, gallery)).astype(np.float32)
    matrix[ids[0][:, None] == ids[1][None]] -= shift
    return matrix, ids


def pairs(matrix, ids):
    qp, gp, qc, gc = ids
    same = qp[:, None] == gp[None]
    dropped = same & (qc[:, None] == gc[None]) & (qc[:, None] != -1)
    return matrix[same & ~dropped], matrix[~same]


def bins(distances):
    return module._bins(torch.from_numpy(distances)).numpy()


def parts(matrix):
    return [(slice(10, len(matrix)), matrix[10:]), (slice(0, 10), matrix[:10])]


@pytest.mark.parametrize("seed, shift", [(0, 0.1), (1, 0.3), (2, 0.0), (3, -0.2)])
def test_equals_every_threshold(seed, shift, monkeypatch):
    monkeypatch.setattr(ranking, "PART_IMAGES", 50)
    matrix, ids = problem(seed, shift=shift)
    genuine, impostor = pairs(matrix, ids)
    got = verification_from_blocks(parts(matrix), SamePerson(*ids), fprs=(0.3, 0.05, 1e-2, 1e-3, 1e-5))
    assert (got.num_genuine, got.num_impostor) == (len(genuine), len(impostor))
    thresholds = np.sort(matrix.ravel())
    false = np.array([(impostor <= t).mean() for t in thresholds])
    true = np.array([(genuine <= t).mean() for t in thresholds])
    for fpr in (0.3, 0.05, 1e-2, 1e-3):
        assert got.tpr[fpr] == max(true[false <= fpr], default=0)
        threshold = got.thresholds[fpr]
        assert (impostor <= threshold).mean() <= fpr and (genuine <= threshold).mean() == got.tpr[fpr]
        assert (impostor <= np.nextafter(np.float32(threshold), np.float32(9))).mean() > fpr
    assert np.isnan(got.tpr[1e-5]) and got.to_dict()["tpr_at_fpr"]["1e-05"] is None  # 1 in 100,000 of 3,000 pairs
    crossing = np.argmin(np.abs(false - (1 - true)))
    assert got.eer == pytest.approx((false[crossing] + 1 - true[crossing]) / 2, abs=2 / len(genuine))
    fpr, tpr = got.roc
    assert len(fpr) <= 256 and fpr[-1] == tpr[-1] == 1 and (np.diff(fpr) > 0).all() and (np.diff(tpr) >= 0).all()
    curve = np.column_stack([false, true])
    for point in np.column_stack([fpr, tpr])[::10]:
        assert np.isclose(curve, point, atol=1e-9).all(1).any()  # a threshold's own rates
        assert point[1] >= max(true[false <= point[0] + 1e-9]) - 2 / len(genuine)
    assert json.loads(json.dumps(got.to_dict())) == {
        "eer": got.eer,
        "tpr_at_fpr": {"1e-05": None, **{f"{fpr:g}": got.tpr[fpr] for fpr in (0.3, 0.05, 0.01, 0.001)}},
        "threshold_at_fpr": {"1e-05": None, **{f"{fpr:g}": got.thresholds[fpr] for fpr in (0.3, 0.05, 0.01, 0.001)}},
        "num_genuine": len(genuine),
        "num_impostor": len(impostor),
        "roc": {"fpr": fpr.tolist(), "tpr": tpr.tolist()},
    }


def test_known_ends():
    ids = SamePerson([1, 2], [1, 2])
    score = lambda matrix: verification_from_blocks([(slice(0, 2), np.array(matrix))], ids, fprs=(0.5,))  # noqa: E731
    perfect = score([[0.1, 0.9], [0.8, 0.2]])
    assert perfect.eer == 0 and perfect.tpr[0.5] == 1
    assert score([[0.5, 0.5], [0.5, 0.5]]).eer == 0.5  # collapsed
    assert score([[0.5, 0.5], [0.5, 0.5]]).tpr[0.5] == 0
    assert [side.tolist() for side in score([[0.1, 0.9], [0.9, 0.2]]).roc] == [[0, 1], [1, 1]]
    assert [side.tolist() for side in score([[0.5, 0.5], [0.5, 0.5]]).roc] == [[1], [1]]
    worst = score([[0.9, 0.1], [0.1, 0.8]])
    assert worst.eer == 1 and worst.tpr[0.5] == 0
    assert score([[-1.0, -0.5], [-0.0, -1.0]]).eer == 0  # similarities with their sign turned


def test_equal_error_lies_on_the_line_between_two_thresholds():
    error = lambda false, true: module._equal_error(np.array(false), np.array(true))  # noqa: E731
    # Missed are 0.8, 0.5, 0.1, 0: from 0.1 against 0.5 to 0.4 against 0.1.
    assert error([0, 0.1, 0.4, 1], [0.2, 0.5, 0.9, 1]) == pytest.approx(0.1 + 4 / 7 * 0.3)
    assert error([0.2, 1], [1, 1]) == pytest.approx(1 / 6)  # before the first threshold nothing is accepted
    assert error([0.1, 0.3, 0.5], [0.1, 0.7, 0.8]) == pytest.approx(0.3)


def test_the_curves_points_are_spread_over_the_logarithm():
    false, true = np.cumsum(np.full(5000, 1 / 5000)), np.linspace(0.2, 1, 5000)
    wanted = np.geomspace(1 / 5000, 1, 255)
    last = [np.flatnonzero(false <= rate * (1 + 1e-9)).max() for rate in wanted]
    fpr, tpr = module._thinned(false, true)
    np.testing.assert_allclose(fpr, false[np.unique(last)])
    np.testing.assert_allclose(tpr, true[np.unique(last)])
    fpr, tpr = module._thinned(np.array([0, 0, 0.25, 0.25, 1]), np.array([0.1, 0.3, 0.5, 0.6, 1]))
    assert (fpr.tolist(), tpr.tolist()) == ([0, 0.25, 1], [0.3, 0.6, 1])
    fpr, tpr = module._thinned(np.array([0.25, 0.25, 1]), np.array([0.1, 0.6, 1]))
    assert (fpr.tolist(), tpr.tolist()) == ([0.25, 1], [0.6, 1])
    fpr, tpr = module._thinned(np.array([0.5, 1]), np.array([0.7, 1]))
    assert (fpr.tolist(), tpr.tolist()) == ([0.5, 1], [0.7, 1])


@pytest.mark.parametrize("kept", [1, 40, 999, 1000, 3000])
def test_the_smallest_impostors_of_a_stream(kept):
    """The distances of the queries' own persons, which are the smallest, are none of them."""
    distances = np.random.default_rng(kept).permutation(np.repeat(np.arange(500, dtype=np.float32), 2))
    # Two more columns: of the persons 3 and 4, at distance -1 of themselves.
    rows = np.column_stack([distances.reshape(20, 50), np.full((20, 2), 600, np.float32)])
    rows[[3, 4], [50, 51]] = -1
    gallery_persons = [*[99] * 50, 3, 4]
    impostors = module._Impostors(kept)
    for start in range(0, 20, 5):
        rule = SamePerson(range(start, start + 5), gallery_persons)
        for part in ranking.parts([(slice(0, 5), rows[start : start + 5])], rule):
            impostors.add(part)
    expected = np.sort(np.append(distances, np.full(38, 600)))
    assert impostors.smallest().tolist() == expected[:kept].tolist()
    counts = impostors.counts()
    assert counts.sum() == 1038 and counts[bins(np.float32([7]))] == 2 and counts[bins(np.float32([-1]))] == 0


def test_without_rates_or_queries():
    ids = SamePerson([1, 2], [1, 2])
    got = verification_from_blocks([(slice(0, 2), np.eye(2))], ids, fprs=())
    assert got.tpr == got.thresholds == {} and got.eer == 1
    few = verification_from_blocks([(slice(0, 2), np.eye(2))], ids, fprs=(0.1,))
    assert np.isnan(few.tpr[0.1]) and np.isnan(few.thresholds[0.1])
    with pytest.raises(UserError, match="no query has a match: 0 queries"):
        verification_from_blocks([], SamePerson([], [1]))


def test_bins_ascend_with_the_distances():
    values = np.sort(np.float32([-np.inf, -3.0, -1e-20, -0.0, 0.0, 1e-30, 0.5, 0.50002, 0.6, 2.0, np.inf]))
    found = bins(values)
    assert (np.diff(found) >= 0).all() and found[0] >= 0 and found[-1] < module.BINS
    assert found[3] == found[4] and found[6] < found[8]
    assert len(np.unique(bins(np.float32([-2e-5, -1e-5, 1e-5, 2e-5])))) == 4  # finer near 0


def test_mistakes():
    with pytest.raises(UserError, match="rate: 0 is not between 0 and 1: use a false positive rate such as"):
        verification_from_blocks([], SamePerson([1], [1]), fprs=(0,))
    with pytest.raises(UserError, match="no query has a match"):
        verification_from_blocks([(slice(0, 1), np.ones((1, 1)))], SamePerson([1], [2]))
    with pytest.raises(UserError, match="no impostor pair"):
        verification_from_blocks([(slice(0, 1), np.ones((1, 2)))], SamePerson([1], [1, 1]))
