"""How sure a student is of what it reports: P(present) of each of the five findings on films with known truth.

    python -m eval.calibration CHECKPOINT --studies STUDIES.jsonl --answers test.jsonl --image-root DIR --out FILE.jsonl

A student that was taught to write findings is never asked yes or no, and puts next to nothing on either word
(eval/yesno.py). So its own report is the question: the rest of it stays as it is, the sentence on one finding says
"absent" or "present" in turn, on either side, both or none, and

    P(present) = sum of P(text) over the texts that say present / sum of P(text) over all of them.

Answers that are not in the plain form of the consensus are left out and counted: in another form the sentence on one
finding cannot be exchanged. A text that says present leaves out "no acute cardiopulmonary abnormality", as a consensus
with a finding does. Rows are {"id", "p": {label: P(present)}}.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data import checkpoints, manifest
from data.errors import UserError, refuse_below_one, run_cli
from data.files import atomic_open, dump_line, refuse_input
from data.findings_lexicon import FIVE
from data.records import SIDES, image_paths
from data.row_checks import turn
from data.variants import plain_text
from eval import presence
from eval.ablation_metrics import in_consensus_form
from eval.predict import read_answers, select
from eval.rewards import response_logps
from scripts.machine import default_device


def readings_of(said: presence.Reading) -> dict[str, list[presence.Reading]]:
    """Label -> the reading with this finding absent, then with it present (side unsaid, and each of SIDES) and without
    "No Finding", which would contradict it."""
    ill = {label: state for label, state in said.items() if label != "No Finding"}
    return {
        label: [said | {label: ("absent", None)}, *(ill | {label: ("present", side)} for side in (None, *SIDES))]
        for label in FIVE
    }


def row_of(study: dict, said: presence.Reading, root: str) -> tuple[list[str], dict]:
    """(the different texts of a film, the group row that scores them all in one look)."""
    texts = list(dict.fromkeys(plain_text(one) for readings in readings_of(said).values() for one in readings))
    row = {
        "messages": [turn("user", study["prompt"]), turn("assistant", texts[0])],
        "negative_messages": [[turn("assistant", text)] for text in texts[1:]],
        "images": image_paths(study, root),
    }
    return texts, row


def p_present(said: presence.Reading, logps: dict[str, float]) -> dict[str, float]:
    """Label -> P(present), from the log-probability in nats of every text of `readings_of`."""
    found = {}
    for label, readings in readings_of(said).items():
        scores = np.array([logps[plain_text(one)] for one in readings])
        weights = np.exp(scores - scores.max())
        found[label] = float(weights[1:].sum() / weights.sum())
    return found


def refuse_other_answers(answers: Path, checkpoint: str, base: str | None) -> None:
    """UserError when eval.predict noted beside `answers` that another checkpoint gave them."""
    note = manifest.sidecar(answers)
    if not note.is_file():
        print(f"note: no {note.name} says which checkpoint gave these answers")
        return
    try:
        given = json.loads(note.read_text(encoding="utf-8"))["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{note}: is not what eval.predict writes; ask the student anew with it") from None
    if given != checkpoints.fingerprint(checkpoint, base):
        raise UserError(
            f"{answers}: another checkpoint than {checkpoint} gave them; name that one, or ask this one anew"
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.calibration", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="the student that gave the answers")
    parser.add_argument("--base", help="for an adapter: its base model, if not where args.json says")
    parser.add_argument("--studies", required=True, type=Path)
    parser.add_argument("--answers", required=True, type=Path, help="its answers of eval.predict to the split")
    parser.add_argument("--image-root", type=Path, help="what image paths are relative to")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, help="only the first N studies of the split")
    parser.add_argument("--batch-size", type=int, default=4, help="studies a forward pass (default: 4)")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(argv)
    refuse_below_one(args, "limit", "batch_size")
    refuse_input(args.out, args.studies, args.answers)
    info = checkpoints.describe(args.checkpoint, args.base)
    whole, root, _ = select(args.studies, args.split, args.image_root, None)
    answers = read_answers(args.answers, [study["id"] for study in whole])
    refuse_other_answers(args.answers, args.checkpoint, args.base)
    asked = list(zip(whole, answers, strict=True))[: args.limit]
    usable = [(study, presence.read_answer(row["text"])) for study, row in asked if in_consensus_form(row["text"])]
    found = []
    if usable:
        from apo.student_engine import Student

        rows = [row_of(study, said, root) for study, said in usable]
        student = Student(info, device=default_device())
        scored = response_logps(student, [row for _, row in rows], args.batch_size)
        for (study, said), (texts, _), scores in zip(usable, rows, scored, strict=True):
            logps = dict(zip(texts, (logp for logp, _ in scores), strict=True))
            found.append({"id": study["id"], "p": {k: round(v, 6) for k, v in p_present(said, logps).items()}})
    with atomic_open(args.out) as out:
        out.writelines(map(dump_line, found))
    left = len(asked) - len(usable)
    print(f"{len(found)} films, {left} left out whose answer is not in the consensus' form; written: {args.out}")


if __name__ == "__main__":
    run_cli(main)
