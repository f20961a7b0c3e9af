"""Compare: what N teachers say of one film -> one consensus, with an audit of why it says so.

    consensuses = STRATEGIES["dawid_skene"](studies)      # one {"text", "strategy", "audit"} or None a study

- `dawid_skene`: label-free. Each teacher's sensitivity and specificity by finding are estimated from agreement alone
  (Dawid & Skene 1979, "Maximum likelihood estimation of observer error-rates using the EM algorithm", J R Stat Soc C
  28:20-28), then each finding is decided by its posterior. Labels of a few films, where given, decide one thing: which
  of a finding's two mirror images is the truth (`orient_by_labels`).
- `vote`: each finding by the majority of teachers; a tie is absent.
- `medoid`: the trajectory closest to all others, whole, as it stands; see `medoid` for the distance. The consensus then
  equals one of the negatives, so that Critique must be launched with `on_identical: drop-negative`.
- `oracle`: phantom studies only. The truth itself, an upper bound for any consensus; no method, and not to be had for
  real films.
- `self`: the paper's way. The stage-one student reads film, prompt and all trajectories (names hidden, order shuffled)
  and writes the consensus; see `self_prompt`. Generation is the caller's (apo/compare_self.py).

What a teacher says is read out of its text by data.findings (apo/heard.py). `dawid_skene` and `vote` decide by the
rules of apo/decisions.py, the former with the estimates of apo/error_rates.py, and say it in the form of
apo/consensus_text.py.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from apo.consensus_audit import make_audit
from apo.consensus_text import Compose, compose_text
from apo.decisions import Decided, decide
from apo.distances import claim_distance, token_overlap, words
from apo.heard import Decision, hear
from apo.self_prompt import SelfPrompt
from data.errors import UserError
from data.findings import read_findings, summarise
from data.findings_lexicon import FIVE, ORDER, SIDELESS


def _truths(studies: Sequence[dict], labels: dict[str, dict[str, bool]]) -> dict[str, np.ndarray]:
    """label -> [studies] of 1 (present), 0 (absent), -1 (not labelled)."""
    known = [labels.get(study["id"], {}) for study in studies]
    return {label: np.array([int(one[label]) if label in one else -1 for one in known]) for label in ORDER}


def _by_finding(
    studies: Sequence[dict], *, model: bool, compose: Compose, labels: dict[str, dict[str, bool]] | None = None
) -> list[dict | None]:
    if compose not in ("plain", "quote"):
        raise ValueError(f"compose is {compose!r}; use plain or quote")
    heard = [hear(study) for study in studies]
    teachers = sorted({teacher for one in heard for teacher in one.says})
    decided, reliability = decide(heard, teachers, model=model, truths=_truths(studies, labels or {}))
    column = {teacher: t for t, teacher in enumerate(teachers)}
    name = "dawid_skene" if model else "vote"
    out: list[dict | None] = []
    for one, decisions in zip(heard, decided, strict=True):
        if not decisions.stated:
            out.append(None)
            continue
        text, pieces = compose_text(one, decisions, compose, lambda t, label: float(reliability[label][column[t]]))
        audit = make_audit(one, decisions.findings, decisions.stated, decisions.support, pieces)
        out.append({"text": text, "strategy": name, "audit": {"compose": compose, **audit}})
    return out


def dawid_skene(
    studies: Sequence[dict], *, compose: Compose = "plain", labels: dict[str, dict[str, bool]] | None = None
) -> list[dict | None]:
    """Consensus by estimated sensitivity and specificity; see the module. Fitted on all given studies.

    Args:
        studies: study records; "findings" and "report" are never looked at.
        labels: study id -> finding -> is it there; what is known of some studies, for `orient_by_labels` alone. None or
            {}: label-free.

    Returns one consensus a study, None where no teacher has an ok trajectory or nothing that could be stated was read.
    """
    return _by_finding(studies, model=True, compose=compose, labels=labels)


def vote(studies: Sequence[dict], *, compose: Compose = "plain") -> list[dict | None]:
    """Consensus by majority, a tie is absent; see the module. Returns as `dawid_skene`."""
    return _by_finding(studies, model=False, compose=compose)


def medoid(studies: Sequence[dict]) -> list[dict | None]:
    """Consensus by choice: the text of the trajectory with the smallest mean `claim_distance` to the others.

    Ties go to the larger mean `token_overlap` with the others, and what is still equal (always so with two teachers
    who disagree) to a hash of study and teacher, so that no teacher wins by its name. All ok trajectories count among
    the others; only one in which a finding is read can be chosen. Returns as `dawid_skene`; audit["medoid"] is
    {"teacher", "distance": {teacher: mean distance}, "overlap": {teacher: mean overlap}}.
    """
    out: list[dict | None] = []
    for study in studies:
        one = hear(study)
        candidates = [teacher for teacher, says in one.says.items() if says]
        if not candidates:
            out.append(None)
            continue
        bags = {teacher: Counter(words(text)) for teacher, text in one.texts.items()}

        def mean(of: Callable[[str, str], float], teacher: str, teachers: Sequence[str]) -> float:
            return sum(of(teacher, other) for other in teachers if other != teacher) / max(len(teachers) - 1, 1)

        heard = list(one.says)
        distance = {t: mean(lambda a, b, s=one.says: claim_distance(s[a], s[b]), t, heard) for t in candidates}
        overlap = {t: mean(lambda a, b, w=bags: token_overlap(w[a], w[b]), t, heard) for t in candidates}

        def rank(teacher: str, name=study["id"], d=distance, o=overlap) -> tuple:
            lot = hashlib.sha256(f"{name}:{teacher}".encode()).digest()
            return round(d[teacher], 9), -round(o[teacher], 9), lot

        chosen = min(candidates, key=rank)
        findings, claims = one.says[chosen], one.claims[chosen]
        pieces = dict.fromkeys((c.label, c.start, c.end, chosen) for c in claims)
        audit = make_audit(one, findings, list(findings), {}, pieces)
        why = {"teacher": chosen}
        why |= {k: {t: round(v[t], 4) for t in candidates} for k, v in (("distance", distance), ("overlap", overlap))}
        out.append({"text": one.texts[chosen], "strategy": "medoid", "audit": {"medoid": why, **audit}})
    return out


UPPER_BOUND = "the truth of a simulated film: an upper bound for any consensus, not a method"


def oracle(studies: Sequence[dict], *, compose: Compose = "plain") -> list[dict | None]:
    """The true findings of phantom studies in the form of a consensus, labelled as an upper bound in its audit.

    Like the others it states the five and, of the rest, what is not absent. None where no teacher has an ok trajectory,
    so that it can be compared with the others on the same studies.

    Raises UserError for a study of any other source, or without findings.
    """
    if compose not in ("plain", "quote"):
        raise ValueError(f"compose is {compose!r}; use plain or quote")
    for study in studies:
        if study["source"] != "phantom":
            raise UserError(
                f"study {study['id']!r}: source is {study['source']!r}; oracle states the truth of simulated films and "
                "is for the phantom cohort only: choose another --strategy"
            )
        if not study.get("findings"):
            raise UserError(f"study {study['id']!r}: has no findings, which oracle states; make the cohort again")
    out: list[dict | None] = []
    for study in studies:
        one = hear(study)
        if not one.says:
            out.append(None)
            continue
        truth: dict[str, Decision] = dict.fromkeys(FIVE, ("absent", None))
        for label, finding in study["findings"].items():
            side = None if finding["state"] == "absent" or label in SIDELESS else finding.get("side")
            truth[label] = (finding["state"], side)
        findings = {label: truth[label] for label in ORDER if label in truth}
        stated = [label for label, (state, _) in findings.items() if state != "absent" or label in FIVE]
        decided = Decided(findings, stated, {})
        text, pieces = compose_text(one, decided, compose, lambda teacher, label: 0.0)
        audit = make_audit(one, findings, stated, {}, pieces)
        out.append(
            {"text": text, "strategy": "oracle", "audit": {"upper_bound": UPPER_BOUND, "compose": compose, **audit}}
        )
    return out


def self_result(study: dict, prompt: SelfPrompt, text: str) -> dict:
    """The consensus record of a generated text: its decisions are what the reader finds in it."""
    one = hear(study)
    claims = read_findings(text)
    findings = summarise(claims)
    pieces = [(c.label, c.start, c.end, None) for c in claims]
    audit = make_audit(one, findings, list(findings), {}, dict.fromkeys(pieces))
    return {"text": text, "strategy": "self", "audit": {"order": prompt.order, "dropped": prompt.dropped, **audit}}


class Answer(NamedTuple):
    """What was generated for one study; text None: nothing usable, for the reason given."""

    prompt: SelfPrompt | None
    text: str | None
    failure: str | None


def self_consensus(
    studies: Sequence[dict], *, answer: Callable[[Sequence[dict]], Iterable[Answer]]
) -> list[dict | None]:
    """The paper's strategy: `answer` (apo/compare_self.py, any model) writes one text a study; None where it failed."""
    return [
        self_result(study, one.prompt, one.text) if one.text is not None and one.prompt is not None else None
        for study, one in zip(studies, answer(studies), strict=True)
    ]


STRATEGIES: dict[str, Callable[..., list[dict | None]]] = {
    "self": self_consensus,  # keyword `answer`
    "dawid_skene": dawid_skene,  # keywords `compose`, `labels`
    "vote": vote,  # keyword `compose`
    "medoid": medoid,
    "oracle": oracle,  # keyword `compose`; phantom studies only
}
NEEDS_MODEL = frozenset({"self"})
TAKES_LABELS = frozenset({"dawid_skene"})
COMPOSES = frozenset({"dawid_skene", "vote", "oracle"})  # strategies that build their text and take `compose`
