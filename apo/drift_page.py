"""The drift page: apo/drift_results.py's numbers and a browser of single studies as one self-contained HTML file.

Nothing is loaded from elsewhere and nothing runs: films are embedded, charts are inline SVG, studies open by <details>,
and every text is escaped.
"""

import html
import math
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from apo.drift_outcomes import CONFLICTS, OUTCOMES, STATE, consensus_decisions, outcome
from apo.heard import Decision, Heard, hear, in_context
from apo.stationarity import BINS
from data import pages
from data.charts import WIDTH, draw_lines
from data.findings import Claim, read_findings
from data.findings_lexicon import LABELS
from data.images import decode_problem, file_problem
from data.records import image_paths

FILM_SIDE = 320  # pixels; films are shrunk to it
FILM_QUALITY = 80
FEW = 10  # claims: a mean of fewer is not shown
LEFT = 40  # pixels for the y ticks of a chart
RANK = {"agreed": 1, "consistent": 1, "uncertain": 2, "conflict": 3, "corrected": 3}
CLASSES = {"agreed": "ok", "consistent": "ok", "uncertain": "unsure", "conflict": "bad", "corrected": "fix"}


def render(found: dict, studies: Sequence[dict], root: str) -> tuple[str, int]:
    """(the page as HTML text, how many of the studies have no film to show).

    Args:
        found: the content of drift.json; studies: the sampled records; root: their absolute image root.
    """
    views = [study_view(study, root) for study in studies]
    env = pages.environment(Path(__file__).parent)
    env.filters |= {"percent": percent, "p": p_text}
    env.globals |= {"shade": shade, "bins": [f"{10 * j}-{10 * j + 10}" for j in range(BINS)]}
    page = env.get_template("drift_page.html").render(
        r=found,
        views=views,
        charts=depth_charts(found["depth"]),
        labels=[k for k in LABELS if any(k in rows for rows in found["findings"]["by_label"].values())],
        outcomes=OUTCOMES,
        totals=totals(found),
        few=FEW,
    )
    return page, sum(view["film"] is None for view in views)


def percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f}"


def p_text(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def shade(value: float | None, top: float) -> int:
    """Depth of a cell's colour in percent: 0 for nothing, 70 for `top`, light enough to read the number on."""
    return 0 if value is None or not top else round(70 * min(max(value / top, 0.0), 1.0))


def totals(found: dict) -> dict:
    """The figures of the tiles."""
    pairs = [row for rows in found["findings"]["pairs"].values() for row in rows.values() if row]
    against = [row for row in (found["findings"]["consensus"] or {}).values() if row]

    def rate(rows: Sequence[dict]) -> float | None:
        comparable = sum(row["comparable"] for row in rows)
        return sum(row[OUTCOMES[code]] for row in rows for code in CONFLICTS) / comparable if comparable else None

    states = [n for counts in found["status"].values() for name, n in counts.items() if name not in ("ok", "not asked")]
    conflicts = [row["conflict"] for row in pairs if row["conflict"] is not None]
    return {"pairs": rate(pairs), "consensus": rate(against), "muted": sum(states), "top": max(conflicts, default=0)}


# --- one study ------------------------------------------------------------------------------------------------------


def film_uri(study: dict, root: str) -> tuple[str | None, str]:
    """(the first film as a data: URI, "") or (None, why not): grey JPEG of at most FILM_SIDE pixels an edge."""
    path = image_paths(study, root)[0]
    problem = file_problem(path, root) or decode_problem(path)
    if problem:
        return None, problem.partition(";")[0]
    return pages.film_uri(path, FILM_SIDE, "JPEG", quality=FILM_QUALITY), ""


def study_view(study: dict, root: str) -> dict:
    """What the page shows of one study."""
    one = hear(study)
    text = (study.get("consensus") or {}).get("text")
    mentioned = [label for label in LABELS if any(label in says for says in one.says.values())]
    decisions = consensus_decisions(text, mentioned) if text else None
    conflicts = 0
    voices = []
    for trajectory in study["trajectories"]:
        teacher = trajectory["teacher"]
        voice = {"teacher": teacher, "status": one.unheard.get(teacher, "ok"), "text": trajectory["text"], "bad": 0}
        if teacher in one.says:
            marks = [(c, *mark(c, teacher, one, decisions)) for c in one.claims[teacher]]
            spans = [(c.start, c.end, kind, note) for c, kind, note in marks if kind]
            voice["bad"] = len({c.label for c, kind, _ in marks if kind == "conflict"})
            voice["text"] = marked(trajectory["text"], spans)
            conflicts += voice["bad"]
        voices.append(voice)
    film, problem = film_uri(study, root)
    return {
        "id": study["id"],
        "film": film,
        "film_problem": problem,
        "films": len(study["images"]),
        "strategy": study["consensus"]["strategy"] if text else None,
        "consensus": marked_consensus(text, one, decisions) if text else None,
        "voices": voices,
        "conflicts": conflicts,
        "audit": audit_rows(study, one, mentioned, decisions),
        "heard": list(one.says),
    }


def words_of(decision: Decision | None) -> str:
    return "" if decision is None else " ".join(filter(None, decision))


def mark(claim: Claim, teacher: str, one: Heard, decisions: dict[str, Decision] | None) -> tuple[str | None, str]:
    """("consistent" | "conflict" | "uncertain" | None, note) of one claim.

    Against the consensus; where there is none, in conflict if it is with more than half of the other teachers who speak
    of the finding without hedging, and unmarked if nobody does.
    """
    mine = in_context(claim, one.says[teacher])
    said = f"{claim.label}: {words_of((claim.state, claim.side))}"
    if decisions is not None:
        theirs = decisions[claim.label]
        note = f"{said} (consensus: {words_of(theirs)})"
        if "uncertain" in (claim.state, theirs[0]):
            return "uncertain", note
        return "conflict" if outcome(mine, theirs) in CONFLICTS else "consistent", note
    if claim.state == "uncertain":
        return "uncertain", said
    others = [says.get(claim.label) for name, says in one.says.items() if name != teacher]
    codes = [outcome(mine, other) for other in others if other and other[0] != "uncertain"]
    bad = sum(code in CONFLICTS for code in codes)
    note = f"{said} (in conflict with {bad} of {len(codes)} others)"
    return ("conflict" if 2 * bad > len(codes) else "consistent") if codes else None, note


def marked_consensus(text: str, one: Heard, decisions: dict[str, Decision]) -> Markup:
    """The consensus with what corrects at least one teacher marked, and what all agree on."""
    spans = []
    for claim in read_findings(text):
        decision = decisions[claim.label]
        against = [
            name
            for name, says in one.says.items()
            if says.get(claim.label, ("uncertain",))[0] != "uncertain"
            and outcome(says[claim.label], decision) in CONFLICTS
        ]
        kind = "uncertain" if claim.state == "uncertain" else "corrected" if against else "agreed"
        note = f"{claim.label}: {words_of((claim.state, claim.side))}"
        spans.append((claim.start, claim.end, kind, note + (f" (corrects {', '.join(against)})" if against else "")))
    return marked(text, spans)


def marked(text: str, spans: Sequence[tuple[int, int, str, str]]) -> Markup:
    """`text` escaped, with spans (start, end, kind, note) as <mark>; where they overlap the graver kind shows."""
    cuts = sorted({0, len(text), *(min(at, len(text)) for start, end, _, _ in spans for at in (start, end))})
    out: list[str] = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        here = [span for span in spans if span[0] <= start and end <= span[1]]
        piece = html.escape(text[start:end])
        if here:
            kind = max((kind for _, _, kind, _ in here), key=RANK.__getitem__)
            notes = html.escape("; ".join(dict.fromkeys(note for *_, note in here)))
            piece = f'<mark class="{CLASSES[kind]}" title="{notes}">{piece}</mark>'
        out.append(piece)
    return Markup("".join(out))


def audit_rows(study: dict, one: Heard, mentioned: Sequence[str], decisions: dict[str, Decision] | None) -> list[dict]:
    """By finding: the decision, its support as the consensus' own audit gives it, and what each teacher says."""
    audit = (study.get("consensus") or {}).get("audit")
    kept = audit.get("findings") if isinstance(audit, dict) else None
    rows = []
    for label in LABELS:
        if label not in mentioned and label not in (decisions or {}):
            continue
        entry = kept.get(label) if isinstance(kept, dict) else None
        support = []
        if isinstance(entry, dict):
            posterior, votes = entry.get("posterior"), entry.get("votes")
            if isinstance(posterior, (int, float)) and not isinstance(posterior, bool):
                support.append(f"posterior {posterior:.2f}")
            if isinstance(votes, dict):
                support.append(", ".join(f"{n} {state}" for state, n in votes.items() if n))
        cells = []
        for teacher, says in one.says.items():
            said = says.get(label)
            kind = ""
            if said and decisions is not None:
                code = outcome(said, decisions[label])
                hedged = "uncertain" in (said[0], decisions[label][0])
                kind = "unsure" if hedged else "bad" if code in CONFLICTS else "ok"
            side_only = kind == "bad" and code != STATE
            cells.append({"teacher": teacher, "said": words_of(said) or "silent", "kind": kind, "side": side_only})
        decision = words_of(decisions[label]) if decisions is not None else "no consensus"
        rows.append({"label": label, "decision": decision, "support": "; ".join(support), "cells": cells})
    return rows


# --- charts ---------------------------------------------------------------------------------------------------------


def depth_charts(depth: dict) -> list[dict]:
    """[{"title", "svg"}]: what is said at a depth (adjusted and raw), and what has been said by then."""
    middle = [10 * j + 5 for j in range(BINS)]
    ends = [10 * j + 10 for j in range(BINS)]
    out = []
    for name, what in (("conflict", "Conflict with the other teachers"), ("error", "Conflict with the consensus")):
        if depth[name]:
            series = [
                (form, list(zip(middle, depth[name][form]["means"]["all"], strict=True)))
                for form in ("adjusted", "raw")
            ]
            out.append({"title": f"{what}, by depth", "svg": line_chart(series, title=f"{what} by depth")})
    accumulated = depth["accumulated"]
    for title, names in (
        ("Accumulated: said, and in conflict", {"stated": "said", "conflict": "teachers", "error": "consensus"}),
        ("Accumulated: divergence, bits", {"divergence_bits": "Jensen-Shannon"}),
    ):
        series = [(shown, list(zip(ends, accumulated[name], strict=True))) for name, shown in names.items()]
        out.append({"title": title, "svg": line_chart(series, title=title)})
    return out


def line_chart(series: Sequence[tuple[str, Sequence[tuple[float, float | None]]]], *, title: str) -> Markup | None:
    """An SVG of (name, [(depth in percent, value or None)]) lines from zero up, or from the lowest
    value where that is below (an adjusted mean may be); None where there is no value."""
    lines = [(name, [(x, y) for x, y in points if y is not None]) for name, points in series]
    lines = [(name, points) for name, points in lines if points]
    if not lines:
        return None
    highest = max(y for _, points in lines for _, y in points)
    lowest = min(0.0, *(y for _, points in lines for _, y in points))
    step = next(s for s in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0) if max(highest, -lowest) <= 5 * s or s == 2.0)
    steps = max(math.ceil(highest / step - 1e-9), 1)
    below = math.ceil(-lowest / step - 1e-9)
    return draw_lines(
        lines,
        title=title,
        x_label="depth, %",
        x_range=(0, 100),
        x_ticks=(0, 25, 50, 75, 100),
        y_ticks=[k * step for k in range(-below, steps + 1)],
        left=LEFT,
        middle=(LEFT + WIDTH) / 2,
    )
