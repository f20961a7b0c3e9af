"""Lessons in aggregation for a student that has never read others' texts: readings in, their majority out.

    python -m scripts.aggregation STUDIES.jsonl --out ROWS.jsonl [--seed N] [--lessons N]

The paper's consensus (`self`) is written by a student that reads all trajectories in its context. A 7B instruct model
can do that before it is trained; a student of 1 to 2 million parameters cannot. A lesson is the prompt of `self` with
the statements of random voters about findings drawn at random, each voter with rates and a style of its own, and as
the answer their majority in the plain form of the consensus. The film is one of the training films and has nothing to
do with the statements: no truth of the cohort, and nothing that its teachers said, is in a lesson.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from apo.consensus import vote
from apo.self_prompt import self_prompt
from data.draws import study_rng
from data.errors import UserError, refuse_below_one, run_cli
from data.files import atomic_open, dump_line, refuse_input
from data.findings_lexicon import FIVE
from data.phantom import styles
from data.phantom.teachers import SIDED, Statement
from data.records import SIDES, image_paths, read_studies, root_of
from data.row_checks import turn

VOTERS = (3, 7)
PRESENT = 0.4  # chance of a finding
RATES = (0.55, 0.95)  # sensitivity and specificity of a voter, by finding
STYLES = [name for name in styles.STYLES if name != "consensus"]


def voter(truth: dict[str, str | None], rng: np.random.Generator) -> list[Statement]:
    """One voter's statements on all of the five; `truth`: finding -> its side, where it is there."""
    claims = []
    for label in rng.permutation(FIVE).tolist():
        there = label in truth
        says = there if rng.random() < rng.uniform(*RATES) else not there
        side = None
        if says:
            side = "bilateral" if label == "Edema" else None
            if label in SIDED:
                side = truth[label] if there and rng.random() < 0.8 else str(rng.choice(SIDES))
        claims.append(Statement(label, "present" if says else "absent", side, None))
    return claims


def lesson(study: dict, number: int, seed: int, root: str) -> dict:
    """One row for the Learn launcher, with the film and prompt of `study`."""
    rng = np.random.default_rng([seed, number, 7])
    truth = {label: (str(rng.choice(SIDES)) if label in SIDED else None) for label in FIVE if rng.random() < PRESENT}
    count = int(rng.integers(VOTERS[0], VOTERS[1] + 1))
    spoken = [styles.teacher_text(voter(truth, rng), str(rng.choice(STYLES)), rng) for _ in range(count)]
    readings = [{"teacher": f"voter-{k}", "text": text, "status": "ok"} for k, text in enumerate(spoken)]
    heard = {**study, "id": f"lesson-{number}", "trajectories": readings, "findings": None, "consensus": None}
    (answer,) = vote([heard])
    prompt = self_prompt(heard, study_rng(heard, seed))
    if answer is None or prompt is None:
        raise RuntimeError(f"lesson {number}: its statements were not read back")
    return {
        "messages": [turn("user", prompt.text), turn("assistant", answer["text"])],
        "positive_messages": [],  # as a study with one trajectory, so that Learn takes both kinds of rows together
        "images": image_paths(study, root),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.aggregation", description=__doc__.split("\n")[0])
    parser.add_argument("studies", type=Path, metavar="STUDIES.jsonl", help="whose training films and prompt are used")
    parser.add_argument("--out", type=Path, required=True, help="rows for the Learn launcher")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lessons", type=int, help="default: one for each training study")
    args = parser.parse_args(argv)
    refuse_below_one(args, "lessons")
    refuse_input(args.out, args.studies)
    root = root_of(args.studies)
    train = [study for study in read_studies(args.studies) if study["split"] == "train"]
    if not train:
        raise UserError(f"{args.studies}: has no study of split train; choose another file")
    count = args.lessons or len(train)
    with atomic_open(args.out) as out:
        for number in range(count):
            out.write(dump_line(lesson(train[number % len(train)], number, args.seed, root)))
    print(f"{count} lessons from {len(train)} films; written: {args.out}")


if __name__ == "__main__":
    run_cli(main)
