"""Study files with other negatives, for controls of the Critique stage: same films, same consensus, other trajectories.

    python -m data.variants STUDIES.jsonl --out FILE --negatives MODE [--seed N] [--weights error]

MODE is one of

- `all`: every ok trajectory, as published.
- `one`, `first-N`: one or N ok trajectories a study, drawn at random; those of `first-2` are among those of `first-3`.
- `conflicting`: only trajectories that contradict the consensus (a finding, or the side of one; silence denies).
- `random-film`: every trajectory is replaced by the same teacher's text on another film of the split: style without
  the film's content.
- `consensus-style`: every trajectory's own claims, as data.findings reads them, in the plain form of the consensus:
  content without style. One that reads as the consensus does becomes equal to it; launch Critique with
  `on_identical: drop-negative` and `on_missing_negative: drop`.
- `refusals-kept`: refusals become negatives, too.

`--weights error` gives every negative the weight of apo/loss.py: how much of it is wrong by the consensus, as a share
of the study's mean. `--learn-consensus` makes the consensus a study's only trajectory, so that the Learn launcher
trains on it. `--films N` takes all but the first N training studies out. `--add-voice NAME=PREDICTIONS` adds the
answers of a student as one more trajectory (given again for another split), `--drop-voice NAME` takes a trajectory out.

Only the splits train and validate change: what is scored stays as it was. Everything is drawn from --seed and the study
id, whatever the order of the file.
"""

import argparse
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from data import manifest
from data.draws import study_rng
from data.errors import UserError, refuse_below_one, run_cli
from data.files import out_file, read_jsonl, refuse_input
from data.findings import read_findings, summarise
from data.findings_lexicon import FIVE, ORDER
from data.plain_sentences import plain_sentence
from data.records import PLACEHOLDER, did_you_mean, read_studies, tell_root, write_studies
from data.rows import ok_trajectories

SPLITS = ("train", "validate")
MODES = ("all", "one", "first-N", "conflicting", "random-film", "consensus-style", "refusals-kept")
LIGHTEST = 0.05  # share of a trajectory that counts as wrong at least: a weight of 0 would be another negative less

Reading = dict[str, tuple[str, str | None]]


def contradicts(said: Reading, consensus: Reading) -> bool:
    """Whether a trajectory's reading goes against the consensus's: a state (silence is absent), or two named sides."""
    for label in {*said, *consensus} - {"No Finding"}:
        (state, side), (other, other_side) = said.get(label, ("absent", None)), consensus.get(label, ("absent", None))
        if "uncertain" in (state, other):
            continue
        if state != other or (state == "present" and side and other_side and side != other_side):
            return True
    return False


def plain_text(said: Reading) -> str:
    """A reading in the plain form of the consensus: the five if they are stated, others if not absent, in its order.

    "" for a reading of which that form says nothing.
    """
    stated = [label for label in ORDER if label in said and (said[label][0] != "absent" or label in FIVE)]
    return " ".join(plain_sentence(label, *said[label]) for label in stated)


def error_weights(study: dict) -> dict[str, float]:
    """Teacher -> weight of its trajectory: the share of the five on which the consensus holds it wrong, mean 1.

    The consensus's own posterior is used where its audit has one (Dawid-Skene), else its decision. A wrong side counts
    as a wrong finding, silence as absent, "uncertain" as half wrong. {} without an ok trajectory.
    """
    consensus = summarise(read_findings(study["consensus"]["text"]))
    shares = {}
    for one in ok_trajectories(study):
        said = summarise(read_findings(one["text"]))
        wrong = 0.0
        for label in FIVE:
            (state, side), (decided, decided_side) = (r.get(label, ("absent", None)) for r in (said, consensus))
            chance = {"present": 1.0, "absent": 0.0, "uncertain": 0.5}
            posterior = _posterior(study["consensus"].get("audit"), label)
            true = chance[decided] if posterior is None else posterior
            error = abs(chance[state] - true)
            if state == decided == "present" and side and decided_side and side != decided_side:
                error = 1.0
            wrong += error / len(FIVE)
        shares[one["teacher"]] = max(wrong, LIGHTEST)
    mean = sum(shares.values()) / max(len(shares), 1)
    return {teacher: round(share / mean, 6) for teacher, share in shares.items()}


def _posterior(audit: object, label: str) -> float | None:
    """The posterior of a finding where an audit, which may have any shape, has one."""
    for key in ("findings", label, "posterior"):
        audit = audit.get(key) if isinstance(audit, dict) else None
    return audit if isinstance(audit, (int, float)) else None


def _keep(study: dict, keep: Callable[[dict], bool]) -> None:
    study["trajectories"] = [one for one in study["trajectories"] if one["status"] != "ok" or keep(one)]


def _first(study: dict, count: int, seed: int) -> None:
    names = sorted(one["teacher"] for one in ok_trajectories(study))
    study_rng(study, seed).shuffle(names)
    chosen = set(names[:count])
    _keep(study, lambda one: one["teacher"] in chosen)


def _conflicting(study: dict) -> None:
    consensus = summarise(read_findings(study["consensus"]["text"]))
    _keep(study, lambda one: contradicts(summarise(read_findings(one["text"])), consensus))


def _consensus_style(study: dict, counts: Counter) -> None:
    for one in ok_trajectories(study):
        text = plain_text(summarise(read_findings(one["text"])))
        if text:
            one["text"] = text
        else:
            one["status"] = "empty"
            counts["negatives without a readable claim, left out"] += 1


def _refusals_kept(study: dict, counts: Counter) -> None:
    for one in study["trajectories"]:
        if one["status"] == "refused" and one["text"].strip():
            one["status"] = "ok"
            counts["refusals that are negatives now"] += 1


def _random_films(studies: Sequence[dict], seed: int) -> None:
    """Exchange texts among the films of one split, teacher by teacher, so that no film keeps its own."""
    texts: dict[str, list[tuple[dict, dict]]] = {}
    for study in studies:
        for one in ok_trajectories(study):
            texts.setdefault(one["teacher"], []).append((study, one))
    for teacher, pairs in sorted(texts.items()):
        if len(pairs) < 2:
            raise UserError(
                f"--negatives random-film: teacher {teacher!r} has one ok trajectory in a split; add studies"
            )
        order = sorted(pairs, key=lambda pair: pair[0]["id"])
        random.Random(f"{seed}:{teacher}").shuffle(order)
        # One round trip through a random order: everybody gets the next film's text, nobody its own.
        found = [one["text"] for _, one in order]
        for (_, one), text in zip(order, [*found[1:], found[0]], strict=True):
            one["text"] = text


def change(studies: Sequence[dict], negatives: str, *, seed: int = 0, weights: str = "none") -> Counter:
    """Change the studies of splits train and validate in place; returns counts by what was done.

    A study without a consensus keeps its negatives whatever the mode asks of a consensus (Critique drops or refuses it)
    and is counted. With weights "none" those that an earlier call wrote are taken out, and counted: they belong to the
    negatives of before. Raises UserError for an unknown mode.
    """
    first = 1 if negatives == "one" else _first_count(negatives)
    if first is None and negatives not in MODES or negatives == "first-N":
        raise UserError(f"--negatives {negatives}: write one of {', '.join(MODES)} (N a number from 1)")
    counts: Counter = Counter()
    chosen = [study for study in studies if study["split"] in SPLITS]
    counts["negatives before"] = sum(len(ok_trajectories(study)) for study in chosen)
    if negatives == "random-film":
        for split in SPLITS:
            _random_films([study for study in chosen if study["split"] == split], seed)
    for study in chosen:
        if first is not None:
            _first(study, first, seed)
        elif negatives == "conflicting" and study.get("consensus") is not None:
            _conflicting(study)
        elif negatives == "consensus-style":
            _consensus_style(study, counts)
        elif negatives == "refusals-kept":
            _refusals_kept(study, counts)
        if weights == "error" and study.get("consensus") is not None:
            audit = study["consensus"].get("audit") or {}
            if not isinstance(audit, dict):
                raise UserError(f"study {study['id']!r}: its audit is no object, so that no weights can join it")
            study["consensus"]["audit"] = {**audit, "negative_weights": error_weights(study)}
            counts["studies with weights"] += bool(ok_trajectories(study))
        elif study.get("consensus") is not None:
            audit = study["consensus"].get("audit")
            if isinstance(audit, dict) and audit.pop("negative_weights", None) is not None:
                counts["studies whose weights are taken out"] += 1
    counts["negatives after"] = sum(len(ok_trajectories(study)) for study in chosen)
    counts["studies without a negative"] = sum(not ok_trajectories(study) for study in chosen)
    counts["studies without a consensus"] = sum(study.get("consensus") is None for study in chosen)
    counts["studies"] = len(chosen)
    return counts


def _first_count(negatives: str) -> int | None:
    found = re.fullmatch(r"first-([1-9][0-9]*)", negatives)
    return int(found[1]) if found else None


def learn_consensus(studies: Sequence[dict]) -> Counter:
    """Make the consensus the only trajectory (teacher "consensus") of every study of train and validate, in place."""
    counts: Counter = Counter()
    for study in studies:
        if study["split"] not in SPLITS:
            continue
        found = study.get("consensus") is not None
        text = study["consensus"]["text"] if found else ""
        study["trajectories"] = [{"teacher": "consensus", "text": text, "status": "ok" if found else "empty"}]
        counts["studies that teach their consensus" if found else "studies that teach nothing"] += 1
    return counts


def first_films(studies: Sequence[dict], count: int) -> tuple[list[dict], Counter]:
    """(the studies without those of split train after its first `count`, how many these are); UserError for too few."""
    train = [study["id"] for study in studies if study["split"] == "train"]
    if len(train) < count:
        raise UserError(f"--films {count}: the file has {len(train)} studies of split train; ask for at most as many")
    gone = set(train[count:])
    return [study for study in studies if study["id"] not in gone], Counter({"training studies taken out": len(gone)})


def add_voice(studies: Sequence[dict], name: str, paths: Sequence[Path]) -> Counter:
    """Add a student's answers as trajectories of `name`, in place.

    Studies without an answer get none and are counted. An answer that was cut off is "truncated", one without words or
    with a special token in it "empty": it is not heard, and counted. Raises UserError for a name that is taken, a row
    that is no answer, an unknown id, or two answers to one study.

    Args:
        paths: files of eval.predict, rows {"id", "text", "finish_reason"}.
    """
    answers: dict[str, dict] = {}
    known = {study["id"] for study in studies}
    for path in paths:
        for line, row in read_jsonl(path):
            if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("id", "text")):
                raise UserError(f'{path}:{line}: an answer needs strings "id" and "text"; take a file of eval.predict')
            if row["id"] not in known or row["id"] in answers:
                what = "is answered twice" if row["id"] in answers else "is not in the file of studies"
                raise UserError(f"{path}:{line}: study {row['id']!r} {what}; check the files")
            answers[row["id"]] = row
    counts: Counter = Counter()
    for study in studies:
        if any(one["teacher"] == name for one in study["trajectories"]):
            raise UserError(f"study {study['id']!r}: has a trajectory of {name!r}; choose another name")
        answer = answers.get(study["id"])
        if answer is None:
            counts["studies without an answer"] += 1
            continue
        text, status = answer["text"], "truncated" if answer.get("finish_reason") == "length" else "ok"
        if not text.strip() or PLACEHOLDER.search(text):
            text, status = "", "empty"
        study["trajectories"].append({"teacher": name, "text": text, "status": status})
        counts[f"answers of {name} added" if status == "ok" else f"answers of {name} not heard: {status}"] += 1
    return counts


def drop_voice(studies: Sequence[dict], name: str) -> Counter:
    """Take the trajectories of `name` out, in place."""
    counts: Counter = Counter()
    for study in studies:
        kept = [one for one in study["trajectories"] if one["teacher"] != name]
        counts[f"trajectories of {name} taken out"] += len(study["trajectories"]) - len(kept)
        study["trajectories"] = kept
    return counts


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data.variants", description=__doc__.split("\n\n")[0])
    parser.add_argument("studies", type=Path, metavar="STUDIES.jsonl")
    parser.add_argument("--out", type=out_file, required=True, help="study file to write")
    parser.add_argument("--negatives", default="all", metavar="MODE", help=", ".join(MODES))
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument("--weights", choices=("none", "error"), default="none", help="weights of the negatives")
    parser.add_argument("--learn-consensus", action="store_true", help="the consensus as the only trajectory")
    parser.add_argument("--films", type=int, metavar="N", help="only the first N studies of split train")
    parser.add_argument(
        "--add-voice",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="answers as one more trajectory; repeatable",
    )
    parser.add_argument("--drop-voice", metavar="NAME", help="take a trajectory out")
    args = parser.parse_args(argv)
    refuse_below_one(args, "films")
    refuse_input(args.out, args.studies, *(given.partition("=")[2] for given in args.add_voice))
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    studies = list(read_studies(args.studies))
    if not studies:
        raise UserError(f"{args.studies}: holds no study")
    counts: Counter = Counter()
    voices: dict[str, list[Path]] = {}
    for given in args.add_voice:
        name, equals, path = given.partition("=")
        if not (name and equals and path):
            raise UserError(f"--add-voice {given}: write NAME=FILE")
        voices.setdefault(name, []).append(Path(path))
    for name, paths in voices.items():
        counts.update(add_voice(studies, name, paths))
    if args.drop_voice:
        teachers = {one["teacher"] for study in studies for one in study["trajectories"]}
        if args.drop_voice not in teachers:
            raise UserError(
                f"{args.studies}: no study has a trajectory of {args.drop_voice!r} (--drop-voice); "
                f"{did_you_mean(args.drop_voice, sorted(teachers))}"
            )
        counts.update(drop_voice(studies, args.drop_voice))
    if args.films:
        studies, gone = first_films(studies, args.films)
        counts.update(gone)
    counts.update(change(studies, args.negatives, seed=args.seed, weights=args.weights))
    if args.learn_consensus:
        counts.update(learn_consensus(studies))
    write_studies(args.out, studies)
    names = ("negatives", "seed", "weights", "learn_consensus", "films", "add_voice", "drop_voice")
    answers = {f"add_voice {place}": given.partition("=")[2] for place, given in enumerate(args.add_voice, 1)}
    manifest.write(args.out, {"studies": args.studies} | answers, {name: getattr(args, name) for name in names})
    for what, count in counts.items():
        print(f"{what}: {count}")
    print(f"written: {args.out} ({len(studies)} studies, those of other splits than train and validate unchanged)")
    tell_root(args.out, args.studies)


if __name__ == "__main__":
    run_cli(main)
