"""Charts as inline SVG: the parts that every page draws with, and lines in a frame. No files, no network.

Colours are CSS classes (`s0`, `s1`, ... for lines, with `d1`, `d2`, `d3` for dashes; `grid`, `tick`) that
data/pages/page.css defines, for light and for dark.
"""

import html
import itertools
from collections.abc import Sequence

from markupsafe import Markup

Point = tuple[float, float]
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 34
COLOURS, DASHES = 6, 4  # a seventh series has the first one's colour and is dashed; more than 24 look alike again
LARGEST = 1e100  # what is beyond is not drawn: the span of an axis must be a finite number, too


def drawable(value: float) -> bool:
    """Whether a number has a place on an axis: NaN, infinities and what is beyond LARGEST have none."""
    return abs(value) <= LARGEST


def number(value: float) -> str:
    text = f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return "0" if float(text) == 0 else text


def look(series: int) -> str:
    """The CSS classes of the n-th series from 0: a colour, and from the seventh on a dash pattern."""
    dash = series // COLOURS % DASHES
    return f"s{series % COLOURS}" + (f" d{dash}" if dash else "")


def opening(width: int, height: int, title: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">'


def grid(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{_at(x1)}" y1="{_at(y1)}" x2="{_at(x2)}" y2="{_at(y2)}"/>'


def tick(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text class="tick" x="{_at(x)}" y="{_at(y)}" text-anchor="{anchor}">{html.escape(text)}</text>'


def closed(parts: Sequence[str], names: Sequence[str], notes: Sequence[str] = ()) -> Markup:
    """The parts, from `opening` on, as a whole SVG with its legend: a key for each series, its note in small behind."""
    keys = []
    for i, name in enumerate(names):
        note = f" <small>({notes[i]})</small>" if notes else ""
        keys.append(
            f'<span class="key"><svg viewBox="0 0 18 8" aria-hidden="true"><line class="line {look(i)}" x1="0" '
            f'y1="4" x2="18" y2="4"/></svg>{html.escape(name)}{note}</span>'
        )
    return Markup(f'{"".join(parts)}</svg><div class="keys">{"".join(keys)}</div>')


def draw_lines(
    lines: Sequence[tuple[str, Sequence[Point]]],
    *,
    title: str,
    x_label: str,
    x_range: Point,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    notes: Sequence[str] = (),
    left: int = LEFT,
    middle: float = (LEFT + WIDTH - RIGHT) / 2,
) -> Markup:
    """Lines in a frame with legend; a line of one point is a dot, and one with a y that is not `drawable` has a gap.

    Args:
        lines: (name, [(x, y), ...]) each, at least one point; every x is finite.
        x_range: the x at the frame's left and right; y_ticks: ascending, the first and last are its bottom and top.
        notes: of the legend, one a line, or none.
        left: width in pixels that the y ticks have; middle: the pixel that x_label stands around.
    """
    (x0, x1), y0, y1 = x_range, y_ticks[0], y_ticks[-1]

    def at(x: float, y: float) -> Point:
        return (
            left + (x - x0) / (x1 - x0) * (WIDTH - left - RIGHT),
            HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM),
        )

    out = [opening(WIDTH, HEIGHT, title)]
    for y in y_ticks:
        _, py = at(x0, y)
        out += [grid(left, py, WIDTH - RIGHT, py), tick(left - 5, py + 4, number(y), "end")]
    for x in x_ticks:
        px, _ = at(x, y0)
        out.append(tick(px, HEIGHT - BOTTOM + 15, number(x), "end" if px > WIDTH - 24 else "middle"))
    out.append(tick(middle, HEIGHT - 3, x_label))
    for i, (_, points) in enumerate(lines):
        for whole, piece in itertools.groupby(points, lambda point: drawable(point[1])):
            places = [at(*point) for point in piece] if whole else []
            if len(places) == 1:
                ((x, y),) = places
                out.append(f'<circle class="dot {look(i)}" cx="{_at(x)}" cy="{_at(y)}" r="3"/>')
            elif places:
                drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
                out.append(f'<polyline class="line {look(i)}" points="{drawn}"/>')
    return closed(out, [name for name, _ in lines], notes)


def _at(pixel: float) -> str:
    return f"{pixel:.1f}" if isinstance(pixel, float) else str(pixel)
