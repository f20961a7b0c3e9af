"""The phantom cohort: patients, dates, findings and the study records with films and trajectories."""

import functools
import re
import sys
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.phantom import PROMPT, anatomy, films, styles, teachers
from data.processes import process_pool
from data.records import write_studies

SPLITS = ("train", "validate", "test")
SECOND_DATE = 1 / 3  # share of patients with two films
NORMAL = 0.10  # share of patients drawn as free of any finding
NEW_FINDING = 0.075  # at the second date; with CHANGE below it keeps the prevalence where it was
CHANGE = (0.36, 0.34, 0.30)  # improving, stable, worsening
SEVERITIES = ("small", "moderate", "large")
SEVERITY = (0.35, 0.40, 0.25)
SIDES = {
    "Consolidation": (0.44, 0.41, 0.15),
    "Pleural Effusion": (0.36, 0.34, 0.30),
    "Pneumonia": (0.38, 0.37, 0.25),
    "Pneumothorax": (0.5, 0.5, 0.0),
    "Atelectasis": (0.36, 0.34, 0.30),
    "Edema": (0.0, 0.0, 1.0),
}
LABELS = tuple(teachers.PREVALENCE)


def build(out_dir, *, seed, train=1500, validate=60, test=400, world="balanced", size=224, workers=1, progress=None):
    """Write `out_dir`/films/*.png and, last, `out_dir`/studies.jsonl; the same arguments give the same bytes.

    Args:
        seed: of everything; a split's patients depend on it and not on the sizes of the splits.
        train, validate, test: studies in each split.
        world: a key of teachers.WORLDS; changes trajectories only.
        size: film edge in pixels.
        workers: processes that draw films; the bytes do not depend on it.
        progress: called with (films done, films in all) after each film; None for silence.
    Returns the number of studies. UserError for an unknown world, a bad number, or films of another cohort in the way.
    """
    counts = dict(zip(SPLITS, (train, validate, test), strict=True))
    _check(counts, world, size, seed, workers)
    out = Path(out_dir)
    studies = [study for split in SPLITS for study in plan(split, counts[split], seed=seed, world=world)]
    wanted = {study["images"][0].partition("/")[2] for study in studies}
    folder = out / "films"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        strangers = sorted(path.name for path in folder.iterdir() if path.name not in wanted)
        if strangers:
            raise UserError(
                f"{folder}: holds {len(strangers)} file(s) that this cohort does not name, e.g. {strangers[0]}; "
                "give another --out or remove the folder"
            )
        # The list is written last and removed first: a cohort with a list is whole.
        (out / "studies.jsonl").unlink(missing_ok=True)
        for done, (study, data) in enumerate(zip(studies, _draw_all(studies, seed, size, workers), strict=True), 1):
            (out / study["images"][0]).write_bytes(data)
            if progress:
                progress(done, len(studies))
    except OSError as error:
        raise UserError(f"{out}: cannot write the films ({error.strerror}); choose another --out") from error
    write_studies(out / "studies.jsonl", studies)
    return len(studies)


def _draw_all(studies, seed, size, workers):
    draw = functools.partial(_film_png, seed=seed, size=size)
    if workers == 1:
        yield from map(draw, studies)
        return
    with process_pool(workers) as pool:
        yield from pool.map(draw, studies, chunksize=16)


def _film_png(study, seed, size):
    return films.png(film_of(study, seed=seed, size=size))


def _check(counts, world, size, seed, workers):
    if world not in teachers.WORLDS:
        raise UserError(f"--world {world}: no such world; use one of {', '.join(teachers.WORLDS)}")
    for name, value in {**counts, "seed": seed}.items():
        if value < 0:
            raise UserError(f"--{name} {value}: must not be negative; give 0 or more")
    if not any(counts.values()):
        raise UserError("--train, --validate and --test are all 0; ask for at least one study")
    if workers < 1:
        raise UserError(f"--workers {workers}: at least one process must draw; give 1 or more")
    if not 56 <= size <= 1024:
        raise UserError(f"--size {size}: films are drawn with 56 to 1024 pixels an edge; give one in that range")


def plan(split, count, *, seed, world):
    """The first `count` study records of a split, without drawing films. Patients of different splits never meet."""
    studies, patient = [], 0
    while len(studies) < count:
        patient += 1
        studies += _patient(split, patient, seed, world)
    return studies[:count]


def _patient(split, number, seed, world):
    place = SPLITS.index(split)
    name = f"p{place}{number:04d}"
    rng = np.random.default_rng([seed, place, number])
    dates = 2 if rng.random() < SECOND_DATE else 1
    findings, studies = None, []
    for date in range(dates):
        earlier = findings
        findings = _first_findings(rng) if date == 0 else _later_findings(rng, earlier)
        _make_room(findings)
        _progression(findings, earlier)
        study_id = f"{name}-s{date}"
        told = teachers.answers(study_id, findings, seed=seed, world=world)
        studies.append(
            {
                "id": study_id,
                "patient": name,
                "source": "phantom",
                "split": split,
                "images": [f"films/{study_id}.png"],
                "prompt": PROMPT,
                "trajectories": [
                    {"teacher": teacher, "text": answer.text, "status": answer.status}
                    for teacher, answer in told.items()
                ],
                "report": styles.report_text(findings, compared=earlier is not None),
                "findings": findings,
                "prior": f"{name}-s{date - 1}" if date else None,
                "view": "AP" if rng.random() < 0.4 else "PA",
            }
        )
    return studies


def _first_findings(rng):
    normal = rng.random() < NORMAL
    findings = {}
    for label in LABELS:
        chance = teachers.PREVALENCE[label] / (1 - NORMAL)
        if label == "Cardiomegaly":
            # A failing heart is both wide and congested; the mean stays at the stated prevalence.
            chance *= 1.6 if findings["Edema"]["state"] == "present" else 0.6
        findings[label] = _new(rng, label) if rng.random() < chance and not normal else _absent()
    return findings


def _later_findings(rng, earlier):
    findings = {}
    for label in LABELS:
        before = earlier[label]
        if before["state"] == "absent":
            findings[label] = _new(rng, label) if rng.random() < NEW_FINDING else _absent()
            continue
        step = int(rng.choice(3, p=CHANGE)) - 1
        if label == "Support Devices":
            findings[label] = dict(before)
            continue
        grade = SEVERITIES.index(before["severity"]) + step
        findings[label] = _absent() if grade < 0 else {**before, "severity": SEVERITIES[min(grade, 2)]}
    return findings


def _new(rng, label):
    side = str(rng.choice(["right", "left", "bilateral"], p=SIDES[label])) if label in SIDES else None
    severity = None if label == "Support Devices" else str(rng.choice(SEVERITIES, p=SEVERITY))
    return {"state": "present", "side": side, "severity": severity, "progression": None}


def _absent():
    return {"state": "absent", "side": None, "severity": None, "progression": None}


def _make_room(findings):
    """Make a large effusion or pneumothorax moderate where it would hide another finding of the same lung."""
    for side in ("right", "left"):

        def here(label, severity=None, side=side):
            row = findings[label]
            return row["side"] in (side, "bilateral") and severity in (None, row["severity"])

        dense = here("Consolidation") or here("Pneumonia")
        if here("Pneumothorax", "large") and (dense or here("Atelectasis")):
            findings["Pneumothorax"]["severity"] = "moderate"
        if here("Pleural Effusion", "large") and (dense or here("Pneumothorax") or here("Atelectasis")):
            findings["Pleural Effusion"]["severity"] = "moderate"


def _progression(findings, earlier):
    """Compare with the earlier date; a finding that came is worsening, one that went is improving (and absent)."""
    for label, row in findings.items():
        row["progression"] = None
        if earlier is None or label == "Support Devices":
            continue
        before, now = _grade(earlier[label]), _grade(row)
        if before or now:
            row["progression"] = "stable" if now == before else "worsening" if now > before else "improving"


def _grade(row):
    return SEVERITIES.index(row["severity"]) + 1 if row["state"] == "present" else 0


@functools.lru_cache(maxsize=16)
def anatomy_of(patient, seed):
    """The Anatomy of a patient (name as in the study record) in the cohort of `seed`."""
    return anatomy.draw_patient(np.random.default_rng([seed, *patient.encode()]))


def film_of(study, *, seed, size=224):
    """Draw the film of a study record of this cohort: uint8 (size, size)."""
    if not re.fullmatch(r"p\d+-s\d+", study["id"]):
        raise UserError(f"study {study['id']}: is not of the phantom cohort; films are drawn for its records only")
    rng = np.random.default_rng([seed, *study["id"].encode(), 99])
    return films.render(anatomy_of(study["patient"], seed), study["findings"], view=study["view"], rng=rng, size=size)


def show_progress(done, total):
    """Say on stderr how far the films are, every 100 of them."""
    if done == total or done % 100 == 0:
        print(f"films {done}/{total}", file=sys.stderr, flush=True)
