"""Pictures of a report: line and interval charts, and the colour marks of a teacher's text. No files, no network.

The marks' colours are CSS classes (`ok`, `bad`, `unsure`) that data/pages/page.css defines, for light and for dark.
"""

import html
import math
from collections.abc import Sequence

from markupsafe import Markup

from data.charts import (
    BOTTOM,
    LARGEST,
    RIGHT,
    TOP,
    WIDTH,
    Point,
    closed,
    draw_lines,
    drawable,
    grid,
    look,
    number,
    opening,
    tick,
)
from data.findings import read_findings
from eval.presence import FIVE, Reading

MAX_POINTS = 400
LETTER = 6.5  # pixels that a letter of a tick takes at most, on average


def line_chart(series: Sequence[tuple[str, Sequence[Point]]], *, title: str, x_label: str = "step") -> Markup | None:
    """An SVG line chart with legend; None when no series has a point to draw.

    Args:
        series: (name, [(x, y), ...]) each, x a whole number; a y that is not `drawable` leaves a gap, and is counted in
            the legend.
    """
    # ms-swift evaluates twice at a last step that ends an epoch: one point a step, the later one.
    whole = [(name, sorted(dict(points).items())) for name, points in series if points]
    gone = [sum(not drawable(y) for _, y in points) for _, points in whole]
    lines = [(name, thin(points)) for name, points in whole]
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points if drawable(y)]
    if not ys:
        return None
    x0, x1 = min(xs), max(max(xs), min(xs) + 1e-9)
    return draw_lines(
        lines,
        title=title,
        x_label=x_label,
        x_range=(x0, x1),
        x_ticks=[x for x in ticks(x0, max(xs), 6) if x0 <= x <= x1 and abs(x - round(x)) < 1e-9],
        y_ticks=ticks(min(ys), max(ys), 5),
        notes=[
            f"last {number(points[-1][1])}"
            + (f"; {lost} of {len(points)} not drawn: not finite, or beyond {LARGEST:g}" if lost else "")
            for (_, points), lost in zip(whole, gone, strict=True)
        ],
    )


def thin(points: list[Point]) -> list[Point]:
    """At most MAX_POINTS of a long curve, evenly, with its first and last point."""
    if len(points) <= MAX_POINTS:
        return points
    return [points[round(i * (len(points) - 1) / (MAX_POINTS - 1))] for i in range(MAX_POINTS)]


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers that enclose [low, high], about `count` of them."""
    if high - low < 1e-12 * max(1, abs(low), abs(high)):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def verdicts(reading: Reading | None, truth: Reading, labels: Sequence[str] = FIVE) -> list[tuple[str, str, str]]:
    """(label, what the answer says, "ok" | "bad" | "unsure") for every label; an answer that is silent says absent."""
    out = []
    for label in labels:
        state, side = (reading or {}).get(label, ("absent", None))
        said = "no answer" if reading is None else state if label in reading else "not mentioned"
        if side and state != "absent":
            said += f", {side}"
        kind = "bad" if reading is None else verdict(label, state, side, truth)
        if kind == "bad" and state == "present" == truth.get(label, ("absent", None))[0]:
            said += " (wrong side)"
        out.append((label, said, kind))
    return out


def verdict(label: str, state: str, side: str | None, truth: Reading) -> str:
    """One claim against the truth: "unsure" if either hedges, "ok" if state and (where both name one) side agree."""
    true_state, true_side = truth.get(label, ("absent", None))
    if state == "uncertain" or true_state == "uncertain":
        return "unsure"
    if state != true_state:
        return "bad"
    return "bad" if state == "present" and side and true_side and side != true_side else "ok"


def marked_text(text: str, truth: Reading) -> Markup:
    """A text with every claim marked by its verdict against the truth, escaped for HTML.

    Green is consistent, red in conflict, blue uncertain (the colours of the method's own figure). Where claims share a
    span, conflict shows before uncertainty before consistency; the title of a mark lists all its claims.
    """
    rank = {"ok": 1, "unsure": 2, "bad": 3}
    kinds: list[str | None] = [None] * len(text)
    notes: list[tuple[str, ...]] = [()] * len(text)
    for claim in read_findings(text):
        kind = verdict(claim.label, claim.state, claim.side, truth)
        true_state, true_side = truth.get(claim.label, ("absent", None))
        said = f"{claim.label}: {claim.state}{f' {claim.side}' if claim.side else ''}"
        note = f"{said} (truth: {true_state}{f' {true_side}' if true_side and true_state != 'absent' else ''})"
        for i in range(claim.start, min(claim.end, len(text))):
            old = kinds[i]
            kinds[i] = kind if old is None or rank[kind] > rank[old] else old
            notes[i] = (*notes[i], note)
    out, start = [], 0
    for i in range(1, len(text) + 1):
        if i < len(text) and kinds[i] == kinds[start] and notes[i] == notes[start]:
            continue
        piece = html.escape(text[start:i])
        if kinds[start]:
            piece = f'<mark class="{kinds[start]}" title="{html.escape("; ".join(notes[start]))}">{piece}</mark>'
        out.append(piece)
        start = i
    return Markup("".join(out))


def interval_chart(
    series: Sequence[tuple[str, Sequence[tuple[str, float, float, float]]]], *, title: str
) -> Markup | None:
    """Dots with their intervals, a line for each label and series; None when there is nothing to draw.

    Args:
        series: (name, [(label, value, low, high), ...]) each. A label that needs more than half of the width is cut.
    """
    points = [p for _, one in series for p in one if all(map(drawable, p[1:]))]
    if not points:
        return None
    labels = list(dict.fromkeys(p[0] for p in points))
    left, gap = min(max(150, round(LETTER * max(map(len, labels))) + 14), WIDTH), 12
    room = int((left - 14) / LETTER)
    step = gap * len(series) + 12
    height = TOP + step * len(labels) + BOTTOM
    x_ticks = ticks(min(p[2] for p in points), max(p[3] for p in points), 6)
    x0, x1 = x_ticks[0], x_ticks[-1]

    def at(x: float) -> float:
        return left + (x - x0) / (x1 - x0) * (2 * WIDTH - left - RIGHT)

    out = [opening(2 * WIDTH, height, title)]
    for x in x_ticks:
        out.append(grid(at(x), TOP, at(x), height - BOTTOM))
        out.append(tick(at(x), height - BOTTOM + 15, number(x)))
    for row, label in enumerate(labels):
        y = TOP + step * row + step / 2
        out.append(tick(left - 8, y + 4, label if len(label) <= room else f"{label[: room - 1]}…", "end"))
        for i, (name, one) in enumerate(series):
            for _, value, low, high in (p for p in one if p[0] == label and all(map(drawable, p[1:]))):
                py, colour = y + (i - (len(series) - 1) / 2) * gap, look(i)
                said = f"{html.escape(name)}, {html.escape(label)}: {value:.3f} ({low:.3f} to {high:.3f})"
                out.append(
                    f'<line class="line {colour}" x1="{at(low):.1f}" y1="{py:.1f}" x2="{at(high):.1f}" y2="{py:.1f}"/>'
                )
                out.append(f'<circle class="dot {colour}" cx="{at(value):.1f}" cy="{py:.1f}" r="4">')
                out.append(f"<title>{said}</title></circle>")
    return closed(out, [name for name, _ in series])
