"""Open-I (Indiana University): 18 labels by substring of the reports' automatic MeSH tags, all films of a report.

ROOT/ecgen-radiology/*.xml (or ROOT/NLMCXR_reports.tgz), films as ROOT/NLMCXR_png/CXR1_1_IM-0001-3001.png or in ROOT.
The rule is that of torchxrayvision, which CARZero's protocol uses: "granuloma" therefore also counts the calcified
ones, and a finding without a tag counts as absent.
"""

import tarfile
import xml.etree.ElementTree as ElementTree
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.errors import Problems, UserError
from eval.sets import PARTIAL, Film, FilmSet, check_table, film_index, find_file

LABELS = {
    "Atelectasis": "atelectasis",
    "Calcified Granuloma": "a calcified granuloma",
    "Cardiomegaly": "cardiomegaly",
    "Edema": "pulmonary edema",
    "Effusion": "pleural effusion",
    "Emphysema": "emphysema",
    "Fibrosis": "pulmonary fibrosis",
    "Fracture": "a fracture",
    "Granuloma": "a granuloma",
    "Hernia": "a hiatal hernia",
    "Infiltration": "an infiltration of the lung",
    "Lesion": "a lung lesion",
    "Mass": "a lung mass",
    "Nodule": "a lung nodule",
    "Opacity": "a lung opacity",
    "Pleural_Thickening": "pleural thickening",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
}
# Substrings that also stand for a label, as in torchxrayvision.
ALSO = {"Atelectasis": "atelectases", "Infiltration": "infiltrate", "Pleural_Thickening": "pleural thickening"}
REPORTS, IMAGES = 3_955, 7_470
OPTIONS = {"reports": None, "images": None, "partial": ("no", "yes")}
REMEDY = "download the reports (NLMCXR_reports.tgz) from Open-I, or name folder or archive with --set reports=PATH"


class Report(NamedTuple):
    """One XML file: `sections` COMPARISON, INDICATION, FINDINGS, IMPRESSION -> text ("" where empty)."""

    uid: str
    sections: dict[str, str]
    automatic: tuple[str, ...]
    major: tuple[str, ...]
    images: tuple[str, ...]


def read_reports(path: Path, *, partial: bool = False) -> list[Report]:
    """The reports of a folder of XML files or of the published archive, by number.

    Raises UserError for an XML file that cannot be read, an id or an image that comes twice, or a whole set whose
    counts are not the published ones.
    """
    problems = Problems(path)
    reports: list[Report] = []
    seen: dict[str, str] = {}
    for name, source in _sources(path):
        try:
            report = _report(source)
        # LookupError and ValueError: also of an encoding that is not known, or of several bytes.
        except (ElementTree.ParseError, AttributeError, LookupError, ValueError) as error:
            problems.add(f"{path}: {name}: not a report of Open-I ({type(error).__name__}); download it again")
            continue
        for what in (report.uid, *report.images):
            if seen.setdefault(what, name) != name or report.images.count(what) > 1:
                problems.add(f"{path}: {name}: id {what} stands in {seen[what]} already; keep one")
        reports.append(report)
    whole = check_table(problems, "reports", len(reports), REPORTS, partial, empty=f"holds no XML report; {REMEDY}")
    images = sum(len(report.images) for report in reports)
    if whole and images != IMAGES and not partial:
        raise UserError(
            f"{path}: {images} images in {REPORTS} reports, where the published ones have {IMAGES}; download them "
            f"again, or say {PARTIAL} if they were cut on purpose"
        )
    return sorted(reports, key=lambda report: (len(report.uid), report.uid))


def labels_of(report: Report) -> frozenset[str]:
    """The labels whose name, or its other spelling, is a substring of the automatic tags."""
    tags = "|".join(sorted({tag.lower() for tag in report.automatic}))
    return frozenset(
        label for label in LABELS if label.lower() in tags or (label in ALSO and ALSO[label].lower() in tags)
    )


def read(root: Path, chosen: dict) -> FilmSet:
    partial = chosen["partial"] == "yes"
    source = find_file(root, ["ecgen-radiology", "NLMCXR_reports.tgz"], chosen["reports"], REMEDY)
    reports = read_reports(source, partial=partial)
    images = Path(chosen["images"] or root)
    index = film_index([images / "NLMCXR_png", images / "images", images])
    films = []
    for report in reports:
        labels = labels_of(report)
        for image in report.images:
            path = index.get(f"{image}.png", str((images / "NLMCXR_png" / f"{image}.png").absolute()))
            films.append(Film(image, report.uid, report.uid, path, labels))
    positives = Counter(label for film in films for label in film.labels)
    sizes = Counter(len(report.images) for report in reports)
    fingerprint = {
        "reports": len(reports),
        "films": len(films),
        "images_per_report": {str(n): sizes[n] for n in sorted(sizes)},
        "positives": {label: positives[label] for label in LABELS},
    }
    notes = [
        "the set has no patient ids: the report is the unit of the bootstrap",
        "labels come from automatic tags of the report: a finding without a tag counts as absent",
        "lateral films are scored too, the set does not say which they are",
    ]
    if sizes[0]:
        notes.append(f"{sizes[0]} reports without a film were left out")
    protocol = {
        "films": "all films of all reports",
        "labels_from": "substring of the automatic MeSH tags, as torchxrayvision and CARZero; granuloma includes the "
        "calcified ones",
    }
    return FilmSet(LABELS, films, fingerprint, protocol, notes)


def _sources(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(path.glob("*.xml")):
            try:
                source = file.read_bytes()
            except OSError as error:
                raise UserError(f"{path}: {file.name}: cannot be read ({error.strerror}); {REMEDY}") from error
            yield file.name, source
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".xml"):
                    yield member.name.rpartition("/")[2], archive.extractfile(member).read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{path}: not a tar archive, or damaged ({type(error).__name__}); {REMEDY}") from error


def _report(source: bytes) -> Report:
    root = ElementTree.fromstring(source)
    sections = {node.attrib["Label"]: (node.text or "").strip() for node in root.iter("AbstractText")}
    tags = {
        kind: tuple((node.text or "") for node in root.findall(f".//MeSH/{kind}")) for kind in ("automatic", "major")
    }
    images = tuple(node.attrib["id"] for node in root.iter("parentImage"))
    return Report(root.find("uId").attrib["id"], sections, tags["automatic"], tags["major"], images)
