"""Boxes, arrows and colours of the drawn figures, on a white page whose width has 100 units."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

# A picture of 8 inches is shown 700 pixels wide, so that 9 points are about 11 pixels.
INCHES, DPI = 8.0, 180
INK, FAINT, LINE = "#1c2430", "#5b6470", "#7b8592"
TRAINED, FROZEN, DATA, FEATURE, LOSS = "#cfe1f7", "#e4e7eb", "#fff4cf", "#d3efd9", "#ffdcc7"
EDGES = {TRAINED: "#2b5fa8", FROZEN: "#8a939e", DATA: "#b8952b", FEATURE: "#1f9d45", LOSS: "#d4622a"}


def page(height: float) -> tuple[Figure, Axes]:
    """Returns a white figure and its axes: 100 units wide and `height` units high, from the lower left corner."""
    figure = Figure(figsize=(INCHES, INCHES * height / 100), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 100), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(
    axes: Axes,
    place: tuple[float, float, float, float],
    title: str,
    text: str = "",
    *,
    fill: str = DATA,
    size: float = 9.5,
) -> None:
    """Draws a box at (left, bottom, width, height) with a title and smaller text below it."""
    left, bottom, width, height = place
    shape = f"round,pad=0,rounding_size={min(1.2, height / 4)}"
    axes.add_patch(
        FancyBboxPatch((left, bottom), width, height, boxstyle=shape, facecolor=fill, edgecolor=EDGES[fill], lw=1.2)
    )
    middle, center = left + width / 2, bottom + height / 2
    lines = text.count("\n") + 1 if text else 0
    # Points to units: 8 inches are 100 units.
    title_height, line_height = size * 1.3 / 72 / INCHES * 100, (size - 1.5) * 1.3 / 72 / INCHES * 100
    top = center + (title_height + lines * line_height) / 2
    axes.text(middle, top - title_height / 2, title, ha="center", va="center", fontsize=size, color=INK, weight="bold")
    if text:
        axes.text(
            middle,
            top - title_height - lines * line_height / 2,
            text,
            ha="center",
            va="center",
            fontsize=size - 1.5,
            color=INK,
            linespacing=1.25,
        )


def arrow(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Draws a line through points, with an arrow head at the last one."""
    xs, ys = zip(*points, strict=True)
    if len(points) > 2:
        axes.plot(xs[:-1], ys[:-1], color=LINE, lw=1.5, solid_capstyle="round")
    axes.add_patch(
        FancyArrowPatch(
            points[-2],
            points[-1],
            arrowstyle="-|>",
            mutation_scale=11,
            lw=1.5,
            color=LINE,
            shrinkA=0,
            shrinkB=0,
            zorder=3,
        )
    )


def note(axes: Axes, place: tuple[float, float], text: str, *, size: float = 8.0, align: str = "left") -> None:
    """Writes small text at a place."""
    axes.text(*place, text, ha=align, va="center", fontsize=size, color=FAINT, linespacing=1.3)


def legend(axes: Axes, place: tuple[float, float], entries: Sequence[tuple[str, str]]) -> None:
    """Draws coloured squares with their meanings, one below the other."""
    left, top = place
    for number, (fill, meaning) in enumerate(entries):
        bottom = top - number * 3.4
        axes.add_patch(
            FancyBboxPatch(
                (left, bottom - 1),
                2.4,
                2,
                boxstyle="round,pad=0,rounding_size=0.4",
                facecolor=fill,
                edgecolor=EDGES[fill],
                lw=1.1,
            )
        )
        axes.text(left + 3.6, bottom, meaning, va="center", fontsize=8, color=INK)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure, as PNG or JPEG, without the versions of this machine."""
    figure.savefig(path, metadata={"Software": None} if path.suffix == ".png" else None)
    print(f"{path.name}: {path.stat().st_size:,} bytes")
