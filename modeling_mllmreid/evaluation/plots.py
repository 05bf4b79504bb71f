"""Plots of results: CMC, precision-recall, average precision, ROC. Needs matplotlib, the extra `plots`."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..utils.errors import UserError
from ..utils.outputs import PNG_SOFTWARE, atomic_file
from .metrics import RetrievalMetrics, cmc_curve, precision_recall_curve

# Okabe and Ito's palette: colour-blind readers can distinguish it. The line styles are distinct in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":")
MAX_RANK, BINS, SMALLEST_FPR = 50, 20, 1e-6
SHARES = (-0.02, 1.02)  # so that the frame does not cover lines at 0 and 1


def draw_curves(path_png: str | os.PathLike[str], results: Mapping[str, RetrievalMetrics], *, title: str) -> None:
    """Draws the CMC, precision-recall, and the histogram of average precision of named results.

    Raises UserError if matplotlib is not installed.
    """
    figure, (cmc, recall, histogram) = _figure(3, title)
    edges = np.linspace(0, 1, BINS + 1)
    for number, (name, metrics) in enumerate(results.items()):
        look = _look(number)
        cmc.plot(np.arange(1, MAX_RANK + 1), cmc_curve(metrics, MAX_RANK), label=name, **look)
        recall.plot(*precision_recall_curve(metrics), label=name, **look)
        counts, _ = np.histogram(metrics.average_precision[~np.isnan(metrics.average_precision)], edges)
        histogram.stairs(counts / counts.sum(), edges, label=name, **look)
    _label(cmc, "CMC", "rank", "share of queries with a match")
    _label(recall, "Precision and recall", "recall", "interpolated precision")
    _label(histogram, "Average precision of the queries", "average precision", "share of queries")
    cmc.set(xlim=(1, MAX_RANK), ylim=SHARES, xticks=(1, 10, 20, 30, 40, 50))
    recall.set(xlim=(0, 1), ylim=SHARES)
    histogram.set(xlim=(-0.01, 1.01), ylim=(0, None))
    _save(figure, cmc, path_png)


def draw_roc(
    path_png: str | os.PathLike[str], curves: Mapping[str, tuple[np.ndarray, np.ndarray]], *, title: str
) -> None:
    """Draws the ROC of verification for named (FPR, TPR) arrays, with FPR on a logarithmic axis.

    The axis starts at the smallest FPR above 0, limited to 1e-6 to 0.01. Raises UserError if matplotlib is not
    installed.
    """
    figure, (roc,) = _figure(1, title)
    smallest = 1.0
    for number, (name, (false, true)) in enumerate(curves.items()):
        smallest = min(smallest, false[false > 0].min(initial=1.0))
        # FPR 0 has no place on a logarithmic axis. A collapsed model has a single point, which needs a marker.
        across = np.maximum(false, SMALLEST_FPR / 10)
        roc.plot(across, true, label=name, marker="o" if len(false) == 1 else "", **_look(number))
    _label(roc, "Verification", "false positive rate", "true positive rate")
    roc.set(xscale="log", xlim=(min(max(smallest, SMALLEST_FPR), 0.01), 1.2), ylim=SHARES)
    _save(figure, roc, path_png)


def figure_class() -> Any:
    """Returns matplotlib's Figure. Raises UserError if it is not installed: call this before long work."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("pictures need matplotlib, which is not installed: pip install 'mllmreid[plots]'") from error
    return Figure


def _figure(panels: int, title: str) -> tuple[Any, tuple[Any, ...]]:
    """Creates a figure with panels side by side, without matplotlib's global state."""
    figure = figure_class()(figsize=(4.6 * panels + 0.4, 4.4), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=12)
    return figure, tuple(figure.subplots(1, panels, squeeze=False)[0])


def _look(number: int) -> dict[str, Any]:
    """Returns the line style of a result by its number."""
    return {"color": COLORS[number % len(COLORS)], "linestyle": STYLES[number % len(STYLES)], "linewidth": 1.8}


def _label(axes: Any, title: str, across: str, up: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _save(figure: Any, named: Any, path_png: str | os.PathLike[str]) -> None:
    """Writes the figure with one legend below it, with the lines of the named axes."""
    handles, names = named.get_legend_handles_labels()
    columns = len(figure.axes) + 1  # long names fit
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
    with atomic_file(path_png) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": PNG_SOFTWARE})
