import copy
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.errors import UserError
from data.records import check_studies, check_study, clean, image_paths, main, read_studies, write_studies

STUDY = {
    "id": "p0001-s1",
    "patient": "p0001",
    "source": "phantom",
    "split": "train",
    "images": ["films/p0001-s1.png"],
    "prompt": "This is a chest film <image>. Describe it.",
    "trajectories": [
        {"teacher": "gpt-5-nano", "text": "Small left effusion.", "status": "ok"},
        {"teacher": "moonshot-v1", "text": "", "status": "empty"},
    ],
    "consensus": {"text": "Left effusion. No pneumothorax.", "strategy": "vote", "audit": {"votes": [1, 0.5, None]}},
    "report": "FINDINGS: Left effusion.",
    "findings": {"Pleural Effusion": {"state": "present", "side": "left", "severity": "small", "progression": None}},
    "prior": None,
    "view": "PA",
}


def study(**changes):
    return copy.deepcopy(STUDY) | changes


def trajectory(text="Clear.", teacher="t", status="ok", **more):
    return {"teacher": teacher, "text": text, "status": status} | more


def write(path, *studies):
    path.write_text("".join(json.dumps(one) + "\n" for one in studies))
    return path


def test_round_trip(tmp_path):
    studies = [study(), study(id="b", images=["a.png", "b/c.png"], prompt="<image> then <image>é\u2028")]
    bare = {key: STUDY[key] for key in ("id", "patient", "source", "split", "images", "prompt")} | {"trajectories": []}
    studies.append(bare | {"id": "c"})
    assert write_studies(tmp_path / "s.jsonl", (one for one in studies)) == 3
    assert list(read_studies(tmp_path / "s.jsonl")) == studies


def test_writing_a_bad_record_leaves_the_old_file(tmp_path):
    path = write(tmp_path / "s.jsonl", study())
    before = path.read_bytes()
    with pytest.raises(UserError, match="record 2 to be written: study 'b': prompt is empty"):
        write_studies(path, [study(id="a"), study(id="b", prompt=" ")])
    with pytest.raises(UserError, match="record 2 to be written: study 'a' comes twice; give each its own id"):
        write_studies(path, [study(id="a"), study(id="a")])
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["s.jsonl"]


def test_a_file_can_be_rewritten_from_its_own_records(tmp_path):
    path = write(tmp_path / "s.jsonl", *(study(id=f"s{n}") for n in range(50)))
    assert write_studies(path, (one | {"split": "test"} for one in read_studies(path))) == 50
    assert {one["split"] for one in read_studies(path)} == {"test"}


WRONG = {
    "not an object": ([1], "a list where a study record must be a JSON object"),
    "unknown field": (study(trajectorys=[]), "unknown field 'trajectorys'; did you mean 'trajectories'?"),
    "missing field": (
        {key: value for key, value in STUDY.items() if key not in ("split", "source")},
        r"field\(s\) missing: source, split; data/README.md shows a whole record",
    ),
    "number as id": (study(id=50000001), r"id is a number; write a string \(write it in quotes"),
    "blank id": (study(id=" a"), "id is empty, has blanks around it or control characters"),
    "newline in id": (study(id="a\nb"), "id is empty, has blanks around it or control characters"),
    "patient": (study(patient=None), "study 'p0001-s1': patient is null; write a string"),
    "source": (study(source=""), "study 'p0001-s1': source is empty"),
    "split": (study(split="val"), "split is 'val'; did you mean 'validate'?"),
    "split far off": (study(split="xyz"), "split is 'xyz'; use one of train, validate, test"),
    "no images": (study(images=[]), "images is an empty list; write a list with at least one relative path"),
    "images a string": (study(images="a.png"), "images is a string; write a list"),
    "image a number": (study(images=[3]), "an entry of images is a number; write a string"),
    "image empty": (study(images=[""]), "images holds an empty path"),
    "image absolute": (study(images=["/films/a.png"]), "image path '/films/a.png' must be relative to the image root"),
    "image of Windows": (study(images=["films\\a.png"]), "must be relative to the image root, with / between"),
    "image with drive": (study(images=["C:/a.png"]), "must be relative to the image root"),
    "image climbs": (study(images=["films/../../a.png"]), "leaves the image root by '..'; choose a higher image root"),
    "image address": (study(images=["https://host/a.png"]), "images holds an address, not a file; download it"),
    "image NUL": (study(images=["a\0.png"]), "an entry of images holds a NUL character"),
    "too few tags": (
        study(images=["a.png", "b.png"]),
        r"prompt has 1 <image> tag\(s\) for 2 image\(s\); put one <image> into the prompt for each image",
    ),
    "too many tags": (study(prompt="<image><image>"), r"prompt has 2 <image> tag\(s\) for 1 image\(s\)"),
    "token in prompt": (
        study(prompt="<image> <|im_end|>"),
        r"prompt holds the special token <\|im_end\|>; take it out",
    ),
    "prompt empty": (study(prompt=""), "prompt is empty"),
    "prompt a list": (study(prompt=["<image>"]), "prompt is a list; write a string"),
    "trajectories null": (
        study(trajectories=None),
        r"trajectories is null; write a list \(\[\] before there are any\)",
    ),
    "trajectory a string": (study(trajectories=["text"]), "trajectory 1: is a string; write an object with teacher"),
    "trajectory typo": (
        study(trajectories=[trajectory(staus="ok")]),
        "trajectory 1: unknown field 'staus'; did you mean 'status'?",
    ),
    "trajectory lacks": (study(trajectories=[{"teacher": "t", "text": "x"}]), r"field\(s\) missing: status"),
    "teacher twice": (study(trajectories=[trajectory()] * 2), "trajectory of 't': comes twice; keep one a teacher"),
    "status": (study(trajectories=[trajectory(status="OK")]), "status is 'OK'; did you mean 'ok'?"),
    "status a text": (
        study(trajectories=[trajectory(status="Jane Roe has a large left effusion.")]),
        "status is a text of 35 characters; ",
    ),
    "status a list": (study(trajectories=[trajectory(status=["ok"])]), "status is a list; "),
    "ok but blank": (study(trajectories=[trajectory(" \n")]), "text is empty; set its status to 'empty'"),
    "text null": (study(trajectories=[trajectory(None, status="empty")]), "trajectory of 't': text is null"),
    "consensus a string": (study(consensus="text"), "consensus: is a string; write an object with text and strategy"),
    "consensus blank": (study(consensus={"text": "", "strategy": "vote"}), "consensus: text is empty; leave the cons"),
    "consensus lacks": (study(consensus={"text": "x"}), r"consensus: field\(s\) missing: strategy"),
    "audit NaN": (
        study(consensus={"text": "x", "strategy": "v", "audit": {"p": float("nan")}}),
        r"consensus audit: cannot be written as JSON \(ValueError\); use finite numbers and whole characters",
    ),
    "audit surrogate": (
        study(consensus={"text": "x", "strategy": "v", "audit": ["\ud800"]}),
        "consensus audit: cannot be written as JSON",
    ),
    "audit NUL": (study(consensus={"text": "x", "strategy": "v", "audit": "\0"}), "audit: holds a NUL character"),
    "report blank": (study(report="  "), "report is empty; write it or leave it out"),
    "findings a list": (study(findings=["Edema"]), "findings is a list; write an object from label to state"),
    "label": (
        study(findings={"effusion": {"state": "present"}}),
        "findings has no label 'effusion'; did you mean 'Pleural Effusion'?",
    ),
    "label case": (study(findings={"edema": {"state": "present"}}), "did you mean 'Edema'?"),
    "finding a string": (study(findings={"Edema": "present"}), "finding 'Edema': is a string; write an object"),
    "state": (study(findings={"Edema": {"state": 1}}), "state is a number; use one of present, absent, uncertain"),
    "side": (study(findings={"Edema": {"state": "present", "side": "both"}}), "side is 'both'; use one of left, right"),
    "severity": (study(findings={"Edema": {"state": "present", "severity": "lg"}}), "severity is 'lg'; "),
    "progression": (
        study(findings={"Edema": {"state": "present", "progression": "improved"}}),
        "progression is 'improved'; did you mean 'improving'?",
    ),
    "prior is itself": (study(prior="p0001-s1"), "prior names the study itself"),
    "view": (study(view="pa"), "view is 'pa'; did you mean 'PA'?"),
    "NUL": (study(report="a\0b"), r"report holds a NUL character \(.u0000\); take it out"),
    "half a surrogate": (study(report="a\ud800"), "report holds half a surrogate pair"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_with_file_line_and_remedy(tmp_path, name):
    record, message = WRONG[name]
    with pytest.raises(UserError, match=message):
        check_study(record)
    if name == "audit NaN":
        return  # the reader of lines refuses NaN itself: tests/data/test_files.py
    path = write(tmp_path / "studies.jsonl", study(id="fine"), record)
    with pytest.raises(UserError, match=r"^\S*studies\.jsonl:2: .*" + message):
        list(read_studies(path))


@pytest.mark.parametrize("token", ["<image>", "<video>", "<|image_pad|>", "<|vision_start|>", "<|im_start|>", "<img>"])
@pytest.mark.parametrize("field", ["trajectory of 't': text", "consensus: text"])
def test_special_tokens_in_texts_are_refused(token, field):
    text = f"Left {token} effusion."
    place = {"consensus": {"text": text, "strategy": "vote"}} if "consensus" in field else {}
    with pytest.raises(UserError) as caught:
        check_study(study(**(place or {"trajectories": [trajectory(text)]})))
    assert f"{field} holds the special token {token}; take it out of the text" in str(caught.value)


@pytest.mark.parametrize("text", ["T < 3 cm and > 2 cm", "<b>bold</b>", "a | b <|", "| x |"])
def test_ordinary_angle_brackets_are_allowed(text):
    check_study(study(trajectories=[trajectory(text)]))


def test_what_is_not_ok_is_kept_as_it_came():
    check_study(study(trajectories=[trajectory("<|im_end|>", status="truncated"), trajectory("", "u", "filtered")]))


def test_ids_are_unique_in_a_file(tmp_path):
    path = write(tmp_path / "s.jsonl", study(), study(id="b"), study())
    with pytest.raises(UserError, match="s.jsonl:3: study 'p0001-s1' stands in line 1 already; give each its own id"):
        list(read_studies(path))


def test_no_patient_text_in_messages():
    secret = "Jane Roe 1970"
    for record in (
        study(report=[secret]),
        study(trajectories=[trajectory(f"{secret} <image>")]),
        study(split={"x": secret}),
        study(prompt=f"{secret} <image> <image>"),
    ):
        with pytest.raises(UserError) as caught:
            check_study(record)
        assert "Jane" not in str(caught.value)


def cohort(tmp_path, *names, **more):
    Image.new("L", (40, 30), 90).save(tmp_path / "good.png")
    records = [study(id=f"s{n}", images=[name], **more) for n, name in enumerate(names, 1)]
    return write(tmp_path / "studies.jsonl", *records)


def refusal(path, **options):
    with pytest.raises(UserError) as caught:
        next(read_studies(path, check_images=True, **options))
    return str(caught.value)


def save_bad(tmp_path, name):
    path = tmp_path / name
    if name.startswith("short"):
        Image.effect_noise((200, 200), 50).save(path)
        path.write_bytes(path.read_bytes()[:5000])
    elif name == "empty.png":
        path.write_bytes(b"")
    elif name == "text.png":
        path.write_text("not an image")
    elif name == "dicom.png":
        path.write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 100)
    elif name == "deep.png":
        Image.new("I;16", (20, 20), 4000).save(path)
    elif name == "float.tif":
        Image.new("F", (20, 20), 0.5).save(path)
    elif name == "turned.jpg":
        exif = Image.Exif()
        exif[0x0112] = 2
        Image.new("L", (20, 20)).save(path, exif=exif)
    elif name == "thin.png":
        Image.new("L", (2010, 10)).save(path)
    elif name == "frames.gif":
        one, two = Image.new("L", (9, 9), 1), Image.new("L", (9, 9), 200)
        one.save(path, save_all=True, append_images=[two])
    elif name == "folder.png":
        path.mkdir()
    elif name == "away.png":
        outside = tmp_path.parent / f"{tmp_path.name}-outside.png"
        Image.new("L", (9, 9)).save(outside)
        path.symlink_to(outside)


BAD_IMAGES = {
    "missing.png": "missing or unreadable (No such file or directory); put the file there or name another image root",
    "short.png": "is damaged or cut off (OSError); download it again",
    "short.jpg": "is damaged or cut off (OSError); download it again",
    "empty.png": "is empty (0 bytes); copy or download it again",
    "text.png": "is not an image that Pillow can read; convert it to PNG or JPEG",
    "dicom.png": "is a DICOM file, not an image; convert it to 8-bit PNG with its window applied",
    "deep.png": "has more than 8 bits a pixel (mode I;16), which conversion to RGB turns into plain white; convert it",
    "float.tif": "has more than 8 bits a pixel (mode F)",
    "turned.jpg": "is stored turned or mirrored and only its EXIF orientation says so, which the model never sees;",
    "thin.png": "is 2010 x 10: longer than 200 to 1, which the model refuses; crop it",
    "frames.gif": "has 2 frames and only the first would be seen; write one file a film",
    "folder.png": "is not a file; name an image file",
    "away.png": "lies outside the image root (links followed); name the folder where the files really are as",
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_are_named_before_the_first_record(tmp_path, name):
    save_bad(tmp_path, name)
    message = refusal(cohort(tmp_path, "good.png", name))
    assert message.startswith(f"{tmp_path}/studies.jsonl:2: study 's2': image {tmp_path}/{name} {BAD_IMAGES[name]}")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_images_that_convert_faithfully_are_accepted(tmp_path, mode):
    name = f"film.{'tif' if mode == 'CMYK' else 'png'}"
    Image.new(mode, (20, 20)).save(tmp_path / name)
    assert len(list(read_studies(cohort(tmp_path, name), check_images=True))) == 1


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    for limit in (1_000, 100):  # Pillow warns above the limit and refuses above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert f"has more than {limit:,} pixels, Pillow's safety limit" in refusal(cohort(tmp_path, "good.png"))


def test_the_first_ten_problems_are_listed_and_all_counted(tmp_path):
    message = refusal(cohort(tmp_path, *(["none.png"] * 12)))
    assert message.startswith(f"{tmp_path}/studies.jsonl: 12 problems, the first 10:\n")
    assert message.count("\n") == 10
    assert "studies.jsonl:10: study 's10': image" in message


def test_image_root(tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    path = cohort(tmp_path, "a.png")
    Image.new("L", (9, 9)).save(films / "a.png")
    assert len(list(read_studies(path, image_root=films, check_images=True))) == 1
    assert "image root is not a folder" in refusal(path, image_root=tmp_path / "none")
    assert image_paths(study(images=["x/y.png"]), "/store") == ["/store/x/y.png"]


def test_links_are_followed_when_they_stay_inside_and_when_the_root_is_one(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    path = cohort(real, "link.png")
    (real / "link.png").symlink_to(real / "good.png")
    (tmp_path / "root").symlink_to(real)
    assert len(list(read_studies(path, image_root=tmp_path / "root", check_images=True))) == 1


def test_check_counts_and_command_line(tmp_path, monkeypatch, capsys):
    path = cohort(tmp_path, "good.png", "good.png", split="test")
    assert check_studies(path) == {
        "studies": 2,
        "splits": {"test": 2},
        "trajectories": {"ok": 2, "empty": 2},
        "consensus": 2,
        "images": 2,
    }
    monkeypatch.setattr("sys.argv", ["records", str(path), "--check-images"])
    main()
    assert capsys.readouterr().out == (
        f"{path}: 2 studies, 2 images, 2 consensus\nsplits: test 2\ntrajectories: empty 2, ok 2\n"
    )
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no study; write one JSON object a line"):
        check_studies(path)


LINE = json.dumps(STUDY).encode()


@st.composite
def mutated_line(draw):
    raw = bytearray(LINE)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(raw) - 1))
        cut = draw(st.integers(0, 12))
        raw[at : at + cut] = draw(st.binary(max_size=6) | st.sampled_from([b"null", b"[]", b'"', b"\\ud800", b"1e999"]))
    return bytes(raw)


FEW = settings(max_examples=300, deadline=None, derandomize=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(raw=mutated_line())
def test_a_mutated_line_is_read_or_refused_never_a_crash(tmp_path, raw):
    path = tmp_path / "studies.jsonl"
    path.write_bytes(raw + b"\n")
    try:
        for one in read_studies(path):
            json.dumps(one, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UserError as error:
        assert str(path) in str(error)


@settings(FEW)
@given(field=st.sampled_from(sorted(STUDY)), deeper=st.booleans(), value=JSON)
def test_any_value_in_any_field_is_accepted_or_refused(field, deeper, value):
    record = study()
    inner = record[field]
    if deeper and isinstance(inner, list) and inner:
        inner[0] = value
    elif deeper and isinstance(inner, dict):
        inner[sorted(inner)[0]] = value
    else:
        record[field] = value
    try:
        check_study(record)
    except UserError:
        return
    json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8")


def test_the_example_in_the_readme_is_a_record():
    readme = (Path(__file__).parents[2] / "data" / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```json\n(\{\"id\".*)\n```", readme)[1]
    assert check_study(json.loads(example)).keys() == STUDY.keys()


def test_an_image_root_that_is_a_file_is_refused(tmp_path):
    path = cohort(tmp_path, "good.png")
    with pytest.raises(UserError, match="image root is not a folder"):
        check_studies(path, image_root=tmp_path / "good.png")


def test_cleaning_takes_out_what_a_record_may_not_hold():
    assert clean("Clear <image>lungs\0<|im_end|>.") == ("Clear lungs.", True)
    assert clean("<im<image>age>a") == ("a", True) and clean("half \ud800") == ("half ?", True)
    assert clean("pO2 < 60, é") == ("pO2 < 60, é", False) and clean("  Effusion. ") == ("  Effusion. ", False)
