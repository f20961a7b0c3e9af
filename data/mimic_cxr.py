"""MIMIC-CXR-JPG to study records: films by view, official splits, labels, reports, prior studies.

python -m data.mimic_cxr --root DIR --out STUDIES.jsonl [--split train] [--labels chexpert|negbio|radiologist] [--prior]

DIR is MIMIC-CXR-JPG as downloaded (docs/data.md): `files/p10/p1xxxxxxx/s5xxxxxxx/<dicom_id>.jpg` and the tables beside
`files`. One record a study, without trajectories; images are relative to DIR, the --image-root of later commands.
"""

import argparse
import os
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from data.errors import UserError, run_cli
from data.files import StrPath, out_file, refuse_input
from data.mimic_reports import find_reports, open_reports
from data.mimic_tables import (
    LABEL_TABLES,
    Study,
    find_table,
    findings_of,
    read_labels,
    read_metadata,
    read_splits,
)
from data.records import IMAGE_TAG, SPLITS, VIEWS, write_studies

SOURCE = "mimic-cxr"
# The wording of the sister work of the method, by the same authors on the same films.
PROMPT = f"This is a patient's chest DR image {IMAGE_TAG}. Please help me determine the patient's disease."
SHOWN = 10


def image_path(subject: int, study: int, dicom: str) -> str:
    """Path of a film, relative to the root of MIMIC-CXR-JPG."""
    return f"files/p{str(subject)[:2]}/p{subject}/s{study}/{dicom}.jpg"


def check_root(root: StrPath, film_check: bool = True) -> None:
    """Refuse a folder that cannot be MIMIC-CXR-JPG's root; without `film_check` its films may still be to come."""
    if not os.path.isdir(root):
        raise UserError(f"{root}: is not a folder; name the root of MIMIC-CXR-JPG, which holds files/")
    if film_check and not os.path.isdir(os.path.join(root, "files")):
        inside = any(name.startswith("p1") for name in os.listdir(root))
        hint = (
            "name the folder above it" if inside else "name the root of MIMIC-CXR-JPG (docs/data.md shows the layout)"
        )
        raise UserError(f"{root}: holds no folder files/; {hint}")


def prompt_for(prompt: str, images: int, told: str = "--prompt") -> str:
    """The prompt with one <image> tag for each image: the one tag that `prompt` has is repeated.

    `told` is the option that gave it, for messages.

    Raises:
        UserError: `prompt` has no tag, or several.
    """
    if prompt.count(IMAGE_TAG) != 1:
        raise UserError(f"{told}: write {IMAGE_TAG} exactly once; it is repeated for studies of several films")
    return prompt.replace(IMAGE_TAG, IMAGE_TAG * images)


def build(
    root: StrPath,
    out: StrPath,
    *,
    tables: StrPath | None = None,
    split: str | None = None,
    labels: str = "chexpert",
    views: str = "frontal",
    reports: StrPath | None = None,
    prior: bool = False,
    prompt: str = PROMPT,
    limit: int | None = None,
    film_check: bool = True,
    partial: bool = False,
) -> dict[str, Any]:
    """Write the study records of MIMIC-CXR-JPG; `out` is replaced at once, or left alone when anything is wrong.

    Args:
        tables: folder of the tables, where that is not `root`.
        split: only this split.
        labels: "chexpert", "negbio", "radiologist" (687 test studies) or "none".
        views: "frontal": one film a study, PA before AP, then the earliest. "all": every film, frontal ones first.
        reports: mimic-cxr-reports.zip or its folder; by default the one in `root`, if there is one.
        prior: fill `prior` with the patient's latest strictly earlier study that has such a film, by StudyDate and
            StudyTime.
        limit: stop after so many records.
        film_check: look whether each film is there; a study whose film is not is set aside and counted.
        partial: accept tables that were cut on purpose.

    Returns:
        Counts: {"studies", "splits": {split: n}, "images", "labelled", "reports", "reports_read" (whether there were
        reports to read), "priors", "priors_outside" (named, but not among the written), "set_aside": {reason: n},
        "missing": the first ten studies whose film is missing}.

    Raises:
        UserError: missing or damaged tables, counts that are not the published ones, no record to write, or an `out`
            that is one of the files that are read.
    """
    check_root(root, film_check)
    prompt_for(prompt, 1)
    folder = root if tables is None else tables
    paths = {kind: find_table(folder, kind) for kind in ("metadata", "split")}
    if labels != "none":
        paths["labels"] = find_table(folder, LABEL_TABLES[labels])
    reports = find_reports(root) if reports is None else reports
    refuse_input(out, *paths.values(), *filter(None, [reports]))
    read_report = open_reports(reports) if reports else None
    splits = read_splits(paths["split"], partial=partial)
    codes = read_labels(paths["labels"], labels, partial=partial) if "labels" in paths else {}
    studies = read_metadata(paths["metadata"], views=views, partial=partial)
    if views == "frontal":
        studies = one_film(studies)
    priors = find_priors(studies) if prior else {}
    counts: dict[str, Any] = {"labelled": 0, "reports": 0, "reports_read": read_report is not None, "images": 0}
    set_aside, by_split = Counter(), Counter()
    missing: list[str] = []
    written: dict[int, int | None] = {}

    def records() -> Iterator[dict]:
        for number, study in studies.items():
            if limit is not None and len(written) >= limit:
                return
            reason, record = _record(root, number, study, splits.get(number), split, film_check, prompt)
            if reason:
                set_aside[reason] += 1
                if reason == MISSING and len(missing) < SHOWN:
                    missing.append(f"s{number}")
            if record is None:
                continue
            if number in codes:
                record["findings"] = findings_of(codes[number])
                counts["labelled"] += 1
            report = read_report(study.subject, number) if read_report else None
            if report:
                record["report"] = report
                counts["reports"] += 1
            if prior:
                earlier = priors.get(number)
                record["prior"] = None if earlier is None else f"s{earlier}"
            written[number] = priors.get(number)
            by_split[record["split"]] += 1
            counts["images"] += len(record["images"])
            yield record

    write_all(out, records(), set_aside, missing, root)
    named = [earlier for earlier in written.values() if earlier is not None]
    return counts | {
        "studies": len(written),
        "splits": dict(by_split),
        "priors": len(named),
        "priors_outside": sum(earlier not in written for earlier in named),
        "set_aside": dict(set_aside),
        "missing": missing,
    }


MISSING = "film missing"


def _record(
    root: StrPath, number: int, study: Study, split: str | None, only: str | None, film_check: bool, prompt: str
) -> tuple[str | None, dict | None]:
    """(why the study is set aside, its record): one of the two, or neither for another split than the one asked for."""
    if split is None:
        return "not in the split table", None
    if only is not None and split != only:
        return None, None
    films = study.films
    if not films:
        return "no frontal film", None
    return make_record(root, number, study, split, films, film_check, prompt)


def make_record(
    root: StrPath, number: int, study: Study, split: str, films: tuple, film_check: bool, prompt: str
) -> tuple[str | None, dict | None]:
    """(None, the record of a study with these films), or (MISSING, None)."""
    images = [image_path(study.subject, number, film.dicom) for film in films]
    if film_check and not all(os.path.isfile(os.path.join(root, image)) for image in images):
        return MISSING, None
    return None, {
        "id": f"s{number}",
        "patient": f"p{study.subject}",
        "source": SOURCE,
        "split": split,
        "images": images,
        "prompt": prompt_for(prompt, len(images)),
        "trajectories": [],
        "view": films[0].view if films[0].view in VIEWS else None,
    }


def one_film(studies: dict[int, Study]) -> dict[int, Study]:
    """Each study with its first film alone: the frontal one to show, see `read_metadata`."""
    return {number: study._replace(films=study.films[:1]) for number, study in studies.items()}


def find_priors(studies: dict[int, Study]) -> dict[int, int]:
    """study_id -> study_id of the same patient's latest strictly earlier study; only studies with a film and a date."""
    by_subject: dict[int, list[tuple[tuple[int, float], int]]] = defaultdict(list)
    for number, study in studies.items():
        if study.films and study.when:
            by_subject[study.subject].append((study.when, number))
    found: dict[int, int] = {}
    for dated in by_subject.values():
        dated.sort()
        for when, number in dated:
            earlier = bisect_left(dated, (when, 0))  # the first study of that very moment
            if earlier:
                found[number] = dated[earlier - 1][1]
    return found


def write_all(out: StrPath, records: Iterable[dict], set_aside: Counter, missing: list[str], root: StrPath) -> None:
    """`write_studies`, but refuses to write an empty file: says where all the studies went."""

    def at_least_one() -> Iterator[dict]:
        none = True
        for record in records:
            none = False
            yield record
        if none:
            raise UserError(
                f"{root}: no study to write (set aside: {listed(set_aside)})"
                + (f"; the first without their film: {', '.join(missing)}; copy the films" if missing else "")
                + "; check --root, --split and the tables"
            )

    write_studies(out, at_least_one())


def listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{key} {n}" for key, n in sorted(counts.items())) or "none"


def describe(counts: dict[str, Any], out: StrPath) -> str:
    """The counts of `build` in a few lines for people."""
    lines = [
        f"{out}: {counts['studies']} studies ({listed(counts['splits'])}), {counts['images']} images",
        f"  with labels {counts['labelled']}, with a report "
        + (
            str(counts["reports"])
            if counts["reports_read"]
            else "0 (no mimic-cxr-reports.zip found; --reports names it)"
        ),
    ]
    if counts["priors"]:
        lines.append(f"  with a prior study {counts['priors']}, of which not in this file: {counts['priors_outside']}")
    lines.append(f"  set aside: {listed(counts['set_aside'])}")
    if counts["missing"]:
        lines.append(f"  film missing, first {len(counts['missing'])}: {', '.join(counts['missing'])}")
    return "\n".join(lines)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options that both MIMIC-CXR commands have."""
    parser.add_argument("--out", type=out_file, required=True, help="study records to write")
    parser.add_argument(
        "--tables", help="folder of the mimic-cxr-2.x.x-*.csv.gz tables (default: the root of the films)"
    )
    parser.add_argument("--prompt", default=PROMPT, help="the user's turn, with <image> once (default: %(default)s)")
    parser.add_argument("--limit", type=positive, help="stop after N studies, for a trial")
    parser.add_argument(
        "--no-film-check", action="store_false", dest="film_check", help="do not look whether each film is there"
    )
    parser.add_argument("--partial", action="store_true", help="the tables were cut on purpose: do not compare counts")


def positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError("write a whole number from 1")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data.mimic_cxr", description="MIMIC-CXR-JPG to study records (docs/data.md)."
    )
    parser.add_argument("--root", required=True, help="root of MIMIC-CXR-JPG: holds files/ and the tables")
    parser.add_argument("--split", choices=SPLITS, help="only this split (default: all)")
    parser.add_argument("--labels", choices=(*LABEL_TABLES, "none"), default="chexpert")
    parser.add_argument("--views", choices=("frontal", "all"), default="frontal")
    parser.add_argument("--reports", help="mimic-cxr-reports.zip or its folder (default: the one in ROOT, if any)")
    parser.add_argument("--prior", action="store_true", help="name each study's prior study")
    add_common(parser)
    options = vars(parser.parse_args())
    root, out = options.pop("root"), options.pop("out")
    print(describe(build(root, out, **options), out))
    print(f"  give later commands --image-root {os.path.abspath(root)}")


if __name__ == "__main__":
    run_cli(main)
