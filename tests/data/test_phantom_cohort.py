"""The cohort on disk: same seed same bytes, patients, dates, prevalences, errors before any drawing."""

import io
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import UserError
from data.findings_lexicon import FIVE
from data.phantom import PROMPT, cohort, films, teachers
from data.records import read_studies

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"train": 8, "validate": 3, "test": 5}


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("cohort")
    assert cohort.build(out, seed=4, size=64, **SIZES) == 16
    return out


@pytest.fixture(scope="module")
def many():
    return cohort.plan("train", 1500, seed=4, world="balanced")


def test_same_seed_same_bytes_with_any_number_of_processes(built, tmp_path):
    cohort.build(tmp_path / "again", seed=4, size=64, workers=2, **SIZES)
    assert files(tmp_path / "again") == files(built)
    cohort.build(tmp_path / "other", seed=5, size=64, **SIZES)
    other = files(tmp_path / "other")
    assert all(data != other.get(name) for name, data in files(built).items())


def test_building_again_over_a_cut_off_cohort_gives_the_whole(built, tmp_path):
    out = tmp_path / "cut"
    (out / "films").mkdir(parents=True)
    name = next(iter(files(built / "films")))
    (out / "films" / name).write_bytes(b"cut off")
    cohort.build(out, seed=4, size=64, **SIZES)
    assert files(out) == files(built)


def test_records_pass_the_checks_and_name_their_films(built):
    studies = list(read_studies(built / "studies.jsonl", check_images=True))
    assert {split: sum(s["split"] == split for s in studies) for split in SIZES} == SIZES
    for study in studies:
        with Image.open(io.BytesIO((built / study["images"][0]).read_bytes())) as image:
            assert (image.mode, image.size, image.format) == ("L", (64, 64), "PNG")
        assert study["prompt"] == PROMPT
        assert [one["teacher"] for one in study["trajectories"]] == list(teachers.TEACHERS)
        film = cohort.film_of(study, seed=4, size=64)
        assert films.png(film) == (built / study["images"][0]).read_bytes()


def test_patients_are_in_one_split_only(built):
    splits = defaultdict(set)
    for study in read_studies(built / "studies.jsonl"):
        splits[study["patient"]].add(study["split"])
    assert all(len(found) == 1 for found in splits.values())


def test_a_split_does_not_depend_on_the_others_or_on_the_world(many):
    assert cohort.plan("train", 40, seed=4, world="balanced") == many[:40]
    elsewhere = cohort.plan("train", 40, seed=4, world="drift")
    assert [s["findings"] for s in elsewhere] == [s["findings"] for s in many[:40]]
    assert [s["trajectories"] for s in elsewhere] != [s["trajectories"] for s in many[:40]]


def test_prevalences_are_as_stated(many):
    for label, expected in teachers.PREVALENCE.items():
        share = np.mean([s["findings"][label]["state"] == "present" for s in many])
        assert share == pytest.approx(expected, abs=0.05), label
    for label in FIVE:
        assert 0.28 < np.mean([s["findings"][label]["state"] == "present" for s in many]) < 0.47
    normal = np.mean([not any(row["state"] == "present" for row in s["findings"].values()) for s in many])
    assert 0.08 < normal < 0.20
    for label in ("Consolidation", "Pleural Effusion", "Pneumonia", "Pneumothorax"):
        sides = [s["findings"][label]["side"] for s in many if s["findings"][label]["state"] == "present"]
        assert min(sides.count("left"), sides.count("right")) > 0.25 * len(sides)


def test_second_dates_progress_from_the_first(many):
    by_id = {study["id"]: study for study in many}
    later = [study for study in many if study["prior"]]
    patients = {study["patient"] for study in many}
    assert len(later) / len(patients) == pytest.approx(1 / 3, abs=0.05)
    grades = {None: 0, "small": 1, "moderate": 2, "large": 3}
    seen = defaultdict(int)
    for study in later:
        before = by_id[study["prior"]]
        assert before["patient"] == study["patient"] and before["id"] < study["id"] and before["prior"] is None
        for label in FIVE:
            old, new = before["findings"][label], study["findings"][label]
            step = grades[new["severity"]] - grades[old["severity"]]
            expected = "improving" if step < 0 else "worsening" if step else "stable" if new["severity"] else None
            assert new["progression"] == expected
            if old["side"] and new["side"]:
                assert old["side"] == new["side"]
            seen[expected] += 1
    assert min(seen["improving"], seen["stable"], seen["worsening"]) > 100
    assert all(row["progression"] is None for s in many if not s["prior"] for row in s["findings"].values())


def test_large_fluid_or_air_hides_no_other_finding(many):
    for study in many:
        rows = study["findings"]
        for side in ("left", "right"):
            on = {label for label, row in rows.items() if row["side"] in (side, "bilateral")}
            for label in ("Pneumothorax", "Pleural Effusion"):
                if label in on and rows[label]["severity"] == "large":
                    assert not on & {"Consolidation", "Pneumonia"}, study["id"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world": "balancd"}, "--world balancd: no such world"),
        ({"train": -1}, "--train -1"),
        ({"train": 0, "validate": 0, "test": 0}, "all 0"),
        ({"size": 8}, "--size 8"),
        ({"workers": 0}, "--workers 0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        cohort.build(tmp_path / "out", **{"seed": 1, "size": 64, **SIZES, **change})
    assert not (tmp_path / "out").exists()


def test_films_of_another_cohort_are_not_mixed_in(tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "p99999-s0.png").write_bytes(b"")
    with pytest.raises(UserError, match="p99999-s0.png"):
        cohort.build(tmp_path, seed=1, size=64, **SIZES)
    assert (tmp_path / "films" / "p99999-s0.png").exists()


def test_an_interrupted_build_leaves_no_list(built, tmp_path):
    cohort.build(tmp_path, seed=4, size=64, **SIZES)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cohort.build(tmp_path, seed=4, size=64, progress=stop, **SIZES)
    assert not (tmp_path / "studies.jsonl").exists()


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "data.phantom", "--out", str(tmp_path / "c"), "--seed", "4", "--size", "64"]
    counts = ["--train", "2", "--validate", "1", "--test", "1", "--workers", "1"]
    done = subprocess.run([*command, *counts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4 studies" in done.stdout and "films 4/4" in done.stderr
    assert len((tmp_path / "c" / "studies.jsonl").read_text().splitlines()) == 4
    failed = subprocess.run([*command, "--world", "flat"], cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: --world flat") and "Traceback" not in failed.stderr


def test_a_foreign_study_has_no_film():
    with pytest.raises(UserError, match="not of the phantom cohort"):
        cohort.film_of({"id": "s50", "patient": "x", "findings": {}, "view": "PA"}, seed=1)
    assert json.loads(json.dumps(cohort.plan("test", 1, seed=1, world="balanced")))[0]["id"].startswith("p2")
