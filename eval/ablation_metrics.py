"""Every number of one run of the ablation matrix, from what it left behind: one JSON object.

    python -m eval.ablation_metrics --studies COMPARED.jsonl --results results.json --out FILE.json
        [--answers test.jsonl] [--rewards rewards.jsonl --log logging.jsonl --beta 0.1 --trained-on STUDIES.jsonl]
        [--calibration sure.jsonl]

- accuracy, balanced accuracy, laterality, malformed: the student's row of results.json (eval/phantom.py), and beside it
  the teachers, the majority class and the consensus on the same films;
- `hallucinated` and `missed`: findings said and not there, there and not said, of the five, a film; a malformed answer
  misses all that is there. `hallucination_rate` and `miss_rate`: the same as shares of the absent and present findings;
- `drift`: the held-out films in three equal strata by how much the teachers contradict each other (`conflict_by_film`),
  each with its mean conflict, n, and the accuracy of the student, the consensus and every teacher;
- `looks`: pairs of a held-out film and one of the five findings, those on which the film misleads
  (`data.phantom.teachers.misleads`: small findings, look-alikes) and the plain ones: n, and accuracy as in `drift`;
- `consensus_form`: share of answers that are word for word what the plain form of the consensus would say of their own
  reading;
- `training`: means of the first and last tenth of the logged steps, a thinned curve, and the displacement: how many
  nats the log-probability of the consensus and of the negatives moved from the reference;
- `rewards`: on the validation films, margin = log-ratio of the consensus minus that of a trajectory, in nats, and its
  rank correlation with three things: the difference of their lengths, the difference of a style classifier's scores
  (the shortcuts), and how many of the five findings the trajectory has wrong (what the margin should follow);
- `style_auc`: how well word counts alone tell the consensus from the negatives of the training file, the words of the
  consensus form struck out, on the validation films. 0.5: not at all;
- `kl`: mean log-ratio of own samples (eval/rewards.py);
- `calibration`: of P(present) in the student's own reports (eval/calibration.py), over all films and the five findings.

A number that is not defined is null. Without --answers the consensus stands in the place of the student.
"""

import argparse
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError, run_cli
from data.files import StrPath, read_jsonl, refuse_input, write_atomic
from data.findings import read_findings, summarise
from data.findings_lexicon import FIVE, LABELS
from data.phantom.teachers import misleads
from data.plain_sentences import plain_sentence
from data.records import SIDES, read_studies
from data.rows import ok_trajectories
from data.variants import plain_text
from eval import presence
from eval.phantom import consensus_texts, refuse_without_findings, split_of, teacher_texts
from eval.predict import read_answers
from eval.report import read_log, read_results
from eval.statistics import calibration

CURVE = (
    "logps/chosen",
    "logps/rejected",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "effective_negatives",
    "nll_loss",
    "loss",
)
POINTS = 20
DIGITS = 5


def in_consensus_form(text: str) -> bool:
    """Whether a text is word for word the plain consensus of its own reading."""
    reading = summarise(read_findings(text))
    return bool(reading) and text.split() == plain_text(reading).split()


def errors(truths: Sequence[presence.Reading], answers: Sequence[presence.Reading | None]) -> dict[str, float | None]:
    """Hallucinated and missed findings of the five, a film and as rates; a malformed answer (None) says nothing."""
    truth = presence.truth_matrix(truths)
    said = presence.truth_matrix([answer or {} for answer in answers])
    false, lost = said & ~truth, truth & ~said
    return {
        "hallucinated": float(false.sum(1).mean()),
        "missed": float(lost.sum(1).mean()),
        "hallucination_rate": _share(false.sum(), (~truth).sum()),
        "miss_rate": _share(lost.sum(), truth.sum()),
    }


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


STRATA = ("low", "middle", "high")


Readings = Sequence[presence.Reading | None]


def conflict_by_film(teachers: Sequence[Readings]) -> np.ndarray:
    """[films] in [0, 0.5]: share of the teachers in the minority, mean over the five findings.

    `teachers`: a reading a film of each; one that is None does not vote. A film with fewer than two votes has no
    conflict (0).
    """
    voters = np.array([[reading is not None for reading in one] for one in teachers]).sum(0)
    votes = np.array([presence.truth_matrix([reading or {} for reading in one]) for one in teachers]).sum(0)
    share = votes / np.maximum(voters, 1)[:, None]
    return np.where(voters > 1, np.minimum(share, 1 - share).mean(1), 0.0)


def drift_strata(
    truths: Sequence[presence.Reading], teachers: dict[str, Readings], others: dict[str, Readings]
) -> dict[str, Any]:
    """Stratum -> {"n", "conflict", "accuracy": over the five findings, of all teachers and others by name}.

    Strata are thirds of the films in the order of their conflict, ties in file order; {} for fewer than three films.
    """
    if len(truths) < len(STRATA):
        return {}
    conflict = conflict_by_film(list(teachers.values())) if teachers else np.zeros(len(truths))
    correct = {name: presence.correct_matrix(truths, said).mean(1) for name, said in {**teachers, **others}.items()}
    parts = np.array_split(np.argsort(conflict, kind="stable"), len(STRATA))
    return {
        stratum: {
            "n": len(part),
            "conflict": float(conflict[part].mean()),
            "accuracy": {name: float(values[part].mean()) for name, values in correct.items()},
        }
        for stratum, part in zip(STRATA, parts, strict=True)
    }


LOOKS = ("misleading", "plain")


def accuracy_by_looks(
    studies: Sequence[dict], truths: Sequence[presence.Reading], said: dict[str, Readings]
) -> dict[str, Any]:
    """One of LOOKS -> {"n": pairs of a film and a finding, "accuracy": of each that speaks, null without a pair}."""
    misled = np.array([[misleads(study["findings"], label) for label in FIVE] for study in studies], bool)
    correct = {name: presence.correct_matrix(truths, readings) for name, readings in said.items()}
    return {
        kind: {
            "n": int(pairs.sum()),
            "accuracy": {name: _share(values[pairs].sum(), pairs.sum()) for name, values in correct.items()},
        }
        for kind, pairs in zip(LOOKS, (misled, ~misled), strict=True)
    }


def training_curve(log: Sequence[dict], beta: float | None) -> dict[str, Any]:
    """What a logging.jsonl says of a training (eval.report.read_log); {} without a step.

    beta: turns rewards into nats from the reference; None: the rewards are not measured from one.
    """
    steps = [row for row in log if "loss" in row]
    if not steps:
        return {}
    tenth = max(1, len(steps) // 10)

    def mean(rows: Sequence[dict], key: str) -> float | None:
        values = [row[key] for row in rows if key in row]
        return float(np.mean(values)) if values else None

    keys = [key for key in CURVE if any(key in row for row in steps)]
    chosen = (
        steps if len(steps) <= POINTS else [steps[round(i * (len(steps) - 1) / (POINTS - 1))] for i in range(POINTS)]
    )
    found: dict[str, Any] = {
        "steps": steps[-1]["step"],
        "first": {key: mean(steps[:tenth], key) for key in keys},
        "last": {key: mean(steps[-tenth:], key) for key in keys},
        "curve": {"step": [row["step"] for row in chosen]} | {k: [row.get(k) for row in chosen] for k in keys},
    }
    for name in ("chosen", "rejected"):
        reward = found["last"].get(f"rewards/{name}")
        found[f"displacement_{name}"] = None if reward is None or beta is None else reward / beta
    return found


def content_words() -> set[str]:
    """The words that the plain form of the consensus is made of: names of findings, sides, no, possible."""
    found: set[str] = set()
    for label, state, side in itertools.product(LABELS, ("present", "absent", "uncertain"), (None, *SIDES)):
        if label == "No Finding" and state == "absent":
            continue
        found.update(re.findall(r"\w+", plain_sentence(label, state, side).lower()))
    return found


class Style:
    """Tells positives from negatives by counts of words and marks, content words struck out."""

    def __init__(self, positives: Sequence[str], negatives: Sequence[str]):
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import MaxAbsScaler

        counts = CountVectorizer(token_pattern=r"\w+|[^\w\s]|\n", stop_words=sorted(content_words()))
        self.model = make_pipeline(counts, MaxAbsScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
        self.model.fit([*positives, *negatives], [1] * len(positives) + [0] * len(negatives))

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """[n] log-odds of being a positive."""
        return self.model.decision_function(list(texts))


def texts_of(studies: Sequence[dict], split: str, limit: int | None = None) -> tuple[list[str], list[str]]:
    """(consensus texts, trajectory texts) of the first `limit` studies of a split that have both."""
    usable = [s for s in studies if s["split"] == split and s.get("consensus") and ok_trajectories(s)][:limit]
    return [s["consensus"]["text"] for s in usable], [one["text"] for s in usable for one in ok_trajectories(s)]


def fit_style(studies: Sequence[dict]) -> tuple[Style | None, float | None]:
    """(classifier of the first 400 training studies, its AUC on the validation studies); None where there are none."""
    from sklearn.metrics import roc_auc_score

    positives, negatives = texts_of(studies, "train", 400)
    if not positives or set(positives) == set(negatives):
        return None, None
    style = Style(positives, negatives)
    held = texts_of(studies, "validate")
    if not held[0]:
        return style, None
    truth = [1] * len(held[0]) + [0] * len(held[1])
    return style, float(roc_auc_score(truth, style.scores([*held[0], *held[1]])))


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank correlation; None for fewer than three pairs or a constant side."""
    from scipy.stats import spearmanr

    if len(a) < 3 or len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return float(spearmanr(a, b).statistic)


def reward_metrics(rows: Sequence[dict], studies: Sequence[dict], style: Style | None) -> dict[str, Any]:
    """Margins of eval.rewards' rows against length, style and errors; KL. `studies`: the file that was scored."""
    known = {study["id"]: study for study in studies}
    margins, lengths, wrong, pairs, wins = [], [], [], [], []
    for row in rows:
        study = known.get(row["id"])
        if study is None:
            raise UserError(f"study {row['id']!r}: has rewards and is not in the file of studies; check --studies")
        texts = {one["teacher"]: one["text"] for one in ok_trajectories(study)}
        positive = row["consensus"]
        best = []
        for teacher, score in row["teachers"].items():
            margin = positive["policy"] - positive["reference"] - (score["policy"] - score["reference"])
            margins.append(margin)
            best.append(margin)
            lengths.append(positive["tokens"] - score["tokens"])
            pairs.append((study["consensus"]["text"], texts[teacher]))
            truth = [presence.read_truth(study)]
            answer = [presence.read_answer(texts[teacher])]
            wrong.append(int((~presence.correct_matrix(truth, answer)).sum()))
        wins.append(min(best) > 0 if best else None)
    gaps = (
        [] if style is None or not pairs else style.scores([a for a, _ in pairs]) - style.scores([b for _, b in pairs])
    )
    own = [row["own"] for row in rows if row["own"]]
    ratios = [one["policy"] - one["reference"] for one in own]
    won = [win for win in wins if win is not None]
    return {
        "studies": len(rows),
        "margin_nats": float(np.mean(margins)) if margins else None,
        "beats_all": float(np.mean(won)) if won else None,
        "margin_length": spearman(margins, lengths),
        "margin_style": spearman(margins, list(gaps)) if len(gaps) else None,
        "margin_errors": spearman(margins, wrong),
        "kl": float(np.mean(ratios)) if ratios else None,
        "kl_per_token": float(np.sum(ratios) / sum(one["tokens"] for one in own)) if own else None,
        "own_samples": len(own),
    }


def result_metrics(results: dict, kind: str = "student", path: StrPath = "--results") -> dict[str, Any]:
    """The one row of a kind (student, or consensus) of a results.json and what stands beside it; UserError without."""
    rows = results["rows"]
    of_kind = [row for row in rows if row["kind"] == kind]
    if len(of_kind) != 1:
        raise UserError(
            f"{path}: holds {len(of_kind)} rows of kind {kind}, not one; make it with eval.phantom from --studies "
            "and, where there are --answers, from these"
        )
    (student,) = of_kind
    teachers = {row["name"]: row["mean_accuracy"] for row in rows if row["kind"] == "teacher"}
    named = {row["kind"]: row for row in rows if row["kind"] in ("baseline", "consensus")}
    names = ("mean_accuracy", "mean_balanced_accuracy", "accuracy", "balanced_accuracy", "malformed_rate", "n")
    found = {name: student[name] for name in names}
    found["laterality"], found["laterality_n"] = student["laterality"]["accuracy"], student["laterality"]["n"]
    found["teachers"] = teachers
    found["best_teacher"] = max(teachers.values()) if teachers else None
    found["majority_class"] = named["baseline"]["mean_accuracy"] if "baseline" in named else None
    if "consensus" in named:
        keep = ("mean_accuracy", "mean_balanced_accuracy", "malformed_rate")
        found["consensus"] = {name: named["consensus"][name] for name in keep}
    return found


def sureness(rows: Sequence[dict], studies: Sequence[dict]) -> dict[str, Any]:
    """Calibration of eval.calibration's rows against the truth of `studies`, all findings together."""
    truths = {study["id"]: presence.read_truth(study) for study in studies}
    unknown = [row["id"] for row in rows if row["id"] not in truths]
    if unknown:
        raise UserError(f"study {unknown[0]!r}: has probabilities and is not in the file of studies; check --studies")
    pairs = [(presence.is_present(truths[row["id"]], label), p) for row in rows for label, p in row["p"].items()]
    return {"films": len(rows), **calibration([there for there, _ in pairs], [p for _, p in pairs])}


def read_all(texts: Sequence[str | None]) -> list[presence.Reading | None]:
    return [presence.read_answer(text) for text in texts]


def rounded(value: Any) -> Any:
    """Floats to DIGITS decimals, all the way down; one that is not finite is null."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    if isinstance(value, float):
        return round(value, DIGITS) if np.isfinite(value) else None
    return value


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.ablation_metrics", description=__doc__.split("\n")[0])
    parser.add_argument("--studies", required=True, type=Path, help="study records with the row's consensus")
    parser.add_argument("--answers", type=Path, help="answers of eval.predict to the split test")
    parser.add_argument("--results", required=True, type=Path, help="results.json of eval.phantom for these answers")
    parser.add_argument("--rewards", type=Path, help="rows of eval.rewards")
    parser.add_argument("--log", type=Path, help="logging.jsonl of the training")
    parser.add_argument("--beta", type=float, help="of the training, to turn rewards into nats from its reference")
    parser.add_argument("--trained-on", type=Path, help="study file whose consensus and trajectories were trained on")
    parser.add_argument("--calibration", type=Path, help="rows of eval.calibration")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(argv)
    given = (args.answers, args.rewards, args.log, args.trained_on, args.calibration)
    refuse_input(args.out, args.studies, args.results, *filter(None, given))
    studies = list(read_studies(args.studies))
    refuse_without_findings(studies, args.studies)
    test = split_of(studies, "test", args.studies)
    agreed = consensus_texts(test)
    if args.answers:
        answers = read_answers(args.answers, [study["id"] for study in test])
    elif agreed is None:
        raise UserError(f"{args.studies}: holds no consensus; name the --answers of a student")
    else:
        answers = [{"text": text or ""} for text in agreed]
    truths = [presence.read_truth(study) for study in test]
    readings = read_all([row["text"] for row in answers])
    metrics = result_metrics(read_results(args.results), "student" if args.answers else "consensus", args.results)
    metrics |= errors(truths, readings)
    others = {"student": readings} | ({} if agreed is None else {"consensus": read_all(agreed)})
    teachers = {name: read_all(texts) for name, texts in teacher_texts(test).items()}
    metrics["drift"] = drift_strata(truths, teachers, others)
    metrics["looks"] = accuracy_by_looks(test, truths, teachers | others)
    metrics["consensus_form"] = float(np.mean([in_consensus_form(row["text"]) for row in answers]))
    metrics["cut_off"] = float(np.mean([row.get("finish_reason") == "length" for row in answers]))
    metrics["words"] = float(np.mean([len(row["text"].split()) for row in answers]))
    style, auc = fit_style(list(read_studies(args.trained_on))) if args.trained_on else (None, None)
    metrics["style_auc"] = auc
    metrics["training"] = training_curve(read_log(args.log), args.beta) if args.log else {}
    if args.rewards:
        metrics["rewards"] = reward_metrics([row for _, row in read_jsonl(args.rewards)], studies, style)
    if args.calibration:
        metrics["calibration"] = sureness([row for _, row in read_jsonl(args.calibration)], studies)
    write_atomic(args.out, json.dumps(rounded(metrics), indent=2, allow_nan=False) + "\n")
    print(f"mean accuracy {metrics['mean_accuracy']:.4f}; written: {args.out}")


if __name__ == "__main__":
    run_cli(main)
