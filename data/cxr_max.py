"""CXR-MAX, or trajectories of the same kind, joined to MIMIC-CXR-JPG: study records with a trajectory a teacher.

python -m data.cxr_max --source DIR_OR_HUB_ID --images MIMIC_CXR_JPG_ROOT --out STUDIES.jsonl [--limit N]
                       [--columns teacher=COLUMN,text=COLUMN,image=COLUMN,labels=COLUMN]

The data set's columns are guessed by name, or told by --columns; docs/data.md has the shapes that are understood. What
is read passes through a temporary file beside OUT (cxr_store.py).
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data.cxr_columns import parse_columns
from data.cxr_fill import UNKNOWN, fill, of_rows
from data.cxr_source import open_source
from data.cxr_store import Text, resolve_films, temporary_store, texts_by_study
from data.errors import Problems, UserError, run_cli
from data.files import StrPath, refuse_input
from data.mimic_cxr import MISSING, PROMPT, SHOWN, add_common, check_root, listed, make_record, prompt_for, write_all
from data.mimic_reports import open_reports
from data.mimic_tables import (
    FRONTAL,
    LABEL_TABLES,
    Film,
    Study,
    find_table,
    findings_of,
    read_labels,
    read_metadata,
    read_splits,
)
from data.records import STATUSES


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
        or NUL taken out), "unknown_finish": {finish reason that is not known: texts}, "unknown_labels",
        "no_list" (texts in the place of labels that are no list of them), "no_known_label" (studies), "several_films",
        "labelled", "reports", "set_aside": {reason: n}, "missing": first ten studies without their film, "left_out":
        files without trajectories, "unread": {a teacher's column that holds no text: None}}.

    Raises:
        UserError: unreadable source, columns that cannot be told, missing tables, duplicates, a study told to be in
            several splits, nothing to write, or an `out` that is, or the next time would be, among what is read.
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
    with temporary_store(out) as store:
        usable = None
        if limit is not None:
            # A trial has a part of the films: which studies count is known only with the whole tables.
            usable = _usable(root, paths, partial, film_check)
        counts = fill(store, opened, told, limit, usable, with_labels=labels == "source")
        resolve_films(store, paths["metadata"], counts)
        wanted = {number for (number,) in store.execute("SELECT DISTINCT study FROM texts WHERE study IS NOT NULL")}
        # The source may name a lateral film.
        studies = read_metadata(paths["metadata"], views="all", wanted=wanted, partial=partial)
        splits = read_splits(paths["split"], wanted=wanted, partial=partial)
        codes = read_labels(paths["labels"], labels, wanted=wanted, partial=partial) if "labels" in paths else {}
        tally: dict[str, Counter] = {key: Counter() for key in TALLIED}
        sides: dict[str, set[str]] = {}  # splits of each patient
        missing: list[str] = []
        problems = Problems(source)

        def records() -> Iterator[dict]:
            for number, rows in texts_by_study(store):
                if limit is not None and tally["splits"].total() >= limit:
                    break
                study = studies.get(number)
                split = study and (_split(number, rows, problems) or splits.get(number))
                reason, record = _record(root, number, study, split, rows, film_check, prompt, counts)
                if record is None:
                    tally["set_aside"][reason] += 1
                    if reason == MISSING and len(missing) < SHOWN:
                        missing.append(f"s{number}")
                    continue
                record["trajectories"] = _trajectories(number, rows, on_duplicate, counts, problems)
                if number in codes:
                    record["findings"] = findings_of(codes[number])
                elif stated := of_rows(row.labels for row in rows):
                    if stated == UNKNOWN:
                        counts["no_known_label"] += 1
                    else:
                        record["findings"] = json.loads(stated)
                if read_report and (report := read_report(study.subject, number)):
                    record["report"] = report
                _count(record, counts, tally)
                sides.setdefault(record["patient"], set()).add(record["split"])
                yield record
            problems.refuse()

        write_all(out, records(), tally["set_aside"], missing, root)
    return counts | {
        **{key: dict(one) for key, one in tally.items()},
        "studies": tally["splits"].total(),
        "per_study": dict(sorted(tally["per_study"].items())),
        "split_patients": sum(len(one) > 1 for one in sides.values()),
        "missing": missing,
    }


TALLIED = ("splits", "trajectories", "teachers", "per_study", "set_aside")


def _count(record: dict, counts: dict[str, Any], tally: dict[str, Counter]) -> None:
    statuses = [one["status"] for one in record["trajectories"]]
    counts["labelled"] += "findings" in record
    counts["reports"] += "report" in record
    tally["splits"][record["split"]] += 1
    tally["trajectories"].update(statuses)
    tally["teachers"].update(one["teacher"] for one in record["trajectories"] if one["status"] == "ok")
    tally["per_study"][statuses.count("ok")] += 1


def _record(
    root: StrPath,
    number: int,
    study: Study | None,
    split: str | None,
    rows: list[Text],
    film_check: bool,
    prompt: str,
    counts: dict[str, Any],
) -> tuple[str | None, dict | None]:
    """(why the study is set aside, its record without trajectories): one of the two."""
    if study is None:
        return "not in the metadata table", None
    named = list(dict.fromkeys(row.dicom for row in rows if row.dicom))
    counts["several_films"] += len(named) > 1
    films = _films(study.films, named)
    if not films:
        return "named film not in the study" if named else "no frontal film", None
    if split is None:
        return "not in the split table", None
    told = next((row.prompt for row in rows if row.prompt), None)
    return make_record(root, number, study, split, films, film_check, told or prompt)


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


def _films(films: tuple[Film, ...], named: list[str]) -> tuple[Film, ...]:
    """The first film that the rows name, or where they name none the study's first frontal one; () without either."""
    return tuple(film for film in films if (film.dicom == named[0] if named else film.view in FRONTAL))[:1]


def _split(number: int, rows: list[Text], problems: Problems) -> str | None:
    """The split that the rows of a study name; a problem where they name several."""
    told: dict[str, str] = {}  # split -> place of the first row that names it
    for row in rows:
        if row.split:
            told.setdefault(row.split, row.place)
    first, *others = told or [None]
    for split in others:
        problems.add(
            f"{told[split]}: study s{number} is in {first} ({told[first]}) and in {split}; name one split for it"
        )
    return first


def _trajectories(
    number: int, rows: list[Text], on_duplicate: str, counts: dict[str, Any], problems: Problems
) -> list[dict[str, str]]:
    found: dict[str, Text] = {}
    for row in rows:
        first = found.setdefault(row.teacher, row)
        if first is row:
            continue
        if first.text == row.text:
            counts["repeated"] += 1
        elif on_duplicate == "first":
            counts["duplicates"] += 1
        else:
            problems.add(
                f"{row.place}: study s{number}: another text of teacher {row.teacher!r} stands in {first.place}; "
                "keep one, or --on-duplicate first"
            )
    return [{"teacher": row.teacher, "text": row.text, "status": row.status} for row in found.values()]


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
        ("no_list", "diagnoses that are a text and no list of the 14 labels, left out (a JSON list may hold others)"),
        ("no_known_label", "studies whose diagnoses name none of the 14 labels or are no list, written without labels"),
        ("several_films", "studies whose rows name several films (the first is shown)"),
        ("split_patients", "patients in several splits (python -m data.splits --check lists them)"),
    ):
        if counts.get(key):
            lines.append(f"  {what}: {counts[key]}")
    if unknown := counts["unknown_finish"]:
        most = listed(dict(unknown.most_common(SHOWN)))
        lines.append(f"  texts whose finish reason is not known, written as truncated: {unknown.total()} ({most})")
    if counts["left_out"]:
        lines.append(f"  files without trajectories, left out: {', '.join(counts['left_out'][:SHOWN])}")
    if counts["unread"]:
        lines.append(f"  columns of a teacher that hold no text, not read: {', '.join(list(counts['unread'])[:SHOWN])}")
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
