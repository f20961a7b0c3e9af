"""One self-contained HTML page of a phantom run: table, curves, accuracy map, sample films with what was said of them.

    python -m eval.report --results results.json --studies COMPARED.jsonl --image-root DIR \\
        --predictions learn=FILE --predictions critique=FILE [--consensus "second round=STUDIES"] \\
        --learn-log DIR/logging.jsonl --critique-log DIR/logging.jsonl [--second-log DIR/logging.jsonl] \\
        --out report.html

Nothing is loaded from elsewhere: films are embedded, charts are inline SVG, and every text is escaped.
"""

import argparse
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from data import pages
from data.errors import UserError, refuse_negative, run_cli
from data.files import read_jsonl, refuse_input, sha256_file, write_atomic
from data.images import decode_problem, file_problem
from data.records import did_you_mean, image_paths, read_studies, root_of
from eval import charts, phantom, presence
from eval.presence import FIVE

FILM_SIDE = 448  # pixels; larger films are shrunk for the page
CRITIQUE_CURVES = [
    ("APO loss", ("loss", "eval_loss")),
    ("Rewards", ("rewards/chosen", "rewards/rejected")),
    ("Reward margin", ("rewards/margins",)),
    ("Chosen beats all negatives", ("rewards/accuracies",)),
]
CURVES = {
    "learn": [("Loss", ("loss", "eval_loss"))],
    "critique": CRITIQUE_CURVES,
    "second round": CRITIQUE_CURVES,
}


def read_log(path) -> list[dict]:
    """The step rows of an ms-swift logging.jsonl as [{"step": int, key: float, ...}]; [] for None.

    Rows without "global_step/max_steps" (the summary at the end) and values that are no numbers are left out. NaN and
    Infinity, which are no JSON but what ms-swift logs of a run that diverged, are read as such.

    Raises:
        UserError: the file is missing, or a line other than a torn last one is not JSON.
    """
    rows = []
    for _, row in read_jsonl(path, torn="drop", finite=False) if path else ():
        step = str(row.get("global_step/max_steps", "")).partition("/")[0] if isinstance(row, dict) else ""
        if step.isdecimal():
            numbers = {k: _float(v) for k, v in row.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
            rows.append({"step": int(step), **numbers})
    return rows


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf


def curves(stage: str, rows: Sequence[dict]) -> list[dict]:
    """Charts of a stage: [{"title", "svg"}], svg None where the log holds no such value."""
    out = []
    for title, keys in CURVES[stage]:
        series = [(key, [(row["step"], row[key]) for row in rows if key in row]) for key in keys]
        out.append({"title": f"{title} ({stage})", "svg": charts.line_chart(series, title=f"{title} by step, {stage}")})
    return out


def pick_samples(studies: Sequence[dict], count: int = 6) -> list[dict]:
    """Films to show, by a rule that cannot pick favourites: in file order, the first film that shows each of the five
    findings, then the first with none of them, then whatever comes first."""
    truths = {s["id"]: presence.read_truth(s) for s in studies}
    wanted = [lambda t, f=f: presence.is_present(t, f) for f in FIVE]
    wanted += [lambda t: not any(presence.is_present(t, f) for f in FIVE), *[lambda t: True] * count]
    chosen: list[dict] = []
    for test in wanted:
        if len(chosen) == count:
            break
        chosen += [s for s in studies if test(truths[s["id"]]) and s not in chosen][:1]
    return chosen


def film_uri(path) -> str:
    """A film as a data: URI (PNG, grey, shrunk to at most FILM_SIDE)."""
    problem = file_problem(path, os.sep) or decode_problem(path)
    if problem:
        raise UserError(f"film {path} {problem}; or check --image-root")
    return pages.film_uri(path, FILM_SIDE, "PNG")


def sample_view(study: dict, root: str, students: dict[str, str], rounds: dict[str, str | None]) -> dict:
    """What the page shows of one film; `rounds`: name -> the consensus of another round, None where it has none."""
    truth = presence.read_truth(study)

    def voice(name: str, kind: str, text: str | None, status: str = "ok") -> dict:
        reading = presence.read_answer(text if status in phantom.ANSWERED else None)
        return {
            "name": name,
            "kind": kind,
            "status": status,
            "text": charts.marked_text(text, truth) if text else None,
            "verdicts": charts.verdicts(reading, truth),
        }

    consensus = (study.get("consensus") or {}).get("text")
    voices = [voice(f"student, {name}", "student", text) for name, text in students.items()]
    if consensus:
        voices.append(voice("consensus", "consensus", consensus))
    voices += [voice(f"consensus, {name}", "consensus", text) for name, text in rounds.items()]
    voices += [voice(t["teacher"], "teacher", t["text"], t["status"]) for t in study["trajectories"]]
    listed = [
        (label, f"{state}{f', {side}' if side else ''}")
        for label, (state, side) in truth.items()
        if state != "absent" and label != "No Finding"
    ]
    films = [film_uri(path) for path in image_paths(study, root)]
    return {"id": study["id"], "films": films, "truth": listed, "voices": voices}


def render(results: dict, samples: Sequence[dict], logs: dict[str, Sequence[dict]]) -> str:
    """The page as HTML text; `logs` are the rows of a training log by stage, of CURVES."""
    env = pages.environment(Path(__file__).parent)
    env.filters["percent"] = phantom.percent
    # Depth of colour in the accuracy map: none at 30 %, full at 100 %; kept light enough to read the number on.
    env.globals["shade"] = lambda accuracy: round(min(max((accuracy - 0.3) / 0.7, 0), 1) * 75)
    return env.get_template("report_page.html").render(
        results=results,
        five=FIVE,
        samples=samples,
        teachers=[r for r in results["rows"] if r["kind"] == "teacher"],
        curves=[chart for stage, rows in logs.items() for chart in curves(stage, rows)],
        others=sorted({label for r in results["rows"] for label in r["other_findings"]}),
    )


def read_results(path) -> dict:
    """results.json; UserError when it is not one of this schema."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({type(error).__name__}); make it with python -m eval.phantom") from None
    if not isinstance(results, dict) or results.get("schema") != phantom.SCHEMA:
        raise UserError(f"{path}: not a results file of schema {phantom.SCHEMA}; make it with python -m eval.phantom")
    return results


def refuse_other_studies(path, results: dict) -> None:
    """UserError when a file is not the studies that `results` scored, byte for byte."""
    scored = results["studies"]
    if sha256_file(path) != scored["sha256"]:
        raise UserError(
            f"{path}: is not the file that was scored ({scored['file']}, sha256 {scored['sha256'][:16]}); name that "
            "one, or score this with python -m eval.phantom"
        )


def refuse_unscored(flag: str, names: Iterable[str], rows: Iterable[str]) -> None:
    """UserError for the first name of NAME=FILE that is none of `rows`, those that were scored."""
    known = sorted(rows)
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) if known else "they have none"
            raise UserError(f"{flag} {name}=...: no such row in --results; {hint}")


def refuse_other_answers(flag: str, files: dict[str, Path], scored: dict[str, str]) -> None:
    """Raise UserError for a file that is not the one that was scored under its name; older results do not tell."""
    for name, path in files.items():
        if name in scored and sha256_file(path) != scored[name]:
            raise UserError(f"{flag} {name}={path}: another file was scored under this name; name that of --results")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.report", description=__doc__.split("\n")[0])
    parser.add_argument("--results", required=True, help="results.json of eval.phantom")
    parser.add_argument("--studies", required=True, help="the studies that it scored")
    parser.add_argument("--image-root", help="what image paths are relative to (default: folder of --studies)")
    parser.add_argument("--predictions", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument(
        "--consensus", action="append", default=[], metavar="NAME=FILE", help="study file of another round"
    )
    parser.add_argument("--learn-log", help="logging.jsonl of the learn stage")
    parser.add_argument("--critique-log", help="logging.jsonl of the critique stage")
    parser.add_argument("--second-log", help="logging.jsonl of a second critique stage, where there was one")
    parser.add_argument("--samples", type=int, default=6, help="films to show (default: 6)")
    parser.add_argument("--out", required=True, help="report.html to write")
    args = parser.parse_args(argv)
    refuse_negative(args, "samples")
    files, others = phantom.named_files(args.predictions), phantom.named_files(args.consensus, "--consensus")
    logs = {"learn": args.learn_log, "critique": args.critique_log}
    logs |= {"second round": args.second_log} if args.second_log else {}
    refuse_input(args.out, args.results, args.studies, *files.values(), *others.values(), *filter(None, logs.values()))
    results = read_results(args.results)
    students = [row.get("stage", row["name"]) for row in results["rows"] if row["kind"] == "student"]
    heard = [row["name"].partition(", ")[2] for row in results["rows"] if row["kind"] == "consensus"]
    refuse_unscored("--predictions", files, students)
    refuse_unscored("--consensus", others, filter(None, heard))
    refuse_other_answers("--predictions", files, results.get("predictions", {}))
    refuse_other_answers("--consensus", others, results.get("consensus", {}))
    read = {stage: read_log(path) for stage, path in logs.items()}
    refuse_other_studies(args.studies, results)
    root = root_of(args.studies, args.image_root)
    asked = results["studies"].get("asked", results["studies"]["scored"])  # the former not before November 2026
    studies = phantom.split_of(read_studies(args.studies), results["split"], args.studies)[:asked]
    texts = {name: phantom.read_predictions(path, studies) for name, path in files.items()}
    rounds = {name: phantom.read_consensus(path, studies) for name, path in others.items()}
    at = {s["id"]: i for i, s in enumerate(studies)}

    def of_film(study: dict, said: dict[str, list]) -> dict:
        return {name: answers[at[study["id"]]] for name, answers in said.items()}

    views = [
        sample_view(s, root, of_film(s, texts), of_film(s, rounds))
        for s in pick_samples([s for s in studies if s.get("findings") is not None], args.samples)
    ]
    write_atomic(args.out, render(results, views, read))
    print(f"written: {args.out}")


if __name__ == "__main__":
    run_cli(main)
