"""A few studies with known truth, and answers to them, made by hand: enough to compute every metric on paper."""

import re

from eval.presence import FIVE

ALL_CLEAR = "No consolidation. No pleural effusion. No pneumonia. No pneumothorax. No edema."


def sentence(label: str, state: str, side: str | None = None) -> str:
    if state == "present":
        return f"There is a {side + ' ' if side else ''}{label.lower()}."
    return f"No {label.lower()} is seen." if state == "absent" else f"Possible {label.lower()}."


def report(**states) -> str:
    """`report(Edema="present")`: a sentence for each of the five, absent unless said; a value may be (state, side)."""
    out = []
    for label in FIVE:
        value = states.get(label.replace(" ", ""), "absent")
        state, side = value if isinstance(value, tuple) else (value, None)
        out.append(sentence(label, state, side))
    return " ".join(out)


def finding(state="present", side=None) -> dict:
    return {"state": state, "side": side, "severity": None, "progression": None}


def study(number: int, truth: dict, trajectories: list | None = None, *, split="test", consensus=None) -> dict:
    """A study of patient number // 2; `truth` holds the findings that are there: {label: side}."""
    findings = {label: finding("present", truth[label]) if label in truth else finding("absent") for label in FIVE}
    findings |= {label: finding("present", side) for label, side in truth.items() if label not in FIVE}
    record = {
        "id": f"{split}-{number}",
        "patient": f"{split}-patient-{number // 2}",
        "source": "phantom",
        "split": split,
        "images": [f"films/{split}-{number}.png"],
        "prompt": "This is a patient's chest DR image <image>. Please describe it.",
        "trajectories": trajectories or [],
        "findings": findings,
    }
    if consensus:
        record["consensus"] = {"text": consensus, "strategy": "dawid_skene", "audit": {}}
    return record


def trajectory(teacher: str, text: str, status: str = "ok") -> dict:
    return {"teacher": teacher, "text": text, "status": status}


def tables_of(html: str) -> int:
    """How many tables a page has; each must scroll by keyboard and tell a screen reader its name and its heads."""
    boxes = re.findall(r'<div class="scroll" role="region" aria-label="[^"]+" tabindex="0">\s*<table', html)
    assert len(boxes) == html.count("<table") == html.count('class="scroll"')
    assert not re.search(r'<th(?! scope="(col|row)">)(?!ead)', html) and html.count('<th scope="row">') >= len(boxes)
    return len(boxes)
