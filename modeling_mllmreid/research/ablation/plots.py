"""The pictures of the report: variants and contrasts with their intervals, the curve over lambda, logged values."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...evaluation.plots import COLORS, STYLES, figure_class
from ...evaluation.statistics import Interval
from ...utils.outputs import PNG_SOFTWARE, atomic_file
from .results import Tested

MARKS = ("o", "s", "D")


def draw_variants(
    path_png: str | os.PathLike[str], features: Mapping[str, Mapping[str, Interval]], *, title: str
) -> None:
    """Draws the mAP of every variant in percent, a mark for each feature. features: feature -> variant -> interval."""
    variants = list(next(iter(features.values())))
    figure, axes = _figure(0.34 * len(variants) + 1.6, title)
    for number, (feature, intervals) in enumerate(features.items()):
        _whiskers(axes, number, len(features), feature, [intervals[variant] for variant in variants])
    _name_lines(axes, variants, "mAP (%), 95 % interval over seeds and people")
    _save(figure, path_png)


def draw_contrasts(
    path_png: str | os.PathLike[str], features: Mapping[str, Mapping[str, Tested]], *, title: str
) -> None:
    """Draws the contrasts in points of mAP, with their intervals. features: feature -> contrast -> test."""
    names = list(next(iter(features.values())))
    figure, axes = _figure(0.42 * len(names) + 1.6, title)
    for number, (feature, tested) in enumerate(features.items()):
        _whiskers(axes, number, len(features), feature, [tested[name].contrast for name in names])
    axes.axvline(0, color="#555555", linewidth=1)
    _name_lines(axes, names, "difference in mAP (points), 95 % interval over seeds and people")
    _save(figure, path_png)


def draw_sweep(
    path_png: str | os.PathLike[str], features: Mapping[str, Mapping[float, Interval]], *, title: str
) -> None:
    """Draws the mAP in percent over lambda. features: feature -> lambda -> interval."""
    figure, axes = _figure(4.4, title)
    for number, (feature, intervals) in enumerate(features.items()):
        lambdas = sorted(intervals)
        low, mid, high = ([100 * getattr(intervals[x], end) for x in lambdas] for end in ("low", "estimate", "high"))
        axes.plot(lambdas, mid, label=feature, marker=MARKS[number], **_line_style(number))
        axes.fill_between(lambdas, low, high, color=COLORS[number], alpha=0.12, linewidth=0)
    axes.set(xlabel="lambda: 0 is the language loss alone, 1 the ReID losses alone", ylabel="mAP (%)", ylim=(0, None))
    _save(figure, path_png)


def draw_logged(
    path_png: str | os.PathLike[str],
    panels: Mapping[str, Mapping[str, tuple[Sequence[int], Sequence[float]]]],
    units: Mapping[str, str],
    *,
    title: str,
) -> None:
    """Draws logged values over the steps, one panel for each.

    panels: name -> variant -> (steps, values); units: name -> unit.
    """
    columns = 2
    num_lines = -(-len(panels) // columns)
    figure = figure_class()(figsize=(10, 3.0 * num_lines + 1.2), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=12)
    variants = list(dict.fromkeys(variant for panel in panels.values() for variant in panel))
    grid = figure.subplots(num_lines, columns, squeeze=False).ravel()
    for axes, (name, panel) in zip(grid, panels.items(), strict=False):
        for variant, (steps, values) in panel.items():
            axes.plot(steps, values, label=variant, **_line_style(variants.index(variant)))
        axes.set_title(name, fontsize=10)
        axes.set(xlabel="optimiser step", ylabel=units[name])
        _plain(axes)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    handles = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    with atomic_file(path_png) as partial:
        figure.savefig(partial, format="png", metadata={"Software": PNG_SOFTWARE})


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


def _line_style(number: int) -> dict[str, Any]:
    return {"color": COLORS[number % len(COLORS)], "linestyle": STYLES[number // len(COLORS) % len(STYLES)]}


def _whiskers(axes: Any, number: int, count: int, label: str, intervals: Sequence[Any]) -> None:
    """Draws marks with whiskers on lines 0, 1, ... from the top, shifted for feature `number` of `count`."""
    middle = [100 * (i.estimate if isinstance(i, Interval) else i.difference) for i in intervals]
    ends = [[m - 100 * i.low for m, i in zip(middle, intervals, strict=True)]]
    ends.append([100 * i.high - m for m, i in zip(middle, intervals, strict=True)])
    at = [line + 0.22 * (number - (count - 1) / 2) for line in range(len(intervals))]
    axes.errorbar(middle, at, xerr=ends, fmt=MARKS[number], color=COLORS[number], label=label, capsize=2, markersize=4)


def _name_lines(axes: Any, names: Sequence[str], label: str) -> None:
    """Writes the names at the lines, and the label below the axis."""
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(label)


def _save(figure: Any, path_png: str | os.PathLike[str]) -> None:
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    with atomic_file(path_png) as partial:
        figure.savefig(partial, format="png", metadata={"Software": PNG_SOFTWARE})
