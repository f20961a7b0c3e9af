"""What is known of a few films, for Compare: one `{"id", "findings"}` a line."""

from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from apo.consensus import TAKES_LABELS
from data.errors import Problems, UserError
from data.files import read_jsonl
from data.records import check_findings

KNOWN = {"present": True, "absent": False}
ROW = 'write {"id": "...", "findings": {"Edema": {"state": "present"}}}'


class Labels(NamedTuple):
    known: dict[str, dict[str, bool]]  # study id -> finding -> is it there
    left: Counter[str]  # why rows were not used -> how many


def refuse_labels(args: Namespace) -> None:
    """Raise UserError where --labels and --label-limit do not go with --strategy and each other."""
    if args.labels and args.strategy not in TAKES_LABELS:
        raise UserError(f"--labels: {args.strategy} takes none; leave it out, or choose --strategy dawid_skene")
    if args.label_limit and not args.labels:
        raise UserError("--label-limit: there are no --labels to limit; give both, or leave it out")


def read_labels(path: Path, studies: Sequence[dict], limit: int | None = None) -> Labels:
    """The labels of training studies among `studies`, the first `limit` of them in the order of the file.

    A row is an object with `id` and `findings` as in data/README.md; study records are such rows, nothing else in them
    is read. A finding that is not named, or uncertain, is not known. Those of studies of other splits are not used:
    what is scored stays unseen.

    Raises UserError that names the file and row for what is no such row or comes twice, and where no row can be used.
    """
    splits = {study["id"]: study["split"] for study in studies}
    known: dict[str, dict[str, bool]] = {}
    left: Counter[str] = Counter()
    seen: set[str] = set()
    problems = Problems(path)
    for line, row in read_jsonl(path):
        where = f"{path}:{line}"
        if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not row["id"]:
            problems.add(f"{where}: not a label; {ROW}")
            continue
        if row["id"] in seen:
            problems.add(f"{where}: study {row['id']!r} comes twice; keep one row a study")
        seen.add(row["id"])
        findings = row.get("findings") or {}
        try:
            check_findings(findings, where)
        except UserError as error:
            problems.add(error)
            continue
        states = {label: KNOWN[one["state"]] for label, one in findings.items() if one["state"] in KNOWN}
        if row["id"] not in splits:
            left["of no study in the file"] += 1
        elif splits[row["id"]] != "train":
            left["of held-out studies"] += 1
        elif not states:
            left["without a finding that is present or absent"] += 1
        elif limit is not None and len(known) == limit:
            left["over --label-limit"] += 1
        else:
            known[row["id"]] = states
    problems.refuse()
    if not known:
        why = ", ".join(f"{n} {what}" for what, n in left.items()) or "it holds no row"
        raise UserError(f"{path}: no label can be used ({why}); label studies of split train in the file; {ROW}")
    return Labels(known, left)
