"""Report generation: MIMIC-CXR by two protocols, and the phantom cohort by either.

- `mimic-report-r2gen`: R2Gen's annotation.json, one item an **image**, frontal and lateral, its texts (n = 3,858 in the
  test part; papers print 5,159). The test references are cleaned, cut and given <unk> as R2Gen does.
- `mimic-report-findings`: one item a **frontal** film of the official test split whose report has a findings section,
  the section as it was written. LLaVA-Rad evaluates 2,461 such pairs, with sections that GPT-4 helped to extract;
  here they are those of MIMIC-CXR's own rules, so n differs and numbers come close to theirs and no more.
- `phantom-reports`: films and reports of a phantom cohort, `--set cleaning=findings|r2gen`.

The two protocols' numbers never compare: the same pairs of texts differ by .06 in BLEU-1 from their cleaning alone.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.errors import UserError
from data.files import sha256_file
from data.mimic_cxr import check_root, image_path
from data.mimic_reports import ARCHIVE, find_reports, open_reports
from data.mimic_sections import split_report
from data.mimic_tables import find_table, read_metadata, read_splits
from data.records import image_paths, read_studies
from eval import clinical, phantom_items, text_cleaning, text_metrics
from eval.benchmarks import choose, measure
from eval.items import Benchmark, Item
from eval.sets import PARTIAL, TABLES

NAMES = ("mimic-report-r2gen", "mimic-report-findings", "phantom-reports")
PROMPT = "Write the findings section of the radiology report of this chest X-ray."
CONSTANT_ROW = "constant normal report"
# The baseline that looks at no film; the same words everywhere, so that tables can be compared.
CONSTANT = (
    "The heart is normal in size. The mediastinal contours are normal. The lungs are clear. There is no pleural "
    "effusion or pneumothorax."
)
CLEANINGS = {
    "findings": "findings section as written; white space alone is normalised",
    "r2gen": "R2Gen's: lower case, punctuation out, ' . ' between sentences; references with <unk> for rare words and "
    "at most 99 tokens, answers neither",
}
SPLITS = ("test", "val", "train")  # of annotation.json
R2GEN_TEST, FINDINGS_TEST = 3_858, 2_461
PHANTOM_THRESHOLD = 3  # what R2Gen uses for its smaller set; a phantom cohort has few reports
COMMON = {"answer": ("findings", "whole"), "meteor": ("auto", "yes", "no"), "clinical": None}
R2GEN_OPTIONS = {"annotation": None, "images": None, "prompt": PROMPT, **COMMON}
FINDINGS_OPTIONS = {
    "tables": None,
    "reports": None,
    "images": None,
    "film": ("every", "first"),
    "prompt": PROMPT,
    "partial": ("no", "yes"),
    **COMMON,
}
PHANTOM_OPTIONS = {"cleaning": ("findings", "r2gen"), **phantom_items.OPTIONS, **COMMON}
SUBJECT = re.compile(r"(?:^|/)p(\d{8})(?=/)")


class Film(NamedTuple):
    """One image or study with the report text to be written for it, uncleaned."""

    id: str
    patient: str
    study: str
    images: tuple[str, ...]
    prompt: str
    report: str


def load(name: str, root: Path, *, seed: int = 0, limit: int | None = None, options: dict) -> Benchmark:
    """One item a film (R2Gen: an image of annotation.json). Nothing is drawn, so `seed` changes nothing here.

    Options of all: `answer` (findings: what stands under FINDINGS: in an answer, where it says so; whole), `meteor`
    (auto: where there is Java), `clinical` (chexbert,radgraph,radcliq,green or all). Of mimic-report-r2gen:
    `annotation` (its file), `images`, `prompt`. Of mimic-report-findings: `tables`, `reports`, `images`, `prompt`,
    `film` (every frontal film of a study, or the first), `partial`. Of phantom-reports: `cleaning`, `split`, `studies`.

    Raises UserError for missing or damaged tables, for training reports that give no vocabulary, and for packages, Java
    or RadEval that are asked for and not there.
    """
    known, read = {
        "mimic-report-r2gen": (R2GEN_OPTIONS, _r2gen_films),
        "mimic-report-findings": (FINDINGS_OPTIONS, _findings_films),
        "phantom-reports": (PHANTOM_OPTIONS, _phantom_films),
    }[name]
    chosen = choose(name, options, known)
    asked = clinical.parse(chosen["clinical"])
    text_metrics.check_packages()
    if asked:
        clinical.environment_python()
    if chosen["meteor"] == "yes" and not text_metrics.have_java():
        with text_metrics.meteor_program():
            pass
    films, fingerprint, notes, vocabulary = read(root, chosen)
    films = films[:limit]
    cleaning = "findings" if vocabulary is None else "r2gen"
    items = []
    for film in films:
        if vocabulary is None:
            reference = text_cleaning.findings_text(film.report)
        else:
            reference = text_cleaning.r2gen_reference(film.report, vocabulary)
        truth = {"reference": reference, "report": film.report}
        items.append(Item(film.id, film.patient, film.study, film.images, film.prompt, truth))
    if vocabulary is not None:
        words = [len(text_cleaning.r2gen_clean(film.report).split()) for film in films]
        cut = sum(n > text_cleaning.R2GEN_TOKENS for n in words)
        unknown = sum(item.truth["reference"].split().count(text_cleaning.UNKNOWN) for item in items)
        fingerprint |= {"vocabulary": len(vocabulary), "references_cut": cut, "unknown_tokens": unknown}
    protocol = {
        "task": "report generation, findings",
        "cleaning": cleaning,
        "text": CLEANINGS[cleaning],
        "answer": chosen["answer"],
        "prompt": chosen.get("prompt", "that of each study"),
        "metrics": dict(text_metrics.describe()),
        "meteor": chosen["meteor"],
        "clinical": list(asked),
        "constant_report": CONSTANT,
    }
    return Benchmark(name, "generate", tuple(items), fingerprint, protocol, tuple(notes), (CONSTANT_ROW,))


def _r2gen_films(root: Path, chosen: dict) -> tuple[list[Film], dict, list[str], frozenset]:
    path = _annotation_file(root, chosen["annotation"])
    parts = _read_annotation(path)
    folder = Path(chosen["images"] or root / ("files" if (root / "files").is_dir() else "images")).resolve()
    films, no_report, no_patient = [], 0, 0
    for row in parts["test"]:
        if not row["report"].strip():
            no_report += 1
            continue
        found = SUBJECT.search(row["image_path"][0])
        subject = row.get("subject_id", found[1] if found else None)
        no_patient += subject is None
        study = row.get("study_id")
        films.append(
            Film(
                row["id"],
                row["id"] if subject is None else f"p{subject}",
                "" if study is None else f"s{study}",
                tuple(str(folder / image) for image in row["image_path"]),
                chosen["prompt"],
                row["report"],
            )
        )
    counts = {split: len(rows) for split, rows in parts.items()}
    fingerprint = {"table": path.name, "sha256": sha256_file(path), "rows": counts, "without_report": no_report}
    notes = ["an item is an image: two films of a study have the same reference, frontal and lateral are mixed"]
    if no_report:
        notes.append(f"{no_report} images without report text were left out")
    if no_patient:
        notes.append(f"{no_patient} images name no patient: each counts as its own, so intervals are too narrow")
    if len(films) != R2GEN_TEST:
        notes.append(f"{len(films)} images with a report, where R2Gen's file has {R2GEN_TEST:,}: not the published set")
    train = (row["report"] for row in parts["train"])
    remedy = "download it again, with its whole part train"
    return films, fingerprint, notes, _vocabulary(path, train, text_cleaning.R2GEN_THRESHOLD, remedy)


def _vocabulary(path: Path, train: Iterable[str], threshold: int, remedy: str) -> frozenset[str]:
    """R2Gen's vocabulary. UserError where no word is left: every reference would be <unk>, which no answer matches."""
    vocabulary = text_cleaning.r2gen_vocabulary(train, threshold)
    if vocabulary <= {"."}:  # what cleaning makes of an empty report
        raise UserError(
            f"{path}: no word stands {threshold} times in the reports of split train, so that every word of a "
            f"reference would be {text_cleaning.UNKNOWN}; {remedy}"
        )
    return vocabulary


def _annotation_file(root: Path, told: str | None) -> Path:
    if told:
        return Path(told)
    found = sorted({*root.glob("annotation.json"), *root.glob("*/annotation.json")})
    if len(found) == 1:
        return found[0]
    what = f"several ({', '.join(map(str, found))})" if found else "no annotation.json"
    raise UserError(
        f"{root}: {what}; get R2Gen's annotation.json of MIMIC-CXR (its authors give it to holders of a PhysioNet "
        "licence) and name it with --set annotation=FILE"
    )


def _read_annotation(path: Path) -> dict[str, list[dict]]:
    """{"train", "val", "test": [row]}, every row checked."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last: nested too deep
        raise UserError(
            f"{path}: cannot be read as JSON ({getattr(error, 'strerror', None) or type(error).__name__}); download it "
            "again"
        ) from None
    if not isinstance(table, dict) or not all(isinstance(table.get(split), list) for split in SPLITS):
        raise UserError(f"{path}: is no object of the lists train, val and test; name R2Gen's annotation.json")
    for split in SPLITS:
        for at, row in enumerate(table[split]):
            good = isinstance(row, dict) and isinstance(row.get("id"), str) and isinstance(row.get("report"), str)
            images = row.get("image_path") if good else None
            if not images or not isinstance(images, list) or not all(isinstance(one, str) for one in images):
                raise UserError(
                    f"{path}: {split}[{at}]: needs the strings id and report and a list image_path; download it again"
                )
    return {split: table[split] for split in SPLITS}


def _findings_films(root: Path, chosen: dict) -> tuple[list[Film], dict, list[str], None]:
    check_root(root, film_check=False)
    partial = chosen["partial"] == "yes"
    tables = Path(chosen["tables"] or root)
    paths = {kind: find_table(tables, kind, told=TABLES) for kind in ("split", "metadata")}
    splits = read_splits(paths["split"], partial=partial, told=PARTIAL)
    wanted = {number for number, split in splits.items() if split == "test"}
    studies = read_metadata(paths["metadata"], wanted=wanted, partial=partial, told=PARTIAL)
    reports = chosen["reports"] or find_reports(root)
    if reports is None:
        raise UserError(f"{root}: holds no {ARCHIVE}; download it from MIMIC-CXR or name it with --set reports=FILE")
    read_report = open_reports(reports)
    folder = Path(chosen["images"] or root).resolve()
    films, no_film, no_report, no_findings = [], 0, 0, 0
    for number, study in studies.items():
        report = read_report(study.subject, number)
        findings = split_report(report or "").get("findings")
        no_report += report is None
        no_findings += report is not None and not findings
        no_film += bool(findings) and not study.films
        for film in (study.films if chosen["film"] == "every" else study.films[:1]) if findings else ():
            image = str(folder / image_path(study.subject, number, film.dicom))
            patient = f"p{study.subject}"
            films.append(Film(film.dicom, patient, f"s{number}", (image,), chosen["prompt"], findings))
    counts = {"studies": len(studies), "without_report": no_report, "without_findings": no_findings}
    fingerprint = {
        **{kind: {"table": path.name, "sha256": sha256_file(path)} for kind, path in paths.items()},
        "reports": Path(reports).name,
        **counts,
        "without_frontal_film": no_film,
        "films": len(films),
        "film": chosen["film"],
    }
    notes = [
        f"of {len(studies)} test studies {no_findings} have no findings section, {no_report} no report, and {no_film} "
        "no frontal film; they are left out",
        f"{len(films)} films with a findings section by MIMIC-CXR's own section rules; LLaVA-Rad, with sections "
        f"extracted otherwise, evaluates {FINDINGS_TEST:,}",
    ]
    return films, fingerprint, notes, None


def _phantom_films(root: Path, chosen: dict) -> tuple[list[Film], dict, list[str], frozenset | None]:
    studies, folder, fingerprint = phantom_items.read(root, chosen)
    films = []
    for study in studies:
        if study.get("report"):
            section = text_cleaning.findings_section(study["report"])
            images = tuple(image_paths(study, folder))
            films.append(Film(study["id"], study["patient"], study["id"], images, study["prompt"], section))
    notes = ["simulated films and reports; numbers say nothing about real reports"]
    if len(films) < len(studies):
        notes.append(f"{len(studies) - len(films)} studies without a report were left out")
    if chosen["cleaning"] == "findings":
        return films, fingerprint, notes, None
    path = root / chosen["studies"]
    everything = read_studies(path)
    train = [study["report"] for study in everything if study["split"] == "train" and study.get("report")]
    sections = (text_cleaning.findings_section(report) for report in train)
    remedy = "name a cohort with training reports, or score with --set cleaning=findings"
    vocabulary = _vocabulary(path, sections, PHANTOM_THRESHOLD, remedy)
    return films, fingerprint | {"training_reports": len(train)}, notes, vocabulary


def score(benchmark: Benchmark, answers: Sequence[dict], *, seed: int, resamples: int) -> dict:
    """Rows of the answers and of the constant report; answers are aligned with the items."""
    protocol, items = benchmark.protocol, benchmark.items
    patients = [item.patient for item in items]
    draw = {"seed": seed, "resamples": resamples}
    raw = [answer["text"] for answer in answers]
    notes = []
    if protocol["answer"] == "findings":
        sections = [text_cleaning.findings_section(text) for text in raw]
        taken = sum(section != text.strip() for section, text in zip(sections, raw, strict=True))
        if taken:
            notes.append(f"{taken} of {len(raw)} answers name a findings section; only that is scored")
        raw = sections
    clean = text_cleaning.findings_text if protocol["cleaning"] == "findings" else text_cleaning.r2gen_answer
    if len(items) == 1:
        notes.append("CIDEr of a single text is 0 by its definition")
    with_meteor = protocol["meteor"] == "yes" or (protocol["meteor"] == "auto" and text_metrics.have_java())
    if not with_meteor:
        why = "left out (meteor=no)" if protocol["meteor"] == "no" else "not computed: it needs Java, none is on PATH"
        notes.append(f"METEOR {why}")
    references = [item.truth["reference"] for item in items]
    rows, per_item = [], []
    with text_metrics.meteor_program() if with_meteor else nullcontext() as meteor:
        for name, texts in (("student", raw), (CONSTANT_ROW, [CONSTANT] * len(items))):
            counts = text_metrics.count(references, [clean(text) for text in texts], meteor)
            lengths = _lengths(items, texts)
            metrics = measure(
                lambda w, c=counts, more=lengths: text_metrics.metrics(c, w, meteor) | _means(more, w), patients, **draw
            )
            if name == "student":
                pairs = zip(items, text_metrics.per_text(counts), strict=True)
                per_item = [{"id": item.id, "truth": _digest(item), "text_metric": one} for item, one in pairs]
                rows.append({"name": name, "metrics": metrics})
            else:
                rows.append({"name": name, "baseline": True, "metrics": metrics})
    if protocol["clinical"]:
        given = [text_cleaning.findings_text(text) for text in raw]
        truth = [text_cleaning.findings_text(item.truth["report"]) for item in items]
        found, said = clinical.score(protocol["clinical"], truth, given, patients, **draw)
        rows[0]["metrics"] |= found
        notes += [*said, "clinical metrics read the texts as written, not as cleaned for BLEU"]
    return {"rows": rows, "per_item": per_item, "notes": notes}


def _digest(item: Item) -> str:
    """What tells one reference from another, without its words."""
    return hashlib.sha256(item.truth["reference"].encode()).hexdigest()[:16]


def _lengths(items: Sequence[Item], texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Words of the uncleaned answers beside those of the references, and which answers say nothing: [n] each."""
    return {
        "length/words of the answer": np.array([len(text.split()) for text in texts], float),
        "length/words of the reference": np.array([len(item.truth["report"].split()) for item in items], float),
        "length/share of empty answers": np.array([not text.strip() for text in texts], float),
    }


def _means(numbers: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, float]:
    return {name: float(weights @ values / weights.sum()) for name, values in numbers.items()}
