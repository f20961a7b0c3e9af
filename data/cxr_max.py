"""CXR-MAX, or trajectories of the same kind, joined to MIMIC-CXR-JPG: study records with a trajectory a teacher.

python -m data.cxr_max --source DIR_OR_HUB_ID --images MIMIC_CXR_JPG_ROOT --out STUDIES.jsonl [--limit N]
                       [--columns teacher=COLUMN,text=COLUMN,image=COLUMN,labels=COLUMN]

The data set's columns are guessed by name, or told by --columns; docs/data.md has the shapes that are understood. Texts
pass through a temporary SQLite file beside OUT, so that a study's rows may stand anywhere and memory does not grow with
the texts.
"""

import argparse
import contextlib
import json
import math
import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from data.cxr_columns import Columns, NoColumns, film_of, find_columns, labels_of, parse_columns, texts_of
from data.cxr_source import Rows, open_source
from data.errors import Problems, UserError, run_cli
from data.files import StrPath, refuse_input
from data.findings import is_refusal
from data.mimic_cxr import MISSING, PROMPT, SHOWN, add_common, check_root, listed, make_record, prompt_for, write_all
from data.mimic_reports import open_reports
from data.mimic_tables import (
    FRONTAL,
    LABEL_TABLES,
    Film,
    find_table,
    findings_of,
    read_labels,
    read_metadata,
    read_splits,
    studies_of_films,
)
from data.records import IMAGE_TAG, PLACEHOLDER, SPLITS, STATUSES

PEEK = 100  # rows that a file's columns are decided by
# Every refusal that data.findings knows holds one of these; tests/data/test_cxr_max.py compares.
REFUSING = (
    *("i'm", "i am", "i cannot", "i can not", "i can't", "i won't", "i do", "i could"),
    *("able to", "capable", "qualified", "please", "as an ai"),
)
EMPTY, UNKNOWN = "{}", "null"  # labels as the store holds them: none of the 14, and names that are none of the 14
FINISH = {"length": "truncated", "max_tokens": "truncated", "content_filter": "filtered", "refusal": "refused"}


def build(
    source: str,
    root: StrPath,
    out: StrPath,
    *,
    tables: StrPath | None = None,
    columns: str | None = None,
    labels: str = "source",
    reports: StrPath | None = None,
    prompt: str = PROMPT,
    limit: int | None = None,
    film_check: bool = True,
    partial: bool = False,
    on_duplicate: str = "error",
) -> dict[str, Any]:
    """Write study records; `out` is replaced at once, or left alone when anything is wrong.

    Args:
        source: local clone (folder or file) or Hub id.
        root: MIMIC-CXR-JPG, see data/mimic_cxr.py. Its split table says a study's split, its metadata the film.
        columns: "FIELD=COLUMN,..." for what cannot be guessed.
        labels: "source" (the diagnoses in the data set, as present), "none", or a table of data/mimic_cxr.py.
        reports: mimic-cxr-reports.zip or its folder, to add reports; none by default.
        limit: write so many studies whose film is there. Each file is read until it begins one study more, so a study
            has all its teachers where their rows follow each other or every file has the same order.
        on_duplicate: two different texts of one teacher for a study: "error", or "first" keeps the first and counts.

    Returns:
        Counts: {"studies", "splits", "trajectories": {status: n}, "teachers": {teacher: ok trajectories}, "per_study":
        {ok trajectories: studies}, "split_patients" (in several splits, which the source said), "rows", "files",
        "no_text" (nulls), "repeated" (same text again), "duplicates" (left out), "cleaned" (texts with special tokens
        or NUL taken out), "unknown_labels", "no_known_label" (studies), "several_films", "labelled", "reports",
        "set_aside": {reason: n}, "missing": first ten studies without their film, "left_out": files without
        trajectories}.

    Raises:
        UserError: unreadable source, columns that cannot be told, missing tables, duplicates, nothing to write, or an
            `out` that is, or the next time would be, among what is read.
    """
    check_root(root, film_check)
    prompt_for(prompt, 1)
    told = parse_columns(columns)
    folder = root if tables is None else tables
    paths = {kind: find_table(folder, kind) for kind in ("metadata", "split")}
    if labels in LABEL_TABLES:
        paths["labels"] = find_table(folder, LABEL_TABLES[labels])
    refuse_input(out, source, *paths.values(), *filter(None, [reports]))
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(source)):
        raise UserError(f"--out {out}: is in the folder of --source, and would be read the next time; choose another")
    read_report = open_reports(reports) if reports else None
    opened = open_source(source, streaming=limit is not None)
    with _store(out) as store:
        usable = None
        if limit is not None:
            # A trial has a part of the films: which studies count is known only with the whole tables.
            usable = _usable(root, paths, partial, film_check)
        counts = _fill(store, opened, told, limit, usable, with_labels=labels == "source")
        _resolve_films(store, paths["metadata"], counts)
        wanted = {number for (number,) in store.execute("SELECT DISTINCT study FROM texts WHERE study IS NOT NULL")}
        # The source may name a lateral film.
        studies = read_metadata(paths["metadata"], views="all", wanted=wanted, partial=partial)
        splits = read_splits(paths["split"], wanted=wanted, partial=partial)
        codes = read_labels(paths["labels"], labels, wanted=wanted, partial=partial) if "labels" in paths else {}
        set_aside, by_split, statuses, teachers, per_study = Counter(), Counter(), Counter(), Counter(), Counter()
        sides: dict[str, set[str]] = {}  # splits of each patient
        missing: list[str] = []
        problems = Problems(source)

        def records() -> Iterator[dict]:
            # Whole groups in the order of study_id; rows of a study in the order in which they were read.
            texts = store.execute("SELECT * FROM texts WHERE study IS NOT NULL ORDER BY study, number")
            for number, group in groupby(texts, key=itemgetter(1)):
                if limit is not None and by_split.total() >= limit:
                    break
                rows = list(group)
                record = one_study(number, rows)
                if record is None:
                    continue
                if number in codes:
                    record["findings"] = findings_of(codes[number])
                elif stated := _of_rows(row[7] for row in rows):
                    if stated == UNKNOWN:
                        counts["no_known_label"] += 1
                    else:
                        record["findings"] = json.loads(stated)
                report = read_report(studies[number].subject, number) if read_report else None
                if report:
                    record["report"] = report
                counts["labelled"] += "findings" in record
                counts["reports"] += "report" in record
                by_split[record["split"]] += 1
                sides.setdefault(record["patient"], set()).add(record["split"])
                ok = [one["teacher"] for one in record["trajectories"] if one["status"] == "ok"]
                statuses.update(one["status"] for one in record["trajectories"])
                teachers.update(ok)
                per_study[len(ok)] += 1
                yield record
            problems.refuse()

        def one_study(number: int, rows: list[tuple]) -> dict | None:
            study = studies.get(number)
            reason, record = "not in the metadata table", None
            if study is not None:
                named = list(dict.fromkeys(row[2] for row in rows if row[2]))
                counts["several_films"] += len(named) > 1
                films = _films(study.films, named)
                split = next((row[9] for row in rows if row[9]), None) or splits.get(number)
                if not films:
                    reason = "named film not in the study" if named else "no frontal film"
                elif split is None:
                    reason = "not in the split table"
                else:
                    text = next((row[8] for row in rows if row[8]), None)
                    reason, record = make_record(root, number, study, split, films, film_check, text or prompt)
            if record is None:
                set_aside[reason] += 1
                if reason == MISSING and len(missing) < SHOWN:
                    missing.append(f"s{number}")
                return None
            record["trajectories"] = _trajectories(number, rows, on_duplicate, counts, problems)
            return record

        write_all(out, records(), set_aside, missing, root)
    return counts | {
        "studies": by_split.total(),
        "splits": dict(by_split),
        "trajectories": dict(statuses),
        "teachers": dict(teachers),
        "per_study": dict(sorted(per_study.items())),
        "split_patients": sum(len(one) > 1 for one in sides.values()),
        "set_aside": dict(set_aside),
        "missing": missing,
    }


@contextlib.contextmanager
def _store(out: StrPath) -> Iterator[sqlite3.Connection]:
    """An empty table of texts in a temporary folder beside `out`: patients' data stay on the disk chosen for them."""
    folder = Path(os.path.realpath(out)).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=folder, prefix=".cxr_max.", ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another place") from error
    with temporary as inside:
        store = sqlite3.connect(os.path.join(inside, "texts.sqlite"), isolation_level=None)
        try:
            _sort_in(store, inside)
            store.execute("PRAGMA journal_mode = OFF")
            store.execute("PRAGMA synchronous = OFF")
            store.execute("PRAGMA cache_size = -32768")  # 32 MiB
            store.execute(
                "CREATE TABLE texts (number INTEGER PRIMARY KEY, study INTEGER, dicom TEXT, teacher TEXT, text TEXT, "
                "status TEXT, place TEXT, labels TEXT, prompt TEXT, split TEXT)"
            )
            yield store
        except sqlite3.OperationalError as error:
            raise UserError(f"{out}: temporary file beside it: {error}; make room or choose another place") from error
        finally:
            with contextlib.suppress(sqlite3.OperationalError):
                store.execute("PRAGMA temp_store_directory = ''")
            store.close()


def _sort_in(store: sqlite3.Connection, folder: str) -> None:
    """Let sorting spill into `folder` and not into the system's temporary folder.

    Not by SQLITE_TMPDIR: SQLite reads it when Python imports it, long before. A build without the pragma, which is
    deprecated, sorts in memory.
    """
    quoted = folder.replace("'", "''")
    store.execute(f"PRAGMA temp_store_directory = '{quoted}'")
    if store.execute("PRAGMA temp_store_directory").fetchone() != (folder,):
        store.execute("PRAGMA temp_store = MEMORY")


def _fill(
    store: sqlite3.Connection,
    opened: list[tuple[str, Callable[[], Rows]]],
    told: dict[str, str],
    limit: int | None,
    usable: Callable[[int | None, str | None], int | None] | None,
    *,
    with_labels: bool,
) -> dict[str, Any]:
    """Read the source into the store; returns the first counts."""
    zeros = (
        "rows",
        "files",
        "no_text",
        "no_film",
        "repeated",
        "duplicates",
        "cleaned",
        "unknown_labels",
        "no_known_label",
        "several_films",
    )
    counts: dict[str, Any] = dict.fromkeys((*zeros, "labelled", "reports"), 0)
    counts["left_out"] = []
    refused: list[UserError] = []
    taken: set[int] = set()
    cache: dict[str, tuple[str | None, int]] = {}

    def rows_of(name: str, rows: Rows) -> Iterator[tuple]:
        peeked = list(islice(rows, PEEK))
        columns = find_columns(name, [row for _, row in peeked], told)
        counts["files"] += 1
        for place, row in chain(peeked, rows):
            study, dicom = _film(row, columns)
            number = usable(study, dicom) if usable else None
            if number is not None and number not in taken:
                if len(taken) == limit:
                    return
                taken.add(number)
            counts["rows"] += 1
            if study is None and dicom is None:
                counts["no_film"] += 1
                continue
            yield from texts(place, row, columns, name, study, dicom)

    def texts(
        place: str, row: dict, columns: Columns, name: str, study: int | None, dicom: str | None
    ) -> Iterator[tuple]:
        stated = None
        if with_labels and (columns.labels or columns.label_columns):
            stated, unknown = _stated(row, columns, cache)
            counts["unknown_labels"] += unknown
        prompt = _prompt(row.get(columns.prompt), place) if columns.prompt else None
        split = _split(row.get(columns.split), place) if columns.split else None
        for teacher, text, finish in texts_of(row, columns, place, name):
            if not teacher.isprintable():
                raise UserError(f"{place}: a teacher's name holds control characters or half a character; mend the row")
            if text is None or (isinstance(text, float) and math.isnan(text)):
                counts["no_text"] += 1
                continue
            if not isinstance(text, str):
                raise UserError(
                    f"{place}: text of teacher {teacher!r} is no text; name the right column with --columns"
                )
            text, changed = clean(text)
            counts["cleaned"] += changed
            yield study, dicom, teacher, text, status_of(text, finish), place, stated, prompt, split

    store.execute("BEGIN")
    for name, read in opened:
        try:
            store.executemany(
                "INSERT INTO texts (study, dicom, teacher, text, status, place, labels, prompt, split) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows_of(name, read()),
            )
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


def _usable(
    root: StrPath, paths: dict[str, Path], partial: bool, film_check: bool
) -> Callable[[int | None, str | None], int | None]:
    """A function (study_id, dicom_id) -> study_id of the study that can be written, or None."""
    studies = read_metadata(paths["metadata"], views="all", partial=partial)
    splits = read_splits(paths["split"], partial=partial)
    of_film = {film.dicom: number for number, study in studies.items() for film in study.films}

    def usable(study: int | None, dicom: str | None) -> int | None:
        number = study if study is not None else of_film.get(dicom)
        if number not in studies or number not in splits:
            return None
        films = _films(studies[number].films, [dicom] if dicom else [])
        reason, _ = make_record(root, number, studies[number], splits[number], films, film_check, PROMPT)
        return number if films and reason is None else None

    return usable


def _stated(row: dict, columns: Columns, cache: dict[str, tuple[str | None, int]]) -> tuple[str | None, int]:
    """`labels_of` as JSON, UNKNOWN for names that are all none of the 14 labels, None where nothing is stated.

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
        findings, unknown = labels_of(row, columns)
        cache[key] = json.dumps(findings) if findings is not None or unknown else None, unknown
    return cache[key]


def _of_rows(stated: Iterable[str | None]) -> str | None:
    """What the rows of a study state, as `_stated` has it: the first that names a label, where one does."""
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


def clean(text: str) -> tuple[str, bool]:
    """(text without what a study record may not hold: special tokens, NUL, half surrogates; whether it changed)."""
    if text.isascii() and "<" not in text and "\0" not in text:
        return text, False
    cleaned = text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
    while PLACEHOLDER.search(cleaned):  # taking one out may join another
        cleaned = PLACEHOLDER.sub("", cleaned)
    return cleaned, cleaned != text


def status_of(text: str, finish: Any = None) -> str:
    """Status of a trajectory by its text and, where the source has one, its finish reason."""
    if not text.strip():
        return "empty"
    by_finish = FINISH.get(str(finish).lower()) if finish is not None else None
    return by_finish or ("refused" if refuses(text) else "ok")


def refuses(text: str) -> bool:
    """`is_refusal`, which takes most of the time of loading, asked only where one of its words is there at all."""
    lower = text.lower().replace("\u00a0", " ").replace("\u2019", "'")
    return any(words in lower for words in REFUSING) and is_refusal(text)


def _resolve_films(store: sqlite3.Connection, metadata: Path, counts: dict[str, Any]) -> None:
    """Give rows that only name a film their study, by the metadata table."""
    dicoms = {dicom for (dicom,) in store.execute("SELECT DISTINCT dicom FROM texts WHERE study IS NULL")}
    if not dicoms:
        return
    found = studies_of_films(metadata, dicoms)
    store.execute("CREATE TEMP TABLE films (dicom TEXT PRIMARY KEY, study INTEGER)")
    store.executemany("INSERT INTO films VALUES (?, ?)", found.items())
    store.execute(
        "UPDATE texts SET study = (SELECT study FROM films WHERE films.dicom = texts.dicom) WHERE study IS NULL"
    )
    counts["unknown_films"] = len(dicoms) - len(found)


def _films(films: tuple[Film, ...], named: list[str]) -> tuple[Film, ...]:
    """The first film that the rows name, or where they name none the study's first frontal one; () without either."""
    return tuple(film for film in films if (film.dicom == named[0] if named else film.view in FRONTAL))[:1]


def _trajectories(
    number: int, rows: list[tuple], on_duplicate: str, counts: dict[str, Any], problems: Problems
) -> list[dict[str, str]]:
    found: dict[str, tuple[str, str, str]] = {}
    for _, _, _, teacher, text, status, place, *_ in rows:
        if teacher not in found:
            found[teacher] = (text, status, place)
        elif found[teacher][0] == text:
            counts["repeated"] += 1
        elif on_duplicate == "first":
            counts["duplicates"] += 1
        else:
            problems.add(
                f"{place}: study s{number}: another text of teacher {teacher!r} stands in {found[teacher][2]}; "
                "keep one, or --on-duplicate first"
            )
    return [{"teacher": teacher, "text": text, "status": status} for teacher, (text, status, _) in found.items()]


def describe(counts: dict[str, Any], out: StrPath) -> str:
    """The counts of `build` in a few lines for people."""
    in_order = {status: counts["trajectories"].get(status, 0) for status in STATUSES}
    total = sum(in_order.values())
    lines = [
        f"{out}: {counts['studies']} studies ({listed(counts['splits'])}), {total} trajectories",
        f"  read: {counts['rows']} rows of {counts['files']} files",
        "  trajectories: " + ", ".join(f"{status} {n}" for status, n in in_order.items() if n or status == "ok"),
        f"  ok by teacher: {listed(counts['teachers'])}",
        "  studies by ok trajectories: " + (", ".join(f"N={n}: {k}" for n, k in counts["per_study"].items())),
        f"  with labels {counts['labelled']}, with a report {counts['reports']}",
        f"  set aside: {listed(counts['set_aside'])}",
    ]
    for key, what in (
        ("no_film", "rows that name no film or study, left out"),
        ("unknown_films", "films that the metadata table does not have, left out"),
        ("no_text", "teachers without a text (null), left out"),
        ("repeated", "rows that repeat a teacher's text, left out"),
        ("duplicates", "other texts of a teacher for its study, left out"),
        ("cleaned", "texts with special tokens or NUL taken out"),
        ("unknown_labels", "names among the diagnoses that are none of the 14 labels, left out"),
        ("no_known_label", "studies whose diagnoses are all none of the 14 labels, written without labels"),
        ("several_films", "studies whose rows name several films (the first is shown)"),
        ("split_patients", "patients in several splits (python -m data.splits --check lists them)"),
    ):
        if counts.get(key):
            lines.append(f"  {what}: {counts[key]}")
    if counts["left_out"]:
        lines.append(f"  files without trajectories, left out: {', '.join(counts['left_out'][:SHOWN])}")
    if counts["missing"]:
        lines.append(f"  film missing, first {len(counts['missing'])}: {', '.join(counts['missing'])}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data.cxr_max", description="CXR-MAX and its like to study records (docs/data.md)."
    )
    parser.add_argument("--source", required=True, help="local clone (folder or file) or Hub id, MiaoMiaoYang/CXR-MAX")
    parser.add_argument("--images", required=True, help="root of MIMIC-CXR-JPG: holds files/ and the tables")
    parser.add_argument(
        "--columns",
        help="FIELD=COLUMN,... where the guess fails: teacher, text (A+B+C: a teacher each), "
        "image, dicom, study, labels, finish, prompt, split",
    )
    parser.add_argument("--labels", choices=("source", *LABEL_TABLES, "none"), default="source")
    parser.add_argument("--reports", help="mimic-cxr-reports.zip or its folder, to add reports")
    parser.add_argument("--on-duplicate", choices=("error", "first"), default="error")
    add_common(parser)
    options = vars(parser.parse_args())
    source, root, out = options.pop("source"), options.pop("images"), options.pop("out")
    print(describe(build(source, root, out, **options), out))
    print(f"  give later commands --image-root {os.path.abspath(root)}")


if __name__ == "__main__":
    run_cli(main)
