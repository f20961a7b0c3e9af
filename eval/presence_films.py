"""Presence of five findings on single films: what a published "top-1 accuracy" on MS-CXR-T looks like.

No definition of that number was published, so what is true must be chosen (`--set truth=...`) and is stated with the
result. One question a film, answered freely; the answer is read by `eval.presence`, whose rules hold here: a finding
that is not mentioned is absent, a malformed answer is wrong for every finding. Plain accuracy is dominated by
prevalence: read it beside balanced accuracy, F1, the positive rate and the majority class.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.files import sha256_file
from data.findings_lexicon import FIVE
from data.mimic_cxr import PROMPT as MIMIC_PROMPT
from data.mimic_cxr import prompt_for
from data.mimic_reports import find_reports, open_reports
from data.mimic_tables import LABEL_TABLES, find_table, findings_of, read_labels
from data.records import image_paths
from eval import ms_cxr_t, phantom_items, presence
from eval.benchmarks import choose, measure
from eval.items import MAJORITY, Benchmark, Item
from eval.sets import PARTIAL, TABLES

NAMES = ("ms-cxr-t-presence", "phantom-presence")
TRUTHS = {
    "chexpert": "CheXpert's labels of the study (mimic-cxr-2.0.0-chexpert.csv.gz)",
    "negbio": "NegBio's labels of the study (mimic-cxr-2.0.0-negbio.csv.gz)",
    "report": "what data.findings reads in the study's report",
    "progression": "present where MS-CXR-T has a progression label for the finding, absent where that is blank",
}
# What the truth does with a hedged finding, and with one that labels or report do not mention.
POLICIES = {"uncertain": ("present", "absent", "exclude"), "blank": ("absent", "exclude")}
MS_CXR_T_OPTIONS = {
    "truth": tuple(TRUTHS),
    **POLICIES,
    "table": None,
    "images": None,
    "tables": None,
    "reports": None,
    "prompt": MIMIC_PROMPT,
    "partial": ("no", "yes"),
}
STATES = {"present": 1, "absent": 0}


def load(name: str, root: Path, *, seed: int = 0, limit: int | None = None, options: dict) -> Benchmark:
    """One item a current film of `ms-cxr-t-presence` (root: MIMIC-CXR-JPG) or film of `phantom-presence`.

    Options of the former: `truth` (chexpert, negbio, report, progression), `uncertain`, `blank`, `table` (MS-CXR-T's
    csv), `tables` (folder of MIMIC-CXR-JPG's), `reports`, `images`, `prompt`, `partial`. Of the latter: `uncertain`,
    `split`, `studies`. Nothing is drawn, so that `seed` changes nothing here.

    Raises UserError for `blank=exclude` with `truth=progression`, which would leave nothing but positives, and for a
    `prompt` that has not one <image>.
    """
    if name == "phantom-presence":
        films, fingerprint, notes, chosen = _phantom_films(name, root, options)
    else:
        films, fingerprint, notes, chosen = _ms_cxr_t_films(name, root, options)
    items, left_out = [], 0
    for id_, patient, study, images, prompt, states in films:
        truth = {label: judge(states.get(label), chosen) for label in FIVE}
        if all(value is None for value in truth.values()):
            left_out += 1
        elif limit is None or len(items) < limit:
            items.append(Item(id_, patient, study, images, prompt, truth))
    if left_out:
        notes.append(f"{left_out} films were left out: the truth has none of the five findings for them")
    protocol = {
        "task": "presence of five findings on a single film",
        "answer": "free text, read by data.findings; not mentioned is absent; malformed is wrong for every finding",
        "uncertain_answer": "absent" if chosen["uncertain"] == "absent" else "present",
        "majority_class": "more frequent state of each finding among the scored films",
        **chosen,
    }
    return Benchmark(name, "generate", tuple(items), fingerprint, protocol, tuple(notes), (MAJORITY,))


def judge(state: str | None, policy: Mapping[str, str]) -> int | None:
    """1 present, 0 absent, None not scored; `state` is present, absent, uncertain or None (not mentioned)."""
    if state is None:
        state = policy["blank"]
    elif state == "uncertain":
        state = policy["uncertain"]
    return STATES.get(state)


def _ms_cxr_t_films(name: str, root: Path, options: dict) -> tuple[list, dict, list[str], dict]:
    chosen = choose(name, options, MS_CXR_T_OPTIONS)
    if chosen["truth"] == "progression" and chosen["blank"] == "exclude":
        raise UserError(
            "--set blank=exclude: truth=progression has no negatives but the blank ones; leave it out, or choose "
            "another truth"
        )
    prompt_for(chosen["prompt"], 1, told="--set prompt")
    partial = chosen.pop("partial") == "yes"
    table = ms_cxr_t.find_table(root, ms_cxr_t.IMAGE_TABLE, chosen.pop("table"))
    pairs, fingerprint, notes = ms_cxr_t.read_pairs(table, partial=partial)
    base = Path(chosen.pop("images") or root).resolve()
    tables, reports = Path(chosen.pop("tables") or root), chosen.pop("reports")
    films: dict[str, list] = {}  # a film that is current in several pairs is one item
    labelled: dict[str, set] = {}
    for pair in pairs:
        films.setdefault(pair.dicom, [pair.subject, pair.study, str(base / pair.images[1])])
        labelled.setdefault(pair.dicom, set()).update(pair.labels)
    studies = {study for _, study, _ in films.values()}
    if chosen["truth"] in LABEL_TABLES:
        path = find_table(tables, LABEL_TABLES[chosen["truth"]], told=TABLES)
        codes = read_labels(path, chosen["truth"], wanted=studies, partial=partial, told=PARTIAL)
        fingerprint["labels_table"] = {"table": path.name, "sha256": sha256_file(path)}
        found = {
            number: {key: one["state"] for key, one in findings_of(code).items()} for number, code in codes.items()
        }
    elif chosen["truth"] == "report":
        found = _of_reports(root, reports, {study: subject for subject, study, _ in films.values()})
    else:
        notes.append(
            "truth=progression: a label says that the finding was discussed; blank may be unlabelled, not absent"
        )
        found = None
    out, unknown = [], 0
    for dicom, (subject, study, image) in films.items():
        if found is None:
            states = dict.fromkeys(labelled[dicom], "present")
        elif study in found:
            states = found[study]
        else:
            unknown += 1
            continue
        out.append((dicom, f"p{subject}", f"s{study}", (image,), chosen["prompt"], states))
    if unknown:
        notes.append(f"{unknown} films were left out: truth={chosen['truth']} has no entry for their study")
    notes.append("films come from all splits of MIMIC-CXR: check the training set with --train")
    fingerprint["films"] = len(films)
    chosen["truth_rule"] = TRUTHS[chosen["truth"]]
    return out, fingerprint, notes, chosen


def _of_reports(root: Path, told: str | None, subjects: Mapping[int, int]) -> dict[int, dict[str, str]]:
    reports = told or find_reports(root)
    if not reports:
        raise UserError(f"{root}: no mimic-cxr-reports.zip; name it with --set reports=FILE, or choose another truth")
    read_report = open_reports(reports)
    found = {}
    for study, subject in subjects.items():
        reading = presence.read_answer(read_report(subject, study))
        if reading:
            found[study] = {label: state for label, (state, _) in reading.items()}
    return found


def _phantom_films(name: str, root: Path, options: dict) -> tuple[list, dict, list[str], dict]:
    known = {"uncertain": POLICIES["uncertain"], **phantom_items.OPTIONS}
    chosen = choose(name, options, known)
    studies, folder, fingerprint = phantom_items.read(root, chosen)
    del chosen["studies"]
    films = []
    for study in studies:
        states = {label: state for label, (state, _) in presence.read_truth(study).items()}
        images = tuple(image_paths(study, folder))
        films.append((study["id"], study["patient"], study["id"], images, study["prompt"], states))
    chosen |= {"blank": "absent", "prompt": "that of each study", "truth_rule": "findings drawn on the simulated film"}
    return films, fingerprint, ["simulated films"], chosen


def score(benchmark: Benchmark, answers: Sequence[dict], *, seed: int, resamples: int) -> dict:
    """Rows of the answers and of the majority class, see docs/evaluation.md; answers are aligned with the items."""
    items = benchmark.items
    states = [[item.truth[label] for label in FIVE] for item in items]
    scored = np.array([[state is not None for state in row] for row in states])
    truth = np.array([[bool(state) for state in row] for row in states])
    readings = [presence.read_answer(answer["text"]) for answer in answers]
    malformed = np.array([reading is None for reading in readings])
    said = presence.answer_matrix(readings, truth, FIVE, benchmark.protocol["uncertain_answer"])
    positives = (truth & scored).sum(0)
    constant = np.broadcast_to(2 * positives > scored.sum(0), truth.shape)
    draw = {"patients": [item.patient for item in items], "seed": seed, "resamples": resamples}
    rows = [
        {"name": "student", "metrics": metrics(truth, said, scored, malformed, **draw)},
        {
            "name": MAJORITY,
            "baseline": True,
            "metrics": metrics(truth, constant, scored, np.zeros(len(items), bool), **draw),
        },
    ]
    right = truth == said
    per_item = [
        {
            "id": item.id,
            "truth": item.truth,
            "malformed": bool(malformed[i]),
            "correct": {label: bool(right[i, j]) for j, label in enumerate(FIVE) if scored[i, j]},
        }
        for i, item in enumerate(items)
    ]
    notes = []
    if malformed.any():
        notes.append(f"{malformed.sum()} of {len(items)} answers are malformed and wrong for every finding")
    counts = ", ".join(f"{label} {positives[j]} of {scored[:, j].sum()}" for j, label in enumerate(FIVE))
    notes.append(f"present among the scored films: {counts}")
    for j, label in enumerate(FIVE):
        if positives[j] in (0, scored[:, j].sum()):
            notes.append(f"{label}: the truth has one class only, so balanced accuracy (and the mean) is not defined")
    return {"rows": rows, "per_item": per_item, "notes": notes}


def metrics(
    truth: np.ndarray,
    said: np.ndarray,
    scored: np.ndarray,
    malformed: np.ndarray,
    *,
    patients: Sequence[str],
    seed: int,
    resamples: int,
) -> dict:
    """Metrics by finding and their plain means; arrays are boolean [films, five], `malformed` [films].

    As `eval.presence.score` defines them: balanced accuracy needs both classes, F1 a positive; the positive rate is
    that of the readable answers.
    """
    groups = (*FIVE, "mean of five")
    kinds = ("accuracy", "balanced accuracy", "F1", "positive rate")
    readable = scored & ~malformed[:, None]
    parts = [truth & said & scored, truth & ~said & scored, ~truth & said & scored, ~truth & ~said & scored]
    parts = np.stack([*parts, said & readable, readable]).astype(float)  # [6, films, five]

    def numbers(counts: np.ndarray) -> dict[str, float]:
        tp, fn, fp, tn, yes, read = np.einsum("kif,i->kf", parts, counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            f1 = np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan)
            values = [(tp + tn) / (tp + fn + fp + tn), (tp / (tp + fn) + tn / (tn + fp)) / 2, f1, yes / read]
        out = {}
        for kind, by_finding in zip(kinds, values, strict=True):
            out |= {f"{kind}/{name}": x for name, x in zip(groups, [*by_finding, by_finding.mean()], strict=True)}
        return out | {"malformed answers": float(counts @ malformed / counts.sum())}

    n = dict(zip(FIVE, scored.sum(0), strict=True))
    sizes = {f"{kind}/{label}": n[label] for kind in kinds for label in FIVE}
    return measure(numbers, patients, sizes, seed=seed, resamples=resamples)
