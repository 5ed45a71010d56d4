"""Line charts as SVG, drawn here so that a report needs nothing from anywhere."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 10, 38
COLOURS = 5

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """A line; it has a gap where a y is None."""

    name: str
    points: Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class Axis:
    """`ticks`: places and their texts; empty: round numbers are found."""

    label: str
    logarithmic: bool = False
    ticks: Sequence[tuple[float, str]] = ()


def chart(title: str, series: Sequence[Series], x: Axis, y: Axis) -> str:
    """A figure with a legend; a word where there is nothing to draw."""
    drawn = [Series(each.name, [p for p in each.points if _drawable(p, x, y)]) for each in series]
    xs = [point[0] for each in drawn for point in each.points]
    ys = [point[1] for each in drawn for point in each.points if point[1] is not None]
    head = f"<figure><figcaption>{escape(title)}</figcaption>"
    if not ys:
        return f"{head}<p>nothing was measured</p></figure>"
    across = _scale(x, min(xs), max(xs), LEFT, WIDTH - RIGHT, from_zero=False)
    up = _scale(y, min(ys), max(ys), HEIGHT - BOTTOM, TOP, from_zero=True)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for value, text in up.ticks:
        at = up.place(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for value, text in across.ticks:
        at = across.place(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{escape(text)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x.label)}</text>')
    turned = f'x="12" y="{TOP + 6}" transform="rotate(-90 12 {TOP + 6})" text-anchor="end"'
    parts.append(f"<text {turned}>{escape(y.label)}</text>")
    for number, each in enumerate(drawn):
        for line in _lines(each.points):
            path = " ".join(f"{across.place(at):.1f},{up.place(value):.1f}" for at, value in line)
            parts.append(f'<polyline class="course c{number % COLOURS}" points="{path}"/>')
            if len(line) == 1:
                (at, value) = line[0]
                place = f'cx="{across.place(at):.1f}" cy="{up.place(value):.1f}"'
                parts.append(f'<circle class="dot c{number % COLOURS}" {place} r="2.5"/>')
    parts.append("</svg>")
    names = "".join(
        f'<li><svg viewBox="0 0 28 10"><polyline class="course c{number % COLOURS}" points="0,5 28,5"/></svg>'
        f"{escape(each.name)}</li>"
        for number, each in enumerate(drawn)
    )
    return f"{head}{''.join(parts)}<ul>{names}</ul></figure>"


@dataclass(frozen=True, slots=True)
class _Scale:
    place: Callable[[float], float]
    ticks: Sequence[tuple[float, str]]


def _scale(axis: Axis, low: float, high: float, start: float, end: float, *, from_zero: bool) -> _Scale:
    if axis.logarithmic:
        bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(high))
        top = max(top, bottom + 1)
        ticks = axis.ticks or [(10.0**power, f"{10.0**power:g}") for power in range(bottom, top + 1)]

        def place_log(value: float) -> float:
            return start + (math.log10(value) - bottom) / (top - bottom) * (end - start)

        return _Scale(place_log, ticks)
    if from_zero:
        low = min(0.0, low)
    if high <= low:
        high = low + 1
    step = _round_step((high - low) / 5)
    if from_zero:
        high = math.ceil(high / step) * step
    ticks = axis.ticks or [
        (number * step, f"{number * step:g}")
        for number in range(math.ceil(low / step), int(high / step + 1e-9) + 1)
    ]

    def place(value: float) -> float:
        return start + (value - low) / (high - low) * (end - start)

    return _Scale(place, ticks)


def _round_step(about: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(about))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= about)


def _drawable(point: tuple[float, float | None], x: Axis, y: Axis) -> bool:
    at, value = point
    return not (x.logarithmic and at <= 0) and not (y.logarithmic and value is not None and value <= 0)


def _lines(points: Sequence[tuple[float, float | None]]) -> list[list[Point]]:
    lines: list[list[Point]] = [[]]
    for at, value in points:
        if value is None:
            lines.append([])
        else:
            lines[-1].append((at, value))
    return [line for line in lines if line]
