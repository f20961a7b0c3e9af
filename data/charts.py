"""Charts as inline SVG: the parts that every page draws with, and lines in a frame. No files, no network.

Colours are CSS classes (`s0`, `s1`, ... for lines; `grid`, `tick`) that data/pages/page.css defines, for light and for
dark.
"""

import html
from collections.abc import Sequence

from markupsafe import Markup

Point = tuple[float, float]
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 34
COLOURS = 6  # series with a colour of their own; a seventh has the first one's


def number(value: float) -> str:
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return "0" if float(text) == 0 else text


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
            f'<span class="key"><svg viewBox="0 0 18 8" aria-hidden="true"><line class="line s{i % COLOURS}" x1="0" '
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
    """Lines in a frame with legend; a line of one point is a dot.

    Args:
        lines: (name, [(x, y), ...]) each, at least one point, all finite.
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
        drawn = [f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points)]
        if len(drawn) == 1:
            x, y = at(*points[0])
            out.append(f'<circle class="dot s{i % COLOURS}" cx="{_at(x)}" cy="{_at(y)}" r="3"/>')
        else:
            out.append(f'<polyline class="line s{i % COLOURS}" points="{" ".join(drawn)}"/>')
    return closed(out, [name for name, _ in lines], notes)


def _at(pixel: float) -> str:
    return f"{pixel:.1f}" if isinstance(pixel, float) else str(pixel)
