"""The trial's studies: the stated rule over films and trajectories. The runs themselves are `bash scripts/trial.sh`."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from data.errors import UserError
from data.records import read_studies, write_studies
from scripts.trial import describe_rows, main, trial_studies

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


def miniature(root, films=8):
    (root / "hannover" / "png").mkdir(parents=True)
    lines = ["patient_id,image_id,projection,admission_offset"]
    for number in range(films):
        patient = "p0" if number < 3 else f"p{number}"
        lines.append(f"{patient},f{number},ap,{-number}")
        Image.new("L", (32, 32), 40).save(root / "hannover" / "png" / f"f{number}.png")
    (root / "hannover" / "data.csv").write_text("\n".join(lines) + "\n")
    (root / "cxr_max_case").mkdir()
    texts = [f"Small left pleural effusion, version {n}." for n in range(6)]
    texts.insert(4, "As an AI, I'm not able to interpret medical images.")
    rows = [{"teacher": f"t{n}", "trajectory": text} for n, text in enumerate(texts)]
    (root / "cxr_max_case" / "trajectories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def check(root, studies, tmp_path):
    write_studies(tmp_path / "studies.jsonl", studies)
    records = list(read_studies(tmp_path / "studies.jsonl", image_root=root / "hannover" / "png", check_images=True))
    assert {len(study["trajectories"]) for study in records} == {3, 4, 5, 6, 7}
    for number, study in enumerate(records):
        assert len(study["trajectories"]) == 3 + number % 5
        assert len(study["images"]) == study["prompt"].count("<image>")
    assert len({study["trajectories"][0]["teacher"] for study in records}) == 7
    assert {study["split"] for study in records} == {"train", "test"}
    return records


def test_studies_follow_the_stated_rule(tmp_path):
    root = miniature(tmp_path / "root")
    records = check(root, trial_studies(root, None), tmp_path)
    # the more negative offset is the later film, shown with the one before it
    assert [study["images"] for study in records[:3]] == [["f0.png"], ["f0.png", "f1.png"], ["f1.png", "f2.png"]]
    statuses = {t["teacher"]: t["status"] for study in records for t in study["trajectories"]}
    assert statuses["t4"] == "refused"
    assert {status for teacher, status in statuses.items() if teacher != "t4"} == {"ok"}


def test_real_films_and_trajectories(tmp_path):
    if not REAL.is_dir():
        pytest.skip(f"real films are not there: {REAL}")
    records = check(REAL, trial_studies(REAL, None), tmp_path)
    assert len(records) == 61
    refused = {t["teacher"] for study in records for t in study["trajectories"] if t["status"] == "refused"}
    assert refused == {"Moonshot-v1"}


def test_missing_data_is_named(tmp_path):
    with pytest.raises(UserError, match=r"trajectories\.jsonl: not there"):
        trial_studies(tmp_path, None)


@pytest.mark.parametrize("out", ["file", "file/trial"])
def test_a_place_where_nothing_can_be_written_is_refused_first(tmp_path, out):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"--out {tmp_path / out}: {tmp_path / 'file'} is not a folder"):
        main(["--data-root", str(tmp_path), "--out", str(tmp_path / out)])


def test_expected_first_loss(tmp_path, capsys):
    rows = [{"negative_messages": [[]] * n} for n in (7, 1, 3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert describe_rows(tmp_path / "rows.jsonl") == pytest.approx((math.log(8) + math.log(2)) / 2)
    assert "7 1 3" in capsys.readouterr().out
