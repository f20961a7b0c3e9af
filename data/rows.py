"""Study records into the rows that ms-swift trains on, and checks of rows files that users bring along.

    python -m data.rows sft STUDIES.jsonl --split train --out ROWS.jsonl    # Learn: one row a (study, trajectory)
    python -m data.rows sft STUDIES.jsonl --split train --out ROWS.jsonl --share-prefix   # Learn: one row a study
    python -m data.rows apo STUDIES.jsonl --split train --out ROWS.jsonl    # Critique: one row a study
    python -m data.rows check apo ROWS.jsonl                                # rows made elsewhere

Everything is checked before training starts: with its default `--strict false`, ms-swift replaces a row that it cannot
encode by another one at random.
"""

import argparse
import os
from collections import Counter
from typing import Any, Literal

from data.errors import Problems, UserError, run_cli
from data.files import StrPath, atomic_open, dump, dump_line, out_file
from data.records import ALLOW_OUTSIDE, SPLITS, did_you_mean, image_paths, image_problems, numbered_studies, root_of
from data.row_checks import KINDS, Kind, check_rows, file_kind, is_weight, same_text, turn

__all__ = ["apo_row", "check_rows", "describe", "file_kind", "sft_rows", "shared_row", "write_rows"]


def sft_rows(study: dict, root: StrPath) -> list[dict]:
    """Rows of the Learn stage: one for each ok trajectory, none when there is none.

    Args:
        study: a checked record (`data.records.read_studies`).
        root: folder that its image paths start from.

    Returns:
        [{"messages": [user prompt, assistant text], "images": [absolute paths]}].
    """
    images = image_paths(study, root)
    return [
        {"messages": [turn("user", study["prompt"]), turn("assistant", one["text"])], "images": images}
        for one in ok_trajectories(study)
    ]


def shared_row(study: dict, root: StrPath) -> dict | None:
    """The row of the Learn stage with a shared prefix: all ok trajectories of a study; None when there is none.

    Returns:
        {"messages": [user prompt, assistant first trajectory], "positive_messages": N - 1 >= 0 lists of one assistant
        turn, "images": [absolute paths]}. `apo/learn.py` trains on all N with the loss of N separate rows.
    """
    first, *others = [turn("assistant", one["text"]) for one in ok_trajectories(study)] or [None]
    if first is None:
        return None
    return {
        "messages": [turn("user", study["prompt"]), first],
        "positive_messages": [[other] for other in others],
        "images": image_paths(study, root),
    }


def apo_row(study: dict, root: StrPath, *, drop_identical: bool = False) -> dict:
    """The row of the Critique stage: the consensus is the positive, every ok trajectory a negative.

    Args:
        study: a checked record (`data.records.read_studies`).
        root: folder that its image paths start from.
        drop_identical: leave out negatives that equal the consensus apart from white space, instead of refusing them.

    Returns:
        {"messages": [user prompt, assistant consensus], "negative_messages": N >= 1 lists of one assistant turn,
        "images": [absolute paths]}. The negatives' prompt and images are those of `messages`. Where the consensus'
        audit has "negative_weights" ({teacher: number above 0}; data/variants.py), "negative_weights": one for each
        negative, 1 for a teacher that it does not name.

    Raises:
        UserError: there is no consensus, no negative, a negative that equals the consensus, or weights that are none.
    """
    what = f"study {study['id']!r}"
    if study.get("consensus") is None:
        raise UserError(f"{what}: has no consensus; run scripts/compare.sh first, or drop it: {NO_CONSENSUS_OPTION}")
    negatives = ok_trajectories(study)
    if not negatives:
        raise UserError(f"{what}: has no ok trajectory, so no negative; collect one, or drop it: {NO_NEGATIVE_OPTION}")
    identical = identical_teachers(study)
    if identical and not drop_identical:
        raise UserError(
            f"{what}: the consensus equals the trajectory of {', '.join(map(repr, identical))}, "
            f"which cannot be positive and negative at once; leave that negative out: {IDENTICAL_OPTION}"
        )
    negatives = [one for one in negatives if one["teacher"] not in identical]
    if not negatives:
        raise UserError(f"{what}: every negative equals the consensus; drop the study: {NO_NEGATIVE_OPTION}")
    row = {
        "messages": [turn("user", study["prompt"]), turn("assistant", study["consensus"]["text"])],
        "negative_messages": [[turn("assistant", one["text"])] for one in negatives],
        "images": image_paths(study, root),
    }
    audit = study["consensus"].get("audit")
    weights = audit.get("negative_weights") if isinstance(audit, dict) else None
    if weights:
        if not (isinstance(weights, dict) and all(map(is_weight, weights.values()))):
            raise UserError(
                f"{what}: negative_weights in its audit are not numbers above 0 by teacher; take them out, or make "
                "them anew (python -m data.variants --weights error)"
            )
        row["negative_weights"] = [float(weights.get(one["teacher"], 1.0)) for one in negatives]
    return row


NO_CONSENSUS_OPTION = "--on-missing-consensus drop"
NO_NEGATIVE_OPTION = "--on-missing-negative drop"
IDENTICAL_OPTION = "--on-identical drop-negative"


def ok_trajectories(study: dict) -> list[dict]:
    """The trajectories that may be trained on, in the order of the record."""
    return [one for one in study["trajectories"] if one["status"] == "ok"]


def identical_teachers(study: dict) -> list[str]:
    """Teachers whose ok trajectory equals the consensus apart from white space; a medoid consensus always has one."""
    positive = study["consensus"]["text"]
    return [one["teacher"] for one in ok_trajectories(study) if same_text(one["text"], positive)]


def write_rows(
    kind: Kind,
    studies_path: StrPath,
    out: StrPath,
    *,
    split: str,
    image_root: StrPath | None = None,
    check_images: bool = False,
    allow_outside: bool = False,
    on_missing_consensus: Literal["error", "drop"] = "error",
    on_missing_negative: Literal["error", "drop"] = "error",
    on_identical: Literal["error", "drop-negative"] = "error",
    allow_empty: bool = False,
    share_prefix: bool = False,
) -> dict[str, Any]:
    """Turn the studies of one split into rows; `out` is replaced at once, or left alone when anything is wrong.

    Reads a study at a time. Every record of the file is checked, of every split; images are looked for (and with
    `check_images` decoded) for this split. In "apo" files dropped studies are counted by reason; in "sft" files a
    study without an ok trajectory has no row and is counted.

    Args:
        allow_outside: take images that links lead to outside the image root.
        allow_empty: write an empty file, instead of refusing, when there is no row for the split.
        share_prefix: "sft" only: one row a study with all its trajectories, not one row a trajectory.

    Returns:
        Counts: {"kind", "split", "out", "studies" (of the split), "other_splits": {split: n}, "rows",
        "trajectories": {status: n}, "set_aside": {reason: studies}, and for "apo" "negatives",
        "negatives_per_row": {N: rows}, "identical_negatives" (left out), "duplicate_negatives" (kept) and
        "weighted_rows"}.

    Raises:
        UserError: lists the first ten problems as "FILE:LINE: study ID: what; remedy".
    """
    if kind not in KINDS:
        raise UserError(f"kind of rows {kind!r}: {did_you_mean(kind, KINDS)}")
    if split not in SPLITS:
        raise UserError(f"--split {split}: {did_you_mean(split, SPLITS)}")
    if os.path.exists(out) and os.path.exists(studies_path) and os.path.samefile(out, studies_path):
        raise UserError(f"{out}: is the file of studies itself; name another file for the rows")
    root = root_of(studies_path, image_root)
    problems = Problems(studies_path)
    splits, statuses, set_aside, sizes = Counter(), Counter(), Counter(), Counter()
    rows = identical = duplicates = weighted = 0
    with atomic_open(out) as target:
        for line, study in numbered_studies(studies_path, on_error=problems.add):
            splits[study["split"]] += 1
            if study["split"] != split:
                continue
            statuses.update(one["status"] for one in study["trajectories"])
            reason = set_aside_reason(kind, study, on_missing_consensus, on_missing_negative, on_identical)
            if reason:
                set_aside[reason] += 1
                continue
            for problem in image_problems(study, root, decode=check_images, allow_outside=allow_outside):
                problems.add(f"{studies_path}:{line}: {problem}")
            try:
                if kind == "sft":
                    made = [dump_line(shared_row(study, root))] if share_prefix else _sft_lines(study, root)
                else:
                    row = apo_row(study, root, drop_identical=on_identical == "drop-negative")
                    made = [dump_line(row)]
            except UserError as error:
                problems.add(f"{studies_path}:{line}: {error}")
                continue
            target.writelines(made)
            rows += len(made)
            if kind == "apo":
                negatives = [turns[0]["content"] for turns in row["negative_messages"]]
                sizes[len(negatives)] += 1
                identical += len(ok_trajectories(study)) - len(negatives)
                duplicates += len(negatives) - len(set(negatives))
                weighted += "negative_weights" in row
        problems.refuse()
        if not rows and not allow_empty:
            raise UserError(_no_rows(studies_path, split, splits, set_aside))
    counts = {
        "kind": kind,
        "split": split,
        "out": str(out),
        "studies": splits.pop(split, 0),
        "other_splits": dict(splits),
        "rows": rows,
        "trajectories": dict(statuses),
        "set_aside": dict(set_aside),
    }
    if kind == "apo":
        counts["negatives"] = sum(size * n for size, n in sizes.items())
        counts["negatives_per_row"] = dict(sorted(sizes.items()))
        counts["identical_negatives"] = identical
        counts["duplicate_negatives"] = duplicates
        counts["weighted_rows"] = weighted
    return counts


def _sft_lines(study: dict, root: StrPath) -> list[bytes]:
    """The lines of `sft_rows`; prompt and images are encoded once a study, not once a row."""
    user, images = dump(turn("user", study["prompt"])), dump(image_paths(study, root))
    answers = [dump(one["text"]) for one in ok_trajectories(study)]
    head, tail = f'{{"messages": [{user}, {{"role": "assistant", "content": ', f'}}], "images": {images}}}\n'
    return [f"{head}{answer}{tail}".encode() for answer in answers]


def set_aside_reason(
    kind: Kind, study: dict, on_missing_consensus: str, on_missing_negative: str, on_identical: str
) -> str | None:
    """Why the user's choices leave this study out, or None: it gives rows, or an error."""
    ok = ok_trajectories(study)
    if kind == "sft":
        return None if ok else "no ok trajectory"
    if not ok and on_missing_negative == "drop":
        return "no ok trajectory"
    if study.get("consensus") is None:
        return "no consensus" if on_missing_consensus == "drop" else None
    if on_missing_negative == "drop" and on_identical == "drop-negative" and len(identical_teachers(study)) == len(ok):
        return "every negative equals the consensus"
    return None


def describe(counts: dict[str, Any]) -> str:
    """The counts of `write_rows` in a few lines for people."""
    lines = [
        f"{counts['kind']} rows of split {counts['split']}: {counts['rows']} rows from {counts['studies']} studies"
        f" -> {counts['out']}",
        f"  trajectories: {_listed(counts['trajectories'])} (only ok ones are used)",
    ]
    if counts["other_splits"]:
        lines.append(f"  studies of other splits, not used: {_listed(counts['other_splits'])}")
    if counts["set_aside"]:
        lines.append(f"  studies set aside: {_listed(counts['set_aside'])}")
    if counts["kind"] == "apo":
        lines.append(f"  negatives: {counts['negatives']} (rows by number of negatives: {_listed(_sizes(counts))})")
        if counts["identical_negatives"]:
            lines.append(f"  negatives left out because they equal the consensus: {counts['identical_negatives']}")
        if counts["duplicate_negatives"]:
            lines.append(f"  negatives that repeat another of the same study, kept: {counts['duplicate_negatives']}")
        if counts["weighted_rows"]:
            lines.append(f"  rows with weights of their negatives: {counts['weighted_rows']}")
    return "\n".join(lines)


def _listed(counts: dict[Any, int]) -> str:
    return ", ".join(f"{key} {n}" for key, n in sorted(counts.items())) or "none"


def _sizes(counts: dict[str, Any]) -> dict[str, int]:
    return {f"N={size}:": rows for size, rows in counts["negatives_per_row"].items()}


def _no_rows(path: StrPath, split: str, splits: Counter, set_aside: Counter) -> str:
    if not splits:
        return f"{path}: holds no study; write one JSON object a line"
    if not splits[split]:
        return f"{path}: no study has split {split!r} (the file has: {_listed(splits)}); choose another --split"
    return f"{path}: no row for split {split!r}, every study was set aside: {_listed(set_aside)}; mend the studies"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data.rows", description="Study records into ms-swift rows, and checks of rows files."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for kind, stage in (("sft", "Learn: one row a trajectory"), ("apo", "Critique: one row a study")):
        command = commands.add_parser(kind, help=stage, description=stage)
        command.add_argument("studies", help="study records, one JSON object a line (data/README.md)")
        command.add_argument("--split", required=True, choices=SPLITS)
        command.add_argument("--image-root", help="folder that image paths start from (default: that of STUDIES)")
        command.add_argument("--out", type=out_file, required=True, help="rows file to write")
        command.add_argument("--check-images", action="store_true", help="decode every image, not only look for it")
        command.add_argument("--allow-outside", action="store_true", help=ALLOW_OUTSIDE)
        if kind == "sft":
            command.add_argument("--share-prefix", action="store_true", help="one row a study, not one a trajectory")
        else:
            command.add_argument("--on-missing-consensus", choices=("error", "drop"), default="error")
            command.add_argument("--on-missing-negative", choices=("error", "drop"), default="error")
            command.add_argument(
                "--on-identical",
                choices=("error", "drop-negative"),
                default="error",
                help="a trajectory that equals the consensus (a medoid consensus always has one)",
            )
    check = commands.add_parser("check", help="check a rows file made elsewhere")
    check.add_argument("kind", choices=KINDS)
    check.add_argument("rows", help="ms-swift rows, one JSON object a line")
    check.add_argument("--check-images", action="store_true", help="decode every image, not only look for it")
    return parser.parse_args()


def main() -> None:
    options = vars(_arguments())
    command = options.pop("command")
    if command == "check":
        counts = check_rows(options["rows"], options["kind"], check_images=options["check_images"])
        print(f"{options['rows']}: {_listed({k: n for k, n in counts.items() if isinstance(n, int)})}")
        if counts["unused_columns"]:
            print(f"  columns that ms-swift leaves unused: {_listed(counts['unused_columns'])}")
    else:
        print(describe(write_rows(command, options.pop("studies"), **options)))


if __name__ == "__main__":
    run_cli(main)
