"""The rows of a source -> the store of texts (cxr_store.py): one row a (study or film, teacher)."""

import json
import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from data.cxr_columns import Columns, NoColumns, adds_only, film_of, find_columns, texts_of
from data.cxr_labels import labels_of
from data.cxr_source import Rows
from data.cxr_status import status_of, unknown_reason
from data.cxr_store import add_texts
from data.errors import UserError
from data.records import IMAGE_TAG, SPLITS, clean

PEEK = 100  # rows that a file's columns are decided by, besides later ones with columns that none of these has
EMPTY, UNKNOWN = "{}", "null"  # labels as the store holds them: nothing is present, and nothing said is a label

ZEROS = (  # counts of data.cxr_max.build that begin at 0
    "rows",
    "files",
    "no_text",
    "no_film",
    "repeated",
    "duplicates",
    "cleaned",
    "unknown_labels",
    "no_list",
    "no_known_label",
    "several_films",
    "labelled",
    "reports",
)


def fill(
    store: sqlite3.Connection,
    opened: list[tuple[str, Callable[[], Rows]]],
    told: dict[str, str],
    limit: int | None,
    usable: Callable[[int | None, str | None], int | None] | None,
    *,
    with_labels: bool,
) -> dict[str, Any]:
    """Read the source into the store; returns the first counts, as `data.cxr_max.build` names them.

    Args:
        opened: (name, its rows) of every file.
        told: columns that were told by field.
        limit: see `data.cxr_max.build`.
        usable: (study_id, dicom_id) -> study_id of a study that counts towards `limit`, None for others.
        with_labels: keep what the rows state as labels.

    Raises:
        UserError: rows that cannot be read, or a source without a film or a text.
    """
    counts: dict[str, Any] = dict.fromkeys(ZEROS, 0) | {"left_out": [], "unread": {}, "unknown_finish": Counter()}
    refused: list[UserError] = []
    taken: set[int] = set()
    cache: dict[str, tuple[str | None, int, bool]] = {}

    def rows_of(name: str, rows: Rows) -> Iterator[tuple]:
        peeked = list(islice(rows, PEEK))
        deciding = [row for _, row in peeked]
        columns = find_columns(name, deciding, told)
        seen = {key for row in deciding for key in row}
        counts["files"] += 1
        counts["unread"] |= dict.fromkeys(columns.unread)
        for place, row in chain(peeked, rows):
            if not row.keys() <= seen:
                seen |= row.keys()
                deciding.append(row)
                columns = _with_later(columns, name, deciding, told, place)
                counts["unread"] |= dict.fromkeys(columns.unread)
            film = _film(row, columns)
            number = usable(*film) if usable else None
            if number is not None and number not in taken:
                if len(taken) == limit:
                    return
                taken.add(number)
            counts["rows"] += 1
            if film == (None, None):
                counts["no_film"] += 1
                continue
            stated = None
            if with_labels and (columns.labels or columns.label_columns):
                stated, unknown, no_list = _stated(row, columns, cache)
                counts["unknown_labels"] += unknown
                counts["no_list"] += no_list
            prompt = _prompt(row.get(columns.prompt), place) if columns.prompt else None
            split = _split(row.get(columns.split), place) if columns.split else None
            for teacher, text, status in _texts(row, columns, place, name, counts):
                yield *film, teacher, text, status, place, stated, prompt, split

    store.execute("BEGIN")
    for name, read in opened:
        try:
            add_texts(store, rows_of(name, read()))
        except NoColumns as error:
            refused.append(error)
            counts["left_out"].append(name)
    store.execute("COMMIT")
    if not counts["files"] and refused:
        more = f" (and {len(refused) - 1} more files like it)" if len(refused) > 1 else ""
        raise UserError(f"{refused[0]}{more}")
    if counts["no_film"] == counts["rows"]:
        raise UserError(
            f"{opened[0][0]}: none of {counts['rows']} rows names a study (s5xxxxxxx) or film (dicom_id) of MIMIC-CXR; "
            "name the column that does with --columns image=COLUMN"
        )
    if not store.execute("SELECT EXISTS (SELECT 1 FROM texts)").fetchone()[0]:
        raise UserError(
            f"{opened[0][0]}: none of {counts['rows']} rows has a text (null for every teacher); name the column that "
            "has with --columns text=COLUMN"
        )
    return counts


def _with_later(columns: Columns, name: str, rows: list[dict], told: dict[str, str], place: str) -> Columns:
    """The columns that were known with those of a later row; UserError where the rows before it were read wrongly."""
    try:
        later = find_columns(name, rows, told)
    except NoColumns:
        later = None
    if later is None or not adds_only(columns, later):
        raise UserError(
            f"{place}: has a column that the rows before it lack and that changes what they say; write all columns "
            "into the first row (null where there is nothing), or name the right ones with --columns"
        )
    return later


def _texts(
    row: dict, columns: Columns, place: str, name: str, counts: dict[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """(teacher, cleaned text, status) of a row's texts."""
    for teacher, text, finish in texts_of(row, columns, place, name):
        if not teacher.isprintable():
            raise UserError(f"{place}: a teacher's name holds control characters or half a character; mend the row")
        if text is None or (isinstance(text, float) and math.isnan(text)):
            counts["no_text"] += 1
            continue
        if not isinstance(text, str):
            raise UserError(f"{place}: text of teacher {teacher!r} is no text; name the right column with --columns")
        text, changed = clean(text)
        counts["cleaned"] += changed
        if text.strip() and (reason := unknown_reason(finish)):
            counts["unknown_finish"][reason] += 1
        yield teacher, text, status_of(text, finish)


def _stated(
    row: dict, columns: Columns, cache: dict[str, tuple[str | None, int, bool]]
) -> tuple[str | None, int, bool]:
    """`labels_of`, its findings as JSON: UNKNOWN where no name is one of the 14 labels, None where nothing is stated.

    Cached: the same few diagnoses come with every teacher and with many studies.
    """
    if columns.label_columns:
        # By label: another file may have other columns of labels.
        key = repr({label: row.get(column) for label, column in columns.label_columns.items()})
    else:
        key = repr(row.get(columns.labels))
    if key not in cache:
        if len(cache) > 10_000:
            cache.clear()
        findings, *left_out = labels_of(row, columns)
        cache[key] = json.dumps(findings) if findings is not None or any(left_out) else None, *left_out
    return cache[key]


def of_rows(stated: Iterable[str | None]) -> str | None:
    """What the rows of a study state, as the store holds it: the first that names a label, where one does."""
    ranks = {EMPTY: 0, UNKNOWN: 1}  # a film is normal only where no row says otherwise
    return max(filter(None, stated), key=lambda one: ranks.get(one, 2), default=None)


def _film(row: dict, columns: Columns) -> tuple[int | None, str | None]:
    study = dicom = None
    for column in columns.film:
        by_column = film_of(row.get(column))
        study, dicom = study or by_column[0], dicom or by_column[1]
        if study and dicom:
            break
    return study, dicom


def _prompt(value: Any, place: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or value.count(IMAGE_TAG) > 1:
        raise UserError(
            f"{place}: prompt is no text with {IMAGE_TAG} at most once; name the right column with --columns"
        )
    return value if IMAGE_TAG in value else f"{IMAGE_TAG}{value}"


def _split(value: Any, place: str) -> str | None:
    if value is None or value == "":
        return None
    split = {"val": "validate", "valid": "validate", "validation": "validate"}.get(
        str(value).lower(), str(value).lower()
    )
    if split not in SPLITS:
        raise UserError(f"{place}: split is none of {', '.join(SPLITS)}; name the right column with --columns")
    return split
