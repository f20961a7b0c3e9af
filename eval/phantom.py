"""Score a phantom cohort: every teacher, the majority class, the consensus and the student, on the same films.

    python -m eval.phantom --studies COMPARED.jsonl --predictions learn=FILE --predictions critique=FILE --out FILE.json

Rows of results.json: `name`, `kind` (teacher | baseline | consensus | student), `stage` for students called after one,
`n`, the metrics of `eval.presence` by finding, and a 95 % bootstrap interval by patient of the mean accuracy. A
teacher's refused, filtered, empty or missing trajectory is a malformed answer; so is a missing consensus. The majority
class is taken from the studies of split "train", never from the films that are scored. Studies without `findings` are
left out of the score; a note counts them. --consensus NAME=FILE is a row for the consensus of another round of the same
films. --check ends before predictions and other rounds are read.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import compress
from pathlib import Path

from data.errors import GOES_ON, UserError, refuse_below_one, refuse_negative, run_cli
from data.files import StrPath, refuse_input, sha256_file, write_atomic
from data.findings_lexicon import LABELS
from data.records import SPLITS, read_studies
from eval import presence
from eval.items import CONSENSUS, MAJORITY
from eval.predict import read_answers
from eval.presence import FIVE
from eval.statistics import LEVEL, interval, patient_draws
from scripts import machine

SCHEMA = 1
STAGES = ("learn", "critique", "second round")  # each is compared with the one before
PACKAGES = ("torch", "torchvision", "transformers", "ms-swift", "trl", "peft", "datasets", "numpy", "scikit-learn")
# Statuses whose text is an answer. "truncated" is read as far as it goes, like a student's cut-off answer.
ANSWERED = ("ok", "truncated")


def split_of(
    studies: Iterable[dict], split: str, path: StrPath, remedy: str = "name a file that has some"
) -> list[dict]:
    """The studies of one split, in file order; UserError when there is none, which names `path` and the remedy."""
    chosen = [s for s in studies if s.get("split") == split]
    if not chosen:
        raise UserError(f'{path}: no study of split "{split}"; {remedy}')
    return chosen


def teacher_texts(studies: Sequence[dict]) -> dict[str, list[str | None]]:
    """Teacher -> one text a study, None where it gave no answer."""
    names = sorted({t["teacher"] for s in studies for t in s["trajectories"]})
    texts: dict[str, list[str | None]] = {name: [] for name in names}
    for study in studies:
        found = {t["teacher"]: t["text"] for t in study["trajectories"] if t.get("status", "ok") in ANSWERED}
        for name in names:
            texts[name].append(found.get(name))
    return texts


def consensus_texts(studies: Sequence[dict]) -> list[str | None] | None:
    """One consensus text a study (None where it is missing); None when no study has one."""
    texts = [(s.get("consensus") or {}).get("text") for s in studies]
    return texts if any(texts) else None


def read_consensus(path: StrPath, studies: Sequence[dict]) -> list[str | None]:
    """The consensus of another study file in the order of `studies`; UserError where it lacks a study, or any text."""
    others = {s["id"]: s for s in read_studies(path)}
    absent = [s["id"] for s in studies if s["id"] not in others]
    if absent:
        raise UserError(
            f"{path}: {len(absent)} of the {len(studies)} studies that are scored are not there, as {absent[0]!r}; "
            "name the file of another round of the same films"
        )
    texts = consensus_texts([others[s["id"]] for s in studies])
    if texts is None:
        raise UserError(f"{path}: none of the studies that are scored has a consensus; write one with compare.sh")
    return texts


def read_predictions(path, studies: Sequence[dict]) -> list[str]:
    """Answers in the order of `studies`; UserError as `eval.predict.read_answers` raises it."""
    return [row["text"] for row in read_answers(path, [s["id"] for s in studies])]


def majority_reading(train: Sequence[dict], labels: Sequence[str], uncertain: str) -> presence.Reading:
    """The answer that ignores the film: present exactly for the findings present in more than half of `train`."""
    truth = presence.truth_matrix([presence.read_truth(s) for s in train], labels, uncertain)
    share = truth.mean(0)
    return {label: ("present" if p > 0.5 else "absent", None) for label, p in zip(labels, share, strict=True)}


def evaluate(
    studies: Sequence[dict],
    predictions: dict[str, Sequence[str]],
    *,
    train: Sequence[dict] = (),
    rounds: dict[str, Sequence[str | None]] | None = None,
    seed: int = 0,
    resamples: int = 1000,
    uncertain: str = "present",
) -> dict:
    """Score everything that speaks about `studies`.

    Args:
        studies: the scored studies (with `findings`), all of one split.
        predictions: student name -> one text a study, in the order of `studies`; those of STAGES are stages.
        train: studies that the majority class is counted on; without any, that row is left out and a note says so.
        rounds: name -> the consensus of another round, one text a study, None where it has none.

    Returns {"rows": [...], "comparisons": [...], "notes": [...]}.
    """
    notes = []
    truths = [presence.read_truth(s) for s in studies]
    known = [label for label in LABELS if label not in FIVE and label != "No Finding"]
    others = [label for label in known if any(presence.is_present(t, label, uncertain) for t in truths)]
    index, draws = patient_draws([s["patient"] for s in studies], resamples, seed)
    correct: dict[str, object] = {}

    def row(name: str, kind: str, readings: list, **extra) -> dict:
        scores = presence.score_answers(truths, readings, others=others, uncertain=uncertain)
        correct[name] = presence.correct_matrix(truths, readings, uncertain)
        low_high = interval(presence.bootstrap_mean(correct[name], index, draws))
        return {"name": name, "kind": kind, **extra, **scores, "mean_accuracy_ci95": low_high}

    def text_row(name: str, kind: str, texts: Sequence[str | None], **extra) -> dict:
        return row(name, kind, [presence.read_answer(t) for t in texts], **extra)

    teachers = [text_row(name, "teacher", texts) for name, texts in teacher_texts(studies).items()]
    rows = sorted(teachers, key=lambda r: -r["mean_accuracy"])
    with_truth = [s for s in train if s.get("findings") is not None]
    if with_truth:
        reading = majority_reading(with_truth, (*FIVE, *others), uncertain)
        rows.append(row(MAJORITY, "baseline", [reading] * len(studies), train_studies=len(with_truth)))
    else:
        notes.append("no majority-class row: no training study with findings was given")
    consensus = consensus_texts(studies)
    if consensus is None:
        notes.append("no consensus row: the studies carry no consensus")
    else:
        rows.append(text_row(CONSENSUS, "consensus", consensus))
    rows += [text_row(f"{CONSENSUS}, {name}", "consensus", texts) for name, texts in (rounds or {}).items()]
    for name, texts in predictions.items():
        stage = {"stage": name} if name in STAGES else {}
        rows.append(text_row(f"student, {name}" if stage else name, "student", texts, **stage))

    best = rows[0] if teachers else None
    for r in rows:
        r["beats_all_teachers"] = None if best is None else r["mean_accuracy"] > best["mean_accuracy"]
    pairs = []
    names = {r.get("stage"): r["name"] for r in rows if r["kind"] == "student"}
    pairs += [(names[b], names[a]) for a, b in itertools.pairwise(STAGES) if a in names and b in names]
    if best:
        pairs += [(r["name"], best["name"]) for r in rows if r["kind"] in ("consensus", "student")]
    comparisons = []
    for a, b in pairs:
        samples = presence.bootstrap_mean(correct[a].astype(float) - correct[b], index, draws)
        difference = float(correct[a].mean() - correct[b].mean())
        comparisons.append({"a": a, "b": b, "mean_accuracy_difference": difference, "ci95": interval(samples)})
    return {"rows": rows, "comparisons": comparisons, "notes": notes}


def environment() -> dict:
    """Where the numbers were made, without anything that names the machine or its user."""
    return {
        "platform": platform.system() + " " + platform.machine(),
        "cpus": os.cpu_count(),
        "commit": machine.git("rev-parse", "HEAD"),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def versions(packages: Sequence[str] = PACKAGES) -> dict:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def render_table(results: dict) -> str:
    """The rows as plain text for a terminal: accuracy by finding in percent, then the two means."""
    head = ["", *(name.replace("Pleural Effusion", "Effusion") for name in FIVE), "mean", "95% interval"]
    head += ["balanced", "malformed", ""]
    lines = [head]
    for r in results["rows"]:
        low, high = r["mean_accuracy_ci95"]
        mark = "*" if r["beats_all_teachers"] and r["kind"] != "teacher" else ""
        lines.append(
            [r["name"], *(percent(r["accuracy"][f]) for f in FIVE), percent(r["mean_accuracy"])]
            + [f"{percent(low)} to {percent(high)}", percent(r["mean_balanced_accuracy"])]
            + [percent(r["malformed_rate"]), mark]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    out = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    rule = "-" * max(len(line) for line in out)
    kinds = [r["kind"] for r in results["rows"]]
    body = []
    for i, line in enumerate(out[1:]):
        if i and kinds[i] != kinds[i - 1]:
            body.append(rule)
        body.append(line)
    films = "held-out films" if results["split"] == "test" else f"films of split {results['split']}"
    foot = [f"Accuracy in percent over {results['rows'][0]['n']} {films}, the same for every row."]
    if "teacher" in kinds:
        winners = [r["name"] for r in results["rows"] if r["beats_all_teachers"] and r["kind"] != "teacher"]
        foot.append(f"* Mean accuracy above every teacher: {'; '.join(winners) or 'none'}.")
    for c in results["comparisons"]:
        low, high = (100 * x for x in c["ci95"])
        points = 100 * c["mean_accuracy_difference"]
        foot.append(f"{c['a']} minus {c['b']}: {points:+.1f} points ({low:+.1f} to {high:+.1f})")
    foot += [f"Note: {note}." for note in results["notes"]]
    return "\n".join([out[0], rule, *body, rule, *foot])


def percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f}"


def named_files(values: Sequence[str], flag: str = "--predictions") -> dict[str, Path]:
    """["learn=FILE", ...] -> {"learn": Path}; UserError for anything else, and for a name given twice."""
    files: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name.strip() and name.isprintable() and equals and path):
            said = " ".join(value.split())
            raise UserError(f"{flag} {said}: write NAME=FILE, as in learn=runs/quickstart/evaluate/learn.jsonl")
        if name in files:
            raise UserError(f"{flag} {value}: the name {name} is given twice")
        files[name] = Path(path)
    return files


def refuse_taken(names: Iterable[str], others: Iterable[str]) -> None:
    """UserError for a name of a row that a teacher or another row (`others`) has, whatever the case."""
    taken = {name.casefold() for name in others}
    for name in names:
        if name.casefold() in taken:
            raise UserError(f"the name {name} is that of a teacher or another row; give another (evaluate.sh: --name)")


def with_findings(studies: Sequence[dict], split: str, path: StrPath) -> tuple[list[dict], list[str]]:
    """(the studies that can be scored, a note that counts the others, if any); UserError where none can."""
    scored = [s for s in studies if s.get("findings") is not None]
    if not scored:
        raise UserError(
            f'{path}: none of the {len(studies)} studies of split "{split}" has findings; make the records with '
            "labels, or choose another --split"
        )
    left = len(studies) - len(scored)
    said = f'{left} of {len(studies)} studies of split "{split}" have no findings and are left out of the score'
    return scored, [said] if left else []


def refuse_without_findings(studies: Sequence[dict], path: StrPath) -> None:
    """Raise UserError, which names `path`, for the first study whose findings are not known."""
    for study in studies:
        if study.get("findings") is None:
            raise UserError(f"{path}: study {study['id']}: no findings to score against; name a phantom cohort")


def refuse_benchmarks(out: StrPath) -> None:
    """UserError when --out is the results.json of a run on benchmarks, which a score of studies would replace."""
    try:
        held = json.loads(Path(out).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(held, dict) and "benchmarks" in held:
        raise UserError(f"--out {out}: holds the results of benchmarks (eval.run); choose another")


def read_seconds(pairs: Sequence[str], stages_file: str | None) -> dict[str, float]:
    """Seconds by stage, from a stages.json of scripts/stages.py and from STAGE=SECONDS pairs (which win)."""
    seconds: dict[str, float] = {}
    if stages_file:
        try:
            stages = json.loads(Path(stages_file).read_text(encoding="utf-8"))["stages"]
            seconds = {name: float(entry["seconds"]) for name, entry in stages.items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{stages_file}: not a stages file ({type(error).__name__}); run scripts/quickstart.sh"
            ) from None
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            seconds[name] = float(value)
        except ValueError:
            raise UserError(f"--seconds {pair}: write STAGE=SECONDS, as in learn=142") from None
    return seconds


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.phantom", description=__doc__.split("\n")[0])
    parser.add_argument("--studies", required=True, help="study records with findings (and, for its row, consensus)")
    parser.add_argument(
        "--predictions", action="append", default=[], metavar="NAME=FILE", help="output of eval.predict"
    )
    parser.add_argument(
        "--consensus", action="append", default=[], metavar="NAME=FILE", help="study file of another round"
    )
    parser.add_argument("--out", required=True, help="results.json to write")
    parser.add_argument("--table", help="also write the printed table to this file")
    parser.add_argument("--split", choices=SPLITS, default="test", help="the split to score (default: test)")
    parser.add_argument("--limit", type=int, help="score only the first N studies of the split, as in eval.predict")
    parser.add_argument("--uncertain", default="present", choices=presence.UNCERTAIN, help='what "possible" counts as')
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples by patient (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run, also of the bootstrap (default: 0)")
    parser.add_argument("--seconds", nargs="*", action="extend", default=[], metavar="STAGE=SECONDS")
    parser.add_argument("--stages-file", help="stages.json of scripts/stages.py, for the seconds by stage")
    parser.add_argument("--check", action="store_true", help="refuse what would be refused before there are answers")
    args = parser.parse_args(argv)
    refuse_below_one(args, "resamples", "limit")
    refuse_negative(args, "seed")
    files, others = named_files(args.predictions), named_files(args.consensus, "--consensus")
    read = (args.studies, *files.values(), *others.values(), *filter(None, [args.stages_file]))
    for option, written in (("--out", args.out), ("--table", args.table)):
        if written:
            refuse_input(written, *read, option=option)
    if args.table and os.path.realpath(args.table) == os.path.realpath(args.out):
        raise UserError(f"--table {args.table}: is the file of --out; choose another")
    refuse_benchmarks(args.out)
    everything = list(read_studies(args.studies))
    studies = split_of(everything, args.split, args.studies, "check --split and --studies")[: args.limit]
    scorable, left_out = with_findings(studies, args.split, args.studies)
    refuse_taken(files, {MAJORITY, CONSENSUS} | {t["teacher"] for s in everything for t in s["trajectories"]})
    if args.check:
        for note in left_out:
            print(f"note: {note}", file=sys.stderr)
        return
    # Every study was asked, those without findings too.
    known = [s.get("findings") is not None for s in studies]
    predictions = {name: list(compress(read_predictions(path, studies), known)) for name, path in files.items()}
    train = [s for s in everything if s.get("split") == "train"]
    rounds = {name: read_consensus(path, scorable) for name, path in others.items()}
    scored = evaluate(
        scorable,
        predictions,
        train=train,
        rounds=rounds,
        seed=args.seed,
        resamples=args.resamples,
        uncertain=args.uncertain,
    )
    if not scored["rows"]:
        raise UserError(
            f"{args.studies}: nobody to score: no trajectory, no consensus, no studies of split train; give answers "
            "with --predictions NAME=FILE"
        )
    scored["notes"] += left_out
    results = {
        "schema": SCHEMA,
        "seed": args.seed,
        "seconds": read_seconds(args.seconds, args.stages_file),
        "split": args.split,
        "studies": {
            "file": Path(args.studies).name,
            "sha256": sha256_file(args.studies),
            "asked": len(studies),
            "scored": len(scorable),
        },
        "predictions": {name: sha256_file(path) for name, path in files.items()},
        "consensus": {name: sha256_file(path) for name, path in others.items()},
        "rules": {"uncertain": args.uncertain, "malformed": "wrong for every finding", "unmentioned": "absent"},
        "bootstrap": {"unit": "patient", "resamples": args.resamples, "seed": args.seed, "level": LEVEL},
        **scored,
        "versions": versions(),
        "environment": environment(),
    }
    write_atomic(args.out, json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    table = render_table(results)
    if args.table:
        write_atomic(args.table, table + "\n")
    print(table)
    print(f"written: {args.out}")


if __name__ == "__main__":
    run_cli(main, GOES_ON)
