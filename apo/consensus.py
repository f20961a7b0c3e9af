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
  and writes the consensus; see `self_prompt`. Generation is the caller's (apo/compare.py).

What a teacher says is read out of its text by data.findings. Rules of `dawid_skene` and `vote`:

- Present is a vote for, an explicit "absent" and silence are votes against, "uncertain" abstains, and a teacher without
  an ok trajectory (or with one that only refuses) has no vote. Silence votes because a finding that no other teacher
  supports is to be dropped, which is the paper's rule; a teacher who seldom mentions a finding gets a low sensitivity,
  so its silence weighs little in `dawid_skene`.
- The consensus never says what nobody said: a finding that no teacher claims is not present, whatever its posterior,
  and one that is absent by silence alone is left out of the text.
- If there is no vote and somebody is uncertain, the consensus is uncertain too.
- The side is decided among the teachers who claim the decided state: plurality in `vote`, a three-class Dawid-Skene
  over all findings together in `dawid_skene` (wrong sides are a habit of a teacher, not of a finding). A tie names no
  side.

Form of the text: labels in fixed order, the five of MS-CXR-T first, then others if present or uncertain.

- compose="plain" (default): one fixed sentence a finding ("Small" and the like are not decided and not said). A student
  imitates the consensus, and a small one learns the findings only if the wording does not vary with who happened to
  be quoted: in `quote` the same decision comes in as many wordings as there are teachers.
- compose="quote": the sentence of the most reliable teacher who supports the decision, so that every word has a source.
  A sentence that also says something against the decisions, or that read alone does not say the decision (a bullet
  whose heading named the finding), is never used; where none is left the plain sentence stands in, marked "template".
  Its style is that of the negatives, which leaves Critique less of a style shortcut; "plain" leaves more (every
  positive in one style, every negative in another), to be countered there, e.g. by `--rpo_alpha`.

The estimator is forty lines of numpy and not crowd-kit 1.4.2, which installs beside this stack and is what the tests
compare it with: without the prior both fit the same model, with it they decide alike from 150 studies up, in the same
time. On a few dozen crowd-kit, which has no prior, lets rates run to 0 and 1: for seven teachers of sensitivity .6-.9
and specificity .5-.7 and a common finding, 15 studies, accuracy .85 (crowd-kit), .90 (here), .92 (majority); with few
sensitive teachers the prior costs as much (.89, .84, .81).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from data.errors import UserError
from data.findings import FIVE, LABELS, SIDELESS, Claim, is_refusal, read_findings, summarise
from data.records import SIDES

ORDER = (*FIVE, *(label for label in LABELS if label not in FIVE))
Compose = Literal["plain", "quote"]
Decision = tuple[str, str | None]  # state, side

NAMES = {label: label.lower() for label in LABELS} | {
    "Edema": "pulmonary edema",
    "Enlarged Cardiomediastinum": "widened mediastinum",
    "Pleural Other": "pleural thickening",
    "No Finding": "acute cardiopulmonary abnormality",
}


# --- what the teachers say ------------------------------------------------------------------------------------------


class Heard(NamedTuple):
    """One study as read: for each teacher with a vote its text, its claims, and their summary by label."""

    texts: dict[str, str]
    claims: dict[str, list[Claim]]
    says: dict[str, dict[str, Decision]]
    unheard: dict[str, str]  # teacher -> why it has no vote (its status, or "refused" by its text)


def hear(study: dict) -> Heard:
    """Read all trajectories of a study record."""
    heard = Heard({}, {}, {}, {})
    for trajectory in study["trajectories"]:
        teacher, text = trajectory["teacher"], trajectory["text"]
        if trajectory["status"] != "ok":
            heard.unheard[teacher] = trajectory["status"]
        elif is_refusal(text):
            heard.unheard[teacher] = "refused"
        else:
            claims = read_findings(text)
            heard.texts[teacher], heard.claims[teacher], heard.says[teacher] = text, claims, summarise(claims)
    return heard


def in_context(claim: Claim, says: dict[str, Decision]) -> Decision:
    """What a claim states as a part of its text, `says` being the summary of it.

    "Small left effusion. Small right effusion." states bilateral effusion, in each of its sentences.
    """
    state, side = says[claim.label]
    return (state, side if claim.side else None) if claim.state == state else (claim.state, claim.side)


def denies_another_side(a: Decision, b: Decision) -> bool:
    """Whether one denies a finding on one side only, and the other has it on the other: "no left effusion" says nothing
    against a right one."""
    denied, seen = (a, b) if a[0] == "absent" else (b, a)
    return (denied[0], seen[0]) == ("absent", "present") and {denied[1], seen[1]} == {"left", "right"}


def presence_votes(heard: Sequence[Heard], teachers: Sequence[str], label: str) -> np.ndarray:
    """[studies, teachers] of 1 (present), 0 (absent or silent), -1 (uncertain, or no ok trajectory)."""
    votes = np.full((len(heard), len(teachers)), -1, np.int8)
    for s, one in enumerate(heard):
        for t, teacher in enumerate(teachers):
            if teacher in one.says:
                votes[s, t] = {"present": 1, "absent": 0, "uncertain": -1}[one.says[teacher].get(label, ("absent",))[0]]
    return votes


# --- Dawid & Skene --------------------------------------------------------------------------------------------------


class Fit(NamedTuple):
    posterior: np.ndarray  # [items, classes], rows sum to 1
    confusion: np.ndarray  # [teachers, true class, said class], rows sum to 1
    prevalence: np.ndarray  # [classes]


def fit_dawid_skene(
    votes: np.ndarray, classes: int = 2, *, prior: tuple[float, float] = (2.0, 1.0), iterations: int = 200
) -> Fit:
    """EM for the Dawid-Skene model (1979), with missing votes and a weak Dirichlet prior.

    Args:
        votes: integer [items, teachers], a class in 0..classes-1, or -1 for no vote. Any may be missing.
        prior: pseudo-counts of (right, wrong) answers a true class and teacher. They keep rates off 0 and 1 on small
            cohorts and say that a teacher is better than chance, unless the data say otherwise.
        iterations: at most so many; EM stops when no posterior moves by 1e-6.

    For two classes confusion[t, 1, 1] is teacher t's sensitivity and confusion[t, 0, 0] its specificity.

    The likelihood is the same with all classes renamed, so that EM could converge to the mirror image. Two guards: it
    starts from the shares of votes (majority), and with two classes, if the teachers come out worse than chance on
    the average (sensitivity + specificity < 1, weighted by votes), the classes are exchanged. `orient` is the third.

    Raises ValueError for votes outside -1..classes-1.
    """
    if votes.size and (votes.min() < -1 or votes.max() >= classes):
        raise ValueError(f"votes must be -1..{classes - 1}")
    said = (votes[:, :, None] == np.arange(classes)).astype(np.float64)  # [items, teachers, classes]
    count = said.sum(1)  # [items, classes]
    posterior = (count + 1.0 / classes) / (count.sum(1, keepdims=True) + 1.0)
    pseudo = np.full((classes, classes), prior[1]) + np.eye(classes) * (prior[0] - prior[1])

    def maximise(posterior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        confusion = np.einsum("ik,itc->tkc", posterior, said) + pseudo
        prevalence = posterior.sum(0) + 1.0
        return confusion / confusion.sum(2, keepdims=True), prevalence / prevalence.sum()

    for _ in range(iterations):
        confusion, prevalence = maximise(posterior)
        log = np.log(prevalence) + np.einsum("itc,tkc->ik", said, np.log(confusion))
        log -= log.max(1, keepdims=True)
        new = np.exp(log)
        new /= new.sum(1, keepdims=True)
        moved = float(np.abs(new - posterior).max()) if len(new) else 0.0
        posterior = new
        if moved < 1e-6:
            break
    confusion, prevalence = maximise(posterior)
    if classes == 2:
        fit = Fit(posterior, confusion, prevalence)
        return mirror(fit) if float(said.sum((0, 2)) @ youden(fit)) < 0 else fit
    return Fit(posterior, confusion, prevalence)


def youden(fit: Fit) -> np.ndarray:
    """[teachers] sensitivity + specificity - 1 of a two-class fit: 1 perfect, 0 chance, below 0 misleading."""
    return fit.confusion[:, 1, 1] + fit.confusion[:, 0, 0] - 1.0


def mirror(fit: Fit) -> Fit:
    """The same fit with the two classes exchanged."""
    return Fit(fit.posterior[:, ::-1], fit.confusion[:, ::-1, :], fit.prevalence[::-1])


def orient(fits: dict[str, Fit], votes: dict[str, np.ndarray]) -> tuple[dict[str, Fit], list[str]]:
    """Turn round the findings that came out the wrong way, by what the teachers are worth on the other findings.

    The two guards of `fit_dawid_skene` fail for a finding on which most teachers mislead: there the mirror image looks
    like the truth. But it also says that teachers who are good on all other findings are bad on this one. A finding is
    mirrored if sum_t n_t * (mean Youden of teacher t on the others) * (its Youden here) < 0, until none is left.

    Returns the fits and the labels mirrored. With one finding nothing can be said, and nothing is done.
    """
    fits, turned = dict(fits), []
    for _ in range(len(fits)):
        scores = {}
        for label, fit in fits.items():
            others = [youden(other) for name, other in fits.items() if name != label]
            if others:
                scores[label] = float(((votes[label] >= 0).sum(0) * np.mean(others, axis=0)) @ youden(fit))
        worst = min(scores, key=scores.__getitem__, default=None)
        if worst is None or scores[worst] >= 0 or worst in turned:
            break
        fits[worst] = mirror(fits[worst])
        turned.append(worst)
    return fits, turned


LEAST_EVIDENCE = 3.0  # nats, odds of 20 to 1


def evidence(fit: Fit, votes: np.ndarray, truth: np.ndarray) -> float:
    """log p(votes | truth) under a fit, summed over the labelled items, minus the same under its mirror image.

    How often the labels say present does not count: often only such films are labelled, or only what a report names.

    votes: integer [items, teachers]; truth: integer [items] of 1 (present), 0 (absent), -1 (not labelled).
    """
    known = truth >= 0
    said = votes[known][:, :, None] == np.arange(2)

    def likelihood(one: Fit) -> float:
        log = np.einsum("itc,tkc->ik", said, np.log(one.confusion))
        return float(log[np.arange(known.sum()), truth[known]].sum())

    return likelihood(fit) - likelihood(mirror(fit))


def orient_by_labels(
    fits: dict[str, Fit], votes: dict[str, np.ndarray], truths: dict[str, np.ndarray]
) -> tuple[dict[str, Fit], dict[str, str]]:
    """Turn round the findings that labels of some items show to be the wrong way; they overrule `orient`.

    A fit and its mirror image explain the votes equally well, so that no number of unlabelled films can tell them apart
    where most teachers mislead; a few labelled ones can. Where they speak by less than LEAST_EVIDENCE, the fit stays:
    teachers who err on the same films make the difference look larger than it is. Nothing else is taken from labels.

    Args:
        truths: label -> see `evidence`; a finding without one is left alone.

    Returns the fits and, for each finding with a labelled item, "turned", "kept" or "undecided".
    """
    fits, verdicts = dict(fits), {}
    for label, truth in truths.items():
        if label in fits and (truth >= 0).any():
            for_it = evidence(fits[label], votes[label], truth)
            verdicts[label] = "undecided" if abs(for_it) < LEAST_EVIDENCE else "kept" if for_it > 0 else "turned"
            if verdicts[label] == "turned":
                fits[label] = mirror(fits[label])
    return fits, verdicts


# --- decisions ------------------------------------------------------------------------------------------------------


class Decided(NamedTuple):
    """One study's decisions."""

    findings: dict[str, Decision]  # every label that any teacher mentions
    stated: list[str]  # those the text will state, in ORDER
    support: dict[str, dict]  # label -> what the audit says of it


def _counts(one: Heard, label: str) -> dict[str, int]:
    states = [says[label][0] if label in says else "silent" for says in one.says.values()]
    return {state: states.count(state) for state in ("present", "absent", "uncertain", "silent")}


def _decide(
    heard: list[Heard], teachers: list[str], *, model: bool, truths: dict[str, np.ndarray]
) -> tuple[list[Decided], dict[str, np.ndarray]]:
    """Decisions for all studies, and each teacher's reliability by label (sensitivity + specificity - 1)."""
    decided = [Decided({}, [], {}) for _ in heard]
    reliability: dict[str, np.ndarray] = {}
    mentions = {
        label: [s for s, one in enumerate(heard) if any(label in says for says in one.says.values())] for label in ORDER
    }
    ballots = {label: presence_votes(heard, teachers, label) for label in ORDER if mentions[label]}
    fits: dict[str, Fit] = {}
    if model:
        fits, turned = orient({label: fit_dawid_skene(votes) for label, votes in ballots.items()}, ballots)
        fits, verdicts = orient_by_labels(fits, ballots, truths)
        turned = set(turned) ^ {label for label, verdict in verdicts.items() if verdict == "turned"}
    for label, votes in ballots.items():
        mentioned = mentions[label]
        for_, against = (votes == 1).sum(1), (votes == 0).sum(1)
        if model:
            p = fits[label].posterior[:, 1]
            reliability[label] = youden(fits[label])
        else:
            p = for_ / np.maximum(for_ + against, 1)
            truth = (for_ > against)[:, None]
            right, cast = ((votes == truth) & (votes >= 0)).sum(0), (votes >= 0).sum(0)
            reliability[label] = 2.0 * (right + 1.0) / (cast + 2.0) - 1.0  # agreement with the majority
        for s in mentioned:
            counts = _counts(heard[s], label)
            state = "present" if p[s] > 0.5 and for_[s] > 0 else "absent"
            if for_[s] + against[s] == 0:
                state = "uncertain"
            decided[s].findings[label] = (state, None)
            decided[s].support[label] = {"votes": counts}
            if model:
                decided[s].support[label]["posterior"] = round(float(p[s]), 4)
                if label in turned:
                    decided[s].support[label]["against_majority"] = True
                if label in verdicts:
                    decided[s].support[label]["labels"] = verdicts[label]
    for one in decided:  # "no acute abnormality" cannot stand beside one
        pathology = any(
            v[0] == "present" for k, v in one.findings.items() if k not in ("No Finding", "Support Devices")
        )
        if pathology and one.findings.get("No Finding", ("absent",))[0] != "absent":
            one.findings["No Finding"] = ("absent", None)
            one.support["No Finding"]["overruled"] = True
    _decide_sides(heard, decided, teachers, model=model)
    for one in decided:
        for label, (state, _) in one.findings.items():
            denied = one.support[label]["votes"]["absent"] > 0
            if state != "absent" or (label in FIVE and denied):
                one.stated.append(label)
    return decided, reliability


def _decide_sides(heard: list[Heard], decided: list[Decided], teachers: list[str], *, model: bool) -> None:
    items, rows = [], []
    for s, one in enumerate(decided):
        for label, (state, _) in one.findings.items():
            if state == "absent" or label in SIDELESS:
                continue
            row = [-1] * len(teachers)
            for t, teacher in enumerate(teachers):
                said = heard[s].says.get(teacher, {}).get(label)
                if said and said[0] == state and said[1]:
                    row[t] = SIDES.index(said[1])
            if max(row) >= 0:
                items.append((s, label))
                rows.append(row)
    if not items:
        return
    votes = np.array(rows, np.int8)
    count = (votes[:, :, None] == np.arange(3)).sum(1)
    weight = fit_dawid_skene(votes, 3).posterior if model else count.astype(float)
    for (s, label), n, w in zip(items, count, weight, strict=True):
        best = np.flatnonzero(w >= w.max() - 1e-9)
        side = SIDES[best[0]] if len(best) == 1 else None
        decided[s].findings[label] = (decided[s].findings[label][0], side)
        decided[s].support[label]["sides"] = {name: int(k) for name, k in zip(SIDES, n, strict=True) if k}


# --- text -----------------------------------------------------------------------------------------------------------


def plain_sentence(label: str, state: str, side: str | None) -> str:
    """The fixed sentence for a decision; data.findings reads it back as that decision.

    >>> plain_sentence("Pleural Effusion", "present", "left"), plain_sentence("Edema", "absent", None)
    ('Left pleural effusion.', 'No pulmonary edema.')
    """
    if label == "No Finding":
        return {"present": "No acute cardiopulmonary abnormality.", "uncertain": "Possibly normal chest radiograph."}[
            state
        ]
    words = {"absent": ["no"], "uncertain": ["possible"], "present": []}[state]
    words += [side] if side and state != "absent" else []
    sentence = " ".join([*words, NAMES[label]])
    return sentence[0].upper() + sentence[1:] + "."


def _clean(sentence: str) -> str:
    """A quoted sentence without Markdown, one line, with a full stop."""
    sentence = re.sub(r"[*_`#]+|^[\s\-•+>]+|^\d+[.)]\s+|[✔✓✅☑\ufe0f]", " ", sentence)
    sentence = re.sub(r"\s+([,.:;])", r"\1", re.sub(r"\s+", " ", sentence)).strip(" -:;,.…")
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""


def _fits(claims: list[Claim], findings: dict[str, Decision]) -> bool:
    """Whether nothing in a sentence goes against the decisions."""
    for label, (state, side) in summarise(claims).items():
        want = findings.get(label)
        if want is None or want[0] != state or (side and side != want[1]):
            return False
    return True


def _quote(one: Heard, decided: Decided, label: str, rank: Callable[[str], float]) -> tuple[str, str] | None:
    """(sentence, teacher) of the most reliable supporting teacher with a usable sentence; shortest first within one."""
    decision = decided.findings[label]
    for teacher in sorted(one.says, key=lambda t: (-rank(t), t)):
        if one.says[teacher].get(label) != decision:
            continue
        spans = {(c.start, c.end) for c in one.claims[teacher] if c.label == label and c.state == decision[0]}
        for start, end in sorted(spans, key=lambda s: (s[1] - s[0], s)):
            sentence = _clean(one.texts[teacher][start:end])
            if not sentence or "<" in sentence:  # no tag or special token may enter a training text
                continue
            claims = read_findings(sentence)
            if summarise(claims).get(label) == decision and _fits(claims, decided.findings):
                return sentence, teacher
    return None


def compose_text(
    one: Heard, decided: Decided, compose: Compose, rank: Callable[[str, str], float]
) -> tuple[str, list[tuple[str, int, int, str]]]:
    """The consensus text and (label, start, end, source) of its sentences; source is a teacher or "template".

    rank: (teacher, label) -> reliability. Read again, the text gives exactly the stated decisions, or in `quote` these
    and further ones that a quoted sentence states in agreement with the decisions.
    """
    stated = decided.stated
    chosen: dict[str, tuple[str, str]] = {
        label: (plain_sentence(label, *decided.findings[label]), "template") for label in stated
    }
    if compose == "quote":
        for label in stated:
            chosen[label] = _quote(one, decided, label, lambda t, k=label: rank(t, k)) or chosen[label]
    while True:
        text, pieces = "", []
        for label in stated:
            sentence, source = chosen[label]
            said_before = next((p for p in pieces if text[p[1] : p[2]] == sentence), None)
            if said_before:  # one quoted sentence for two findings
                pieces.append((label, said_before[1], said_before[2], source))
                continue
            text += (" " if text else "") + sentence
            pieces.append((label, len(text) - len(sentence), len(text), source))
        got = summarise(read_findings(text))
        off = [
            label for label in stated if got.get(label) != decided.findings[label] and chosen[label][1] != "template"
        ]
        if not off:
            return text, pieces
        for label in off:  # sentences that together no longer say what each says alone
            chosen[label] = (plain_sentence(label, *decided.findings[label]), "template")


# --- audit ----------------------------------------------------------------------------------------------------------


def _mark(state: str, side: str | None, decision: Decision | None) -> str:
    decision = decision or ("absent", None)  # a consensus that does not say it has dropped it
    if "uncertain" in (state, decision[0]):
        return "uncertain"
    if decision[0] != state:
        return "consistent" if denies_another_side((state, side), decision) else "conflict"
    return "conflict" if side and decision[1] and side != decision[1] and state == "present" else "consistent"


def make_audit(
    one: Heard,
    findings: dict[str, Decision],
    stated: Sequence[str],
    support: dict[str, dict],
    pieces: Iterable[tuple[str, int, int, str | None]],
) -> dict:
    """Why a consensus says what it says, after the workflow figure of the method. JSON.

    {"findings": {label: {"state", "side", "stated": bool, "said": {teacher: [state, side]}, "votes": {state: n},
    "posterior"?, "sides"?, "against_majority"?: true where the finding was turned round, "labels"?: what labels said to
    that, see `orient_by_labels`, "source"?: teacher or "template", "corrected": [teachers contradicted]}},
    "spans": {teacher: [[start, end, label, "consistent" | "conflict" | "uncertain"]]} into each trajectory's text,
    "consensus_spans": [[start, end, label, "agreed" | "corrected"]] into the consensus ("corrected": it contradicts at
    least one teacher), "unheard": {teacher: why it has no vote}}
    """
    out: dict = {"findings": {}, "spans": {}, "consensus_spans": [], "unheard": dict(one.unheard)}
    pieces = list(pieces)
    sources = {label: source for label, _, _, source in pieces}
    for label in ORDER:
        said = {teacher: list(says[label]) for teacher, says in one.says.items() if label in says}
        if label not in findings and not said:
            continue
        state, side = findings.get(label, (None, None))
        corrected = [t for t, v in said.items() if _mark(v[0], v[1], findings.get(label)) == "conflict"]
        entry = {"state": state, "side": side, "stated": label in stated, "said": said, "corrected": corrected}
        entry |= support.get(label) or {"votes": _counts(one, label)}
        if sources.get(label):
            entry["source"] = sources[label]
        out["findings"][label] = entry
    for teacher, claims in one.claims.items():
        says = one.says[teacher]
        marks = [[c.start, c.end, c.label, _mark(*in_context(c, says), findings.get(c.label))] for c in claims]
        out["spans"][teacher] = [list(m) for m in dict.fromkeys(map(tuple, marks))]
    for label, start, end, _ in pieces:
        corrected = out["findings"].get(label, {}).get("corrected")
        out["consensus_spans"].append([start, end, label, "corrected" if corrected else "agreed"])
    return out


# --- strategies -----------------------------------------------------------------------------------------------------


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
    decided, reliability = _decide(heard, teachers, model=model, truths=_truths(studies, labels or {}))
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


def claim_distance(a: dict[str, Decision], b: dict[str, Decision]) -> float:
    """How far two readings are apart, summed over the labels; symmetric, 0 for equal readings.

    Present is 1, uncertain 1/2, absent and silence 0 (silence counts as in the votes), and two states are as far apart
    as these numbers. Where both are present, or both uncertain, the sides are compared: left against right 1 (1/2 if
    uncertain), bilateral or no side against one side half of that, so that a vague text is not close to everybody. "No
    Finding" is left out: it follows from the others and would keep a terse "normal" from a list of denials.
    """
    weight = {"present": 1.0, "uncertain": 0.5, "absent": 0.0}
    total = 0.0
    for label in {*a, *b} - {"No Finding"}:
        (state, side), (other, other_side) = a.get(label, ("absent", None)), b.get(label, ("absent", None))
        total += abs(weight[state] - weight[other])
        if state == other and side != other_side:
            total += weight[state] * (1.0 if {side, other_side} == {"left", "right"} else 0.5)
    return total


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a text, without punctuation and Markdown."""
    return re.findall(r"[^\W_]+", text.lower())


def token_overlap(a: Counter, b: Counter) -> float:
    """Dice coefficient of two bags of words, 2 |a & b| / (|a| + |b|): the F1 of unigram precision and recall."""
    size = a.total() + b.total()
    return 2.0 * (a & b).total() / size if size else 0.0


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


# --- self -----------------------------------------------------------------------------------------------------------

INSTRUCTION = (
    "Below are {n} independent readings of this examination. They may contradict each other, and any of them may be "
    "wrong. Look at the image yourself and write one reading that is consistent in itself: keep what several readings "
    "support and the image shows, drop what has no support, and settle contradictions, sides included. Do not mention "
    "the readings. Write only the final reading."
)


class SelfPrompt(NamedTuple):
    text: str  # the user turn, with the study's own <image> tags and no others
    order: list[str]  # teachers in the order of the readings
    dropped: list[str]  # teachers whose readings were left out for length


def study_rng(study: dict, seed: int = 0) -> random.Random:
    """A random generator that depends on the seed and the study id only, not on its place in a file or shard."""
    return random.Random(int.from_bytes(hashlib.sha256(f"{seed}:{study['id']}".encode()).digest()[:8], "big"))


def self_prompt(
    study: dict,
    rng: random.Random,
    *,
    length: Callable[[str], int] | None = None,
    limit: int | None = None,
) -> SelfPrompt | None:
    """The prompt of the `self` strategy: the study's prompt, an instruction, and all ok trajectories.

    Teachers are not named (their names are also struck out of the texts) and stand in an order shuffled by `rng`, so
    that no teacher has a place.

    Args:
        length, limit: `length(text)` tokens, image tokens included, must be at most `limit`. A longer prompt loses
            whole readings from the end of the shuffled order until it fits: never a part of one, never film tokens.

    Returns None when there is no ok trajectory, or when not even one reading fits.
    """
    readings = [(t["teacher"], t["text"]) for t in study["trajectories"] if t["status"] == "ok"]
    rng.shuffle(readings)
    names = sorted({t["teacher"] for t in study["trajectories"]}, key=len, reverse=True)
    hide = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names), re.IGNORECASE)
    texts = [hide.sub("the reader", text).replace("<", "‹").replace(">", "›").strip() for _, text in readings]
    for kept in range(len(readings), 0, -1):
        parts = [study["prompt"], INSTRUCTION.format(n=kept)]
        parts += [f"Reading {i}:\n{text}" for i, text in enumerate(texts[:kept], 1)]
        prompt = "\n\n".join([*parts, "Final reading:"])
        if length is None or limit is None or length(prompt) <= limit:
            order = [teacher for teacher, _ in readings]
            return SelfPrompt(prompt, order[:kept], order[kept:])
    return None


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
    """The paper's strategy: `answer` (apo/compare.py, or any model) writes one text a study; None where it failed."""
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
