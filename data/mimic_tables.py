"""The tables of MIMIC-CXR-JPG: films by study, splits, labels. Gzip or plain, one row in memory at a time.

Columns are found by name. Errors name file, row and column, never a value: most values are identifiers.
"""

import contextlib
import csv
import gzip
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Container, Iterator
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from data.errors import UserError, show_columns
from data.files import StrPath, open_text
from data.findings_lexicon import LABELS
from data.records import SPLITS

# Rows and studies of the published tables (PhysioNet, MIMIC-CXR-JPG 2.0.0 and 2.1.0).
IMAGES = 377_110
LABELLED = 227_827
RADIOLOGIST = 687
IN_SPLIT = {"train": (368_960, 222_758), "validate": (2_991, 1_808), "test": (5_159, 3_269)}  # images, studies
# From this part of the published rows on, a table is taken for the whole one and must then be it to the row.
WHOLE = 0.9

LABEL_TABLES = {"chexpert": "chexpert", "negbio": "negbio", "radiologist": "test-set-labeled"}
FRONTAL = ("PA", "AP")  # in order of preference
OTHER_NAMES = {"airspace opacity": "Lung Opacity"}


class Film(NamedTuple):
    """One image of a study; `view` is ViewPosition as it stands in the metadata ("" where blank)."""

    view: str
    dicom: str


class Study(NamedTuple):
    """One study; `when` is (yyyymmdd, hhmmss.fff) of its earliest film, shifted consistently for each patient."""

    subject: int
    when: tuple[int, float] | None
    films: tuple[Film, ...]


def find_table(folder: StrPath, kind: str, told: str = "--tables") -> Path:
    """The table `mimic-cxr-2.x.x-KIND.csv[.gz]` of a folder; `told` is the option that names the folder.

    Raises:
        UserError: there is none, or there are two that could be meant.
    """
    pattern = re.compile(rf"mimic-cxr-2\.\d+\.\d+-{re.escape(kind)}\.csv(\.gz)?$")
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: is not a folder; name the one with MIMIC-CXR-JPG's tables")
    found = sorted(path for path in Path(folder).iterdir() if pattern.match(path.name))
    if not found:
        name, other = f"mimic-cxr-2.0.0-{kind}.csv.gz", ".csv"
        if kind == LABEL_TABLES["radiologist"]:  # the one that PhysioNet has unzipped
            name, other = f"mimic-cxr-2.1.0-{kind}.csv", ".csv.gz"
        raise UserError(
            f"{folder}: no table {name} (or {other}); download it from PhysioNet (docs/data.md) or "
            f"name its folder with {told}"
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{folder}: several {kind} tables ({names}); keep the one you mean")
    return found[0]


def rows(path: StrPath, columns: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield (line number, values of `columns`, two or more) of a CSV file with a header.

    Raises:
        UserError: unreadable, cut off or damaged file, missing column, row of another length.
    """
    try:
        with open_text(path, newline="") as source:
            lines = csv.reader(source)
            header = [name.strip().lower() for name in next(lines, [])]
            header = [OTHER_NAMES.get(name, name).lower() for name in header]
            missing = [name for name in columns if name.lower() not in header]
            if missing:
                raise UserError(
                    f"{path}:1: no column {', '.join(missing)} (found: {show_columns(header)}); "
                    "download the table again or name the right file"
                )
            pick = itemgetter(*(header.index(name.lower()) for name in columns))
            width = len(header)
            for row in lines:
                if len(row) != width:
                    if not row:
                        continue
                    raise UserError(
                        f"{path}:{lines.line_num}: {len(row)} values for {width} columns; download the table again"
                    )
                yield lines.line_num, pick(row)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}: the gzip file is cut off or damaged; download it again and compare SHA256SUMS.txt"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8; download the table again") from error
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV table ({error}); download it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def read_metadata(
    path: StrPath,
    *,
    views: str = "frontal",
    wanted: Container[int] | None = None,
    partial: bool = False,
    told: str = "--partial",
) -> dict[int, Study]:
    """Studies by study_id in the order of the table.

    Args:
        views: "frontal" keeps the PA and AP films, "all" every one. PA comes before AP before the rest, then by time,
            then by dicom_id, so that `films[0]` is a fixed choice.
        wanted: keep only these study_ids. Memory then grows with them and not with the table.
        partial: accept any number of rows.
        told: the option that says so, for messages.
    """
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime")
    found: dict[int, list] = {}
    total = 0
    for line, (dicom, subject, study, view, date, time) in rows(path, columns):
        total += 1
        number = whole(study, path, line, "study_id")
        if wanted is not None and number not in wanted:
            continue
        view = view.strip().upper()
        when = _when(date, time, path, line)
        entry = found.get(number)
        if entry is None:
            entry = found[number] = [whole(subject, path, line, "subject_id"), when, []]
        elif entry[0] != whole(subject, path, line, "subject_id"):
            raise UserError(f"{path}:{line}: study s{number} belongs to two subjects; download the table again")
        elif when is not None and (entry[1] is None or when < entry[1]):
            entry[1] = when
        if view in FRONTAL:
            entry[2].append((FRONTAL.index(view), when or (0, 0.0), dicom, view))
        elif views == "all":
            entry[2].append((len(FRONTAL), when or (0, 0.0), dicom, view))
    check_count(path, "images", total, IMAGES, partial, told)
    # One string for each view and none of the sorting keys: the table has 377,110 rows.
    return {
        number: Study(subject, when, tuple(Film(sys.intern(one[3]), one[2]) for one in sorted(films)))
        for number, (subject, when, films) in found.items()
    }


def studies_of_films(path: StrPath, wanted: Container[str]) -> dict[str, int]:
    """study_id of each wanted dicom_id that the metadata table has."""
    found = rows(path, ("dicom_id", "study_id"))
    return {dicom: whole(study, path, line, "study_id") for line, (dicom, study) in found if dicom in wanted}


def read_splits(
    path: StrPath, *, wanted: Container[int] | None = None, partial: bool = False, told: str = "--partial"
) -> dict[int, str]:
    """Split ("train", "validate", "test") by study_id; arguments as of `read_metadata`.

    Raises:
        UserError: an unknown split, a study on two sides, or (whole table) counts that are not the published ones.
    """
    images: Counter = Counter()
    found: dict[int, str] = {}
    for line, (study, split) in rows(path, ("study_id", "split")):
        split = sys.intern(split.strip())
        if split not in SPLITS:
            raise UserError(f"{path}:{line}: split is not one of {', '.join(SPLITS)}; download the table again")
        number = whole(study, path, line, "study_id")
        images[split] += 1
        first = found.setdefault(number, split)
        if first != split:
            raise UserError(f"{path}:{line}: study s{number} is in {first} and in {split}; download the table again")
    if check_count(path, "images", images.total(), IMAGES, partial, told):
        studies = Counter(found.values())
        for split, counts in IN_SPLIT.items():
            for what, got, published in zip(
                ("images", "studies"), (images[split], studies[split]), counts, strict=True
            ):
                if got != published:
                    raise UserError(_unlike(path, f"{what} of split {split}", got, published, told))
    return found if wanted is None else {number: split for number, split in found.items() if number in wanted}


def read_labels(
    path: StrPath,
    kind: str,
    *,
    wanted: Container[int] | None = None,
    partial: bool = False,
    told: str = "--partial",
) -> dict[int, str]:
    """Labels by study_id, 14 characters in the order of LABELS: 1 present, 0 absent, u uncertain, - not mentioned.

    `findings_of` turns them into the `findings` of a study record. Columns are read by name; "Airspace Opacity" of the
    radiologist's table is Lung Opacity. Other arguments as of `read_metadata`.
    """
    found: dict[int, str] = {}
    total = 0
    for line, (study, *values) in rows(path, ("study_id", *LABELS)):
        total += 1
        number = whole(study, path, line, "study_id")
        if wanted is not None and number not in wanted:
            continue
        if number in found:
            raise UserError(f"{path}:{line}: study s{number} has two rows of labels; download the table again")
        found[number] = sys.intern("".join([_code(value, path, line, at) for at, value in enumerate(values)]))
    check_count(path, "studies", total, RADIOLOGIST if kind == "radiologist" else LABELLED, partial, told)
    return found


def findings_of(codes: str) -> dict[str, dict[str, str]]:
    """The `findings` of a study record from the codes of `read_labels`; labels not mentioned are left out."""
    states = {"1": "present", "0": "absent", "u": "uncertain"}
    return {label: {"state": states[code]} for label, code in zip(LABELS, codes, strict=True) if code != "-"}


def check_count(path: StrPath, what: str, got: int, published: int, partial: bool, told: str = "--partial") -> bool:
    """Whether a table is the whole published one. Says so on stderr for a part of it; `told` is the option for that.

    Raises:
        UserError: it is nearly as long as the published one, or longer, so it is neither it nor a chosen part.
    """
    if got == published:
        return True
    if partial or got < WHOLE * published:
        print(
            f"note: {path}: {got} of {published} {what}; a partial table, its counts are not checked", file=sys.stderr
        )
        return False
    raise UserError(_unlike(path, what, got, published, told))


def _unlike(path: StrPath, what: str, got: int, published: int, told: str) -> str:
    return (
        f"{path}: {got} {what} where the published table has {published}; download it again, or say {told} if it "
        "was cut on purpose"
    )


def whole(text: str, path: StrPath, line: int, column: str) -> int:
    """A whole number of a table, as int: "50999999", "s50999999" and "50999999.0" (pandas) are the same."""
    try:
        return int(text)
    except ValueError:
        trimmed = text.strip().lower().removesuffix(".0").lstrip("sp")
        if trimmed.isdecimal():
            return int(trimmed)
        raise UserError(f"{path}:{line}: {column} is not a whole number; download the table again") from None


def _when(date: str, time: str, path: StrPath, line: int) -> tuple[int, float] | None:
    if not date.strip() or not time.strip():
        return None
    try:
        return int(float(date)), float(time)
    except ValueError:
        raise UserError(f"{path}:{line}: StudyDate or StudyTime is not a number; download the table again") from None


_CODES = {"": "-", "1.0": "1", "0.0": "0", "-1.0": "u"}


def _code(value: str, path: StrPath, line: int, at: int) -> str:
    code = _CODES.get(value)
    if code is None:
        code = "-" if not value.strip() else None
        with contextlib.suppress(ValueError):
            code = code or {1.0: "1", 0.0: "0", -1.0: "u"}.get(float(value))
        if code is None:
            raise UserError(
                f"{path}:{line}: {LABELS[at]} is none of 1.0, 0.0, -1.0 and blank; download the table again"
            )
    return code
