"""The report's pictures: rows and contrasts with their intervals, the curve over lambda, what was logged."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...evaluation.plots import COLORS, STYLES, figure_class
from ...evaluation.statistics import Interval
from ...utils.outputs import PNG_SOFTWARE, atomic_file
from .results import Tested

MARKS = ("o", "s", "D")


def draw_rows(path_png: str | os.PathLike[str], features: Mapping[str, Mapping[str, Interval]], *, title: str) -> None:
    """The mAP of every row in percent, a mark for each feature. features: feature -> row -> interval."""
    rows = list(next(iter(features.values())))
    figure, axes = _figure(0.34 * len(rows) + 1.6, title)
    for number, (feature, intervals) in enumerate(features.items()):
        _whiskers(axes, number, len(features), feature, [intervals[row] for row in rows])
    _name_rows(axes, rows, "mAP (%), 95 % interval over seeds and people")
    _save(figure, path_png)


def draw_contrasts(
    path_png: str | os.PathLike[str], features: Mapping[str, Mapping[str, Tested]], *, title: str
) -> None:
    """The differences of the contrasts in points of mAP, with their intervals. features: feature -> name -> tested."""
    names = list(next(iter(features.values())))
    figure, axes = _figure(0.42 * len(names) + 1.6, title)
    for number, (feature, tested) in enumerate(features.items()):
        _whiskers(axes, number, len(features), feature, [tested[name].contrast for name in names])
    axes.axvline(0, color="#555555", linewidth=1)
    _name_rows(axes, names, "difference in mAP (points), 95 % interval over seeds and people")
    _save(figure, path_png)


def draw_sweep(
    path_png: str | os.PathLike[str], features: Mapping[str, Mapping[float, Interval]], *, title: str
) -> None:
    """The mAP in percent over lambda. features: feature -> lambda -> interval."""
    figure, axes = _figure(4.4, title)
    for number, (feature, intervals) in enumerate(features.items()):
        across = sorted(intervals)
        low, mid, high = ([100 * getattr(intervals[x], end) for x in across] for end in ("low", "estimate", "high"))
        axes.plot(across, mid, label=feature, marker=MARKS[number], **_look(number))
        axes.fill_between(across, low, high, color=COLORS[number], alpha=0.12, linewidth=0)
    axes.set(xlabel="lambda: 0 is the language loss alone, 1 the ReID losses alone", ylabel="mAP (%)", ylim=(0, None))
    _save(figure, path_png)


def draw_logged(
    path_png: str | os.PathLike[str],
    panels: Mapping[str, Mapping[str, tuple[Sequence[int], Sequence[float]]]],
    units: Mapping[str, str],
    *,
    title: str,
) -> None:
    """Logged numbers over the steps, a panel each. panels: number -> row -> (steps, values); units: of each number."""
    columns = 2
    lines = -(-len(panels) // columns)
    figure = figure_class()(figsize=(10, 3.0 * lines + 1.2), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=12)
    rows = list(dict.fromkeys(row for panel in panels.values() for row in panel))
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (name, panel) in zip(grid, panels.items(), strict=False):
        for row, (steps, values) in panel.items():
            axes.plot(steps, values, label=row, **_look(rows.index(row)))
        axes.set_title(name, fontsize=10)
        axes.set(xlabel="optimiser step", ylabel=units[name])
        _plain(axes)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    handles = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    with atomic_file(path_png) as aside:
        figure.savefig(aside, format="png", metadata={"Software": PNG_SOFTWARE})


def _figure(height: float, title: str) -> tuple[Any, Any]:
    figure = figure_class()(figsize=(9, height), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _plain(axes: Any) -> None:
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _look(number: int) -> dict[str, Any]:
    return {"color": COLORS[number % len(COLORS)], "linestyle": STYLES[number // len(COLORS) % len(STYLES)]}


def _whiskers(axes: Any, number: int, of: int, label: str, intervals: Sequence[Any]) -> None:
    """Marks with whiskers on rows 0, 1, ... from above, a little apart for each of so many features."""
    middle = [100 * (i.estimate if isinstance(i, Interval) else i.difference) for i in intervals]
    ends = [[m - 100 * i.low for m, i in zip(middle, intervals, strict=True)]]
    ends.append([100 * i.high - m for m, i in zip(middle, intervals, strict=True)])
    at = [row + 0.22 * (number - (of - 1) / 2) for row in range(len(intervals))]
    axes.errorbar(middle, at, xerr=ends, fmt=MARKS[number], color=COLORS[number], label=label, capsize=2, markersize=4)


def _name_rows(axes: Any, names: Sequence[str], across: str) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(across)


def _save(figure: Any, path_png: str | os.PathLike[str]) -> None:
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    with atomic_file(path_png) as aside:
        figure.savefig(aside, format="png", metadata={"Software": PNG_SOFTWARE})
