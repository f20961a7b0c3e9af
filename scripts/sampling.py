"""A quick look at a dataset of any size: first and last records, some in between; what is wrong, and how long rows are.

Everything that a launcher does with the whole file afterwards (data/rows.py, data/row_checks.py, scripts/lengths.py) is
done here with the sample, so that most mistakes show in a second and not after an hour of reading.
"""

import random
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from data import row_checks, rows
from data.errors import UserError
from data.files import parse_line
from data.records import check_study, image_problems, root_of
from scripts.lengths import FilmLimits, Length, answers_of, row_lengths, too_long

ENDS, MIDDLE = 20, 60  # records looked at: first and last, and chosen at random from those between
DECODED = 24  # of which the images are decoded


@dataclass
class Sample:
    """What a look at one file found. `rows` is the number of training rows, scaled up from the sample."""

    path: Path
    kind: str
    records: int = 0
    seen: int = 0
    rows: float = 0.0
    groups: list[int] = field(default_factory=list)
    lengths: list[Length] = field(default_factory=list)
    set_aside: int = 0
    columns: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """The sample as JSON; tokens are None where they could not be counted."""
        answers = [tokens for length in self.lengths for tokens in length.answers]
        tokens = None
        if answers:
            tokens = {
                "prompt": round(mean(one.prompt for one in self.lengths)),
                "answer": round(mean(answers)),
                "longest_answer": max(answers),
                "longest_row": max(one.longest for one in self.lengths),
                "row": round(mean(one.prompt + sum(one.answers) for one in self.lengths)),
            }
        sizes = self.groups
        return {
            "path": str(self.path),
            "kind": self.kind,
            "columns": self.columns,
            "records": self.records,
            "looked_at": self.seen,
            "rows": round(self.rows),
            "answers_a_row": {"least": min(sizes), "median": median(sizes), "most": max(sizes)} if sizes else None,
            "set_aside_in_sample": self.set_aside,
            "tokens": tokens,
        }


def pick_lines(
    path: Path, ends: int = ENDS, middle: int = MIDDLE, seed: int = 0
) -> tuple[int, list[tuple[int, bytes]]]:
    """(lines that are not blank, [(line number, bytes)]): the first and last `ends`, and `middle` between, in order."""
    first: list[tuple[int, bytes]] = []
    last: deque[tuple[int, bytes]] = deque(maxlen=ends)
    between: list[tuple[int, bytes]] = []
    draw = random.Random(seed)
    count = 0
    with open(path, "rb", buffering=1 << 20) as source:
        for number, raw in enumerate(source, 1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            count += 1
            if len(first) < ends:
                first.append((number, raw))
                continue
            if len(last) == ends:
                # It leaves the end of the file: keep it with the chance that all of the middle have.
                left, place = last[0], draw.randrange(count - 2 * ends)
                if len(between) < middle:
                    between.append(left)
                elif place < middle:
                    between[place] = left
            last.append((number, raw))
    return count, [*first, *sorted(between), *last]


def look(
    path: Path,
    kind: str,
    options: dict[str, Any],
    *,
    lengths: tuple[Path, int, FilmLimits] | None = None,
    overlong: str = "error",
) -> Sample:
    """Look at a dataset file of a training stage.

    Args:
        kind: "sft" or "apo".
        options: as `scripts.training_data.row_options` gives them.
        lengths: (tokenizer.json, max_length, limits of films), or None where tokens cannot be counted.
        overlong: "error", or "drop" where rows over max_length are no problem and counted as set aside.

    Raises UserError for a file that is neither study records nor rows; what is wrong in it goes into `problems`.
    """
    sample = Sample(path, rows.file_kind(path))
    if sample.kind == "studies":
        options = options | {"root": root_of(path, options["image_root"])}
    sample.records, picked = pick_lines(path)
    sample.seen = len(picked)
    made: list[tuple[int, dict]] = []
    step = max(1, len(picked) // DECODED)
    for place, (number, raw) in enumerate(picked):
        where = f"{path}:{number}"
        try:
            value = parse_line(raw, where)
            read = _of_study if sample.kind == "studies" else _of_row
            found = read(sample, value, where, kind, options, decode=place % step == 0)
        except UserError as error:
            sample.problems.append(str(error))
        else:
            made += [(number, row) for row in found]
    sample.groups = [len(answers_of(row)) for _, row in made]
    sample.rows = len(made) * sample.records / max(1, sample.seen)
    if lengths and made:
        _measure(sample, made, *lengths, overlong)
    return sample


def _of_study(
    sample: Sample, study: Any, where: str, kind: str, options: dict[str, Any], *, decode: bool
) -> list[dict[str, Any]]:
    """The training rows of one record; [] for other splits and for what is set aside."""
    check_study(study, where=where)
    _columns(sample, study)
    if study["split"] == "test":
        return []
    root = options["root"]
    problems = [
        f"{where}: {p}" for p in image_problems(study, root, decode=decode, allow_outside=options["allow_outside"])
    ]
    if problems:
        sample.problems += problems
        return []
    choices = [options.get(name, "error") for name in ("on_missing_consensus", "on_missing_negative", "on_identical")]
    if rows.set_aside_reason(kind, study, *choices):
        sample.set_aside += 1
        return []
    try:
        if kind == "apo":
            made = [rows.apo_row(study, root, drop_identical=options.get("on_identical") == "drop-negative")]
        else:
            made = [rows.shared_row(study, root)] if options["share_prefix"] else rows.sft_rows(study, root)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return made if study["split"] == "train" else []


def _of_row(
    sample: Sample, row: Any, where: str, kind: str, options: dict[str, Any], *, decode: bool
) -> list[dict[str, Any]]:
    try:
        found = row_checks.check_row(row, kind)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    _columns(sample, row)
    root = None if options["allow_outside"] else options["image_root"]
    problems = [f"{where}: {p}" for p in row_checks.row_image_problems(found["images"], root, decode=decode)]
    sample.problems += problems
    return [] if problems else [row]


def _columns(sample: Sample, record: dict) -> None:
    sample.columns += [key for key in record if key not in sample.columns]


def _measure(
    sample: Sample, made: list[tuple[int, dict]], tokenizer: Path, max_length: int, limits: FilmLimits, overlong: str
) -> None:
    for number, length in row_lengths(made, tokenizer, limits):
        if length.longest > max_length and overlong == "drop":
            sample.set_aside += 1
            continue
        sample.lengths.append(length)
        if length.longest > max_length:
            sample.problems.append(f"{sample.path}:{number}: {too_long(length, max_length)}")
