"""The config: every field checked before anything is sent, keys never shown, credentialed films kept at home."""

import datetime
import math
from pathlib import Path

import pytest
import yaml

from data.collect.prompts import TEMPLATES, render
from data.collect.settings import (
    Teacher,
    check_credentialed,
    is_credentialed,
    is_loopback,
    read_config,
    read_key,
)
from data.errors import UserError
from tests.data.collect_server import CANARY

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"name": "a", "base_url": "https://api.example.org/v1", "model": "m", "key_env": "A_KEY"}


def write(tmp_path, teachers, **more):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"studies": "films.jsonl", "out": "out.jsonl", "teachers": teachers, **more}))
    return path


def refused(tmp_path, match, *, teachers=None, **more):
    with pytest.raises(UserError, match=match) as found:
        read_config(write(tmp_path, teachers if teachers is not None else [GOOD], **more))
    assert CANARY not in str(found.value)
    return str(found.value)


def test_defaults_are_those_of_a_teacher_unless_it_says_otherwise(tmp_path):
    config = read_config(
        write(
            tmp_path, [GOOD, {**GOOD, "name": "b", "image_size": 512}], defaults={"image_size": 256, "temperature": 0}
        )
    )
    assert [one.image_size for one in config.teachers] == [256, 512]
    assert config.teachers[0].decoding == {"temperature": 0, "max_tokens": 2048}
    assert config.store == "out.answers"
    assert read_config(write(tmp_path, [GOOD]), out="elsewhere.jsonl").store == "elsewhere.answers"


def test_a_temperature_is_one_setting_however_it_is_written(tmp_path):
    config = read_config(write(tmp_path, [{**GOOD, "temperature": 0}, {**GOOD, "name": "b", "temperature": 0.0}]))
    assert len({repr(one.decoding) for one in config.teachers}) == 1


def test_the_example_reads_and_holds_seven_teachers():
    config = read_config(ROOT / "configs/collect_example.yaml")
    assert len(config.teachers) == 7
    assert not any(one.zero_retention or one.local for one in config.teachers)
    assert {one.prompt for one in config.teachers} == {"given_diagnoses"}
    assert config.teachers[0].decoding == {"max_completion_tokens": 4096}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"temprature": 1}, "teacher 1: unknown field 'temprature'; did you mean 'temperature'"),
        ({"api_key": CANARY}, "name the key's variable in key_env, never the key"),
        ({"key_env": CANARY}, "must be the NAME of an environment variable"),
        ({"key_env": None}, "key_env is missing"),
        ({"base_url": f"https://user:{CANARY}@example.org/v1"}, "may hold no user, key or query"),
        ({"base_url": f"https://example.org/v1?key={CANARY}"}, "may hold no user, key or query"),
        ({"base_url": "example.org/v1"}, "must begin with https://"),
        ({"base_url": "https://example.org:port/v1"}, "no address"),
        ({"base_url": "http://example.org/v1"}, "unencrypted"),
        ({"model": ""}, "model is missing"),
        ({"name": 4}, "name is missing or no plain text"),
        ({"prompt": "givn_diagnoses"}, "did you mean 'given_diagnoses'"),
        ({"prompt": "Explain {diagnoses} by {report}."}, r"prompt holds {report}, which nothing fills in; only"),
        ({"prompt": "Explain { diagnoses }."}, "prompt holds { diagnoses }, which nothing fills in"),
        ({"image_size": 12}, "image_size must be a whole number of at least 64"),
        ({"image_quality": 101}, "1 to 100"),
        ({"concurrency": 2.5}, "concurrency must be a whole number"),
        ({"requests_per_minute": 0}, "requests_per_minute must be a number"),
        ({"temperature": "warm"}, "temperature must be a number"),
        ({"price_in": -1, "price_out": 1}, "price_in must be a number"),
        ({"price_in": 1}, "both price_in and price_out"),
        ({"max_tokens": True}, "max_tokens must be a whole number"),
        ({"zero_retention": "true"}, "must be true or false, without quotes"),
        ({"mode": "bach"}, "did you mean 'batch'"),
        ({"extra": {"api_key": CANARY}}, "may not hold 'api_key'"),
        ({"extra": {"messages": []}}, "may not hold 'messages'"),
        ({"extra": {"metadata": {"day": datetime.date(2024, 1, 1)}}}, "extra cannot be sent as JSON; .*quotes around"),
        ({"extra": {"seed": math.nan}}, "extra cannot be sent as JSON; use finite numbers"),
        ({"extra": {"logit_bias": {1: 5, "a": 5}}}, "extra cannot be sent as JSON"),
        ({"extra": {"stop": "\ud800"}}, "extra cannot be sent as JSON; .*whole characters"),
        ({"prompt": "What is \ud800 seen?"}, "prompt cannot be sent as JSON"),
        ({"model": "m\ud800"}, "model cannot be sent as JSON"),
        ({"batch_requests": 60000}, "50000 at most"),
    ],
)
def test_bad_teachers(tmp_path, change, match):
    refused(tmp_path, match, teachers=[{**GOOD, **change}])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"teachers": []}, "at least one teacher"),
        ({"teachers": [GOOD, {**GOOD, "name": "A"}]}, "comes twice"),
        ({"budjet": 3}, "did you mean 'budget'"),
        ({"budget": "20"}, "budget must be a number"),
        ({"budget": 20}, "a budget needs price_in and price_out"),
        ({"out": None}, "no place for the result"),
        ({"out": "./films.jsonl"}, "out films.jsonl: is the input file; choose another"),
        ({"out": "c.yaml"}, "out c.yaml: is the input file"),
        ({"out": "films/"}, "is not a regular file; name a file to write"),
        ({"out": "c.yaml/out.jsonl"}, "its folder .*c.yaml is not a folder"),
        ({"store": "c.yaml"}, "store c.yaml: .*c.yaml is not a folder"),
        ({"defaults": {"zero_retention": True}}, "may not set zero_retention"),
        ({"without_diagnoses": "drop"}, "without_diagnoses"),
        ({"studies": ""}, "studies must be a path"),
    ],
)
def test_bad_configs(tmp_path, changes, match, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(tmp_path, match, **changes)


def test_broken_yaml_is_refused_without_showing_the_line(tmp_path):
    for text in (f"a: b: {CANARY}", f"key_env: {CANARY}\nkey_env: {CANARY}", "- 1", f"'{CANARY}", "? [a]\n: 1"):
        path = tmp_path / "c.yaml"
        path.write_text(text)
        with pytest.raises(UserError) as found:
            read_config(path)
        assert CANARY not in str(found.value)
    (tmp_path / "c.yaml").write_bytes(b"studies: \xff")
    with pytest.raises(UserError, match="not UTF-8"):
        read_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://127.9.9.9/v1", True),
        ("http://localhost:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://127.0.0.1.example.org/v1", False),
        ("http://localhost.example.org/v1", False),
        ("http://2130706433/v1", False),
        ("http://0.0.0.0/v1", False),
        ("http://127.0.0.1@example.org/v1", False),
        ("https://api.example.org/v1", False),
    ],
)
def test_loopback_is_read_from_the_address_alone(url, local):
    assert is_loopback(url) is local


@pytest.mark.parametrize(
    "source",
    ["mimic", "MIMIC-CXR-JPG", "mimic_cxr", "ms-cxr-t", "CXR-MAX", "physionet/mimic-cxr", "PhysioNet MIMIC-CXR"]
    + ["our films and MS-CXR", "VinDr-CXR", "physionet.org/vindr-pcxr"],
)
def test_credentialed_sources(source):
    assert is_credentialed({"source": source, "images": ["a.png"]})


def test_other_sources_are_free():
    for source in ("phantom", "hannover", "cohen", "padchest", "chexpert"):
        assert not is_credentialed({"source": source, "images": ["p10000032/a.png", "s50414267/p10000032/a.png"]})


def test_films_of_mimic_are_credentialed_whatever_their_source_is_called():
    for image in ("files/p10/p10000032/s50414267/x.jpg", "p10000032/s50414267/x.jpg", r"p10\p10000032\s50414267\x.jpg"):
        assert is_credentialed({"source": "our gaze study", "images": ["a.png", image]})


def test_mimic_needs_an_attested_or_local_endpoint():
    studies = [{"id": "s1", "source": "phantom", "images": []}, {"id": "s2", "source": "physionet/VinDr", "images": []}]
    told = r"'a': 1 studies \(first 's2', source 'physionet/VinDr'\).*PhysioNet.*24 Sep 2025.*zero_retention: true"
    with pytest.raises(UserError, match=told):
        check_credentialed(Teacher(**GOOD), studies)
    check_credentialed(Teacher(**GOOD), studies[:1])
    check_credentialed(Teacher(**GOOD, zero_retention=True), studies)
    check_credentialed(Teacher("a", "http://127.0.0.1:1/v1", "m"), studies)
    with pytest.raises(UserError, match="batch lies in files"):
        check_credentialed(Teacher(**GOOD, zero_retention=True, mode="batch"), studies)


def test_a_key_that_no_header_can_carry_is_not_shown(monkeypatch):
    with pytest.raises(UserError, match="A_KEY is not set"):
        read_key(Teacher(**GOOD))
    for value in (CANARY + "\n", CANARY + " x", CANARY + "é"):
        monkeypatch.setenv("A_KEY", value)
        with pytest.raises(UserError) as found:
            read_key(Teacher(**GOOD))
        assert CANARY not in str(found.value)


def test_prompts_give_what_is_marked_present_and_nothing_else():
    study = {
        "findings": {
            "Pleural Effusion": {"state": "present"},
            "Atelectasis": {"state": "present"},
            "Edema": {"state": "absent"},
            "Pneumonia": {"state": "uncertain"},
        }
    }
    text = render(TEMPLATES["given_diagnoses"], study)
    assert "diagnoses of this study are: Atelectasis, Pleural Effusion.\n" in text
    assert "Edema" not in text and "Pneumonia" not in text and "{" not in text
    assert render(TEMPLATES["open"], study) == TEMPLATES["open"]
    assert "Effusion" not in TEMPLATES["open"]
    for none in ({}, {"findings": None}, {"findings": {"Edema": {"state": "absent"}}}):
        assert render(TEMPLATES["given_diagnoses"], none) is None
        assert render("Say what you see.", none) == "Say what you see."


def test_further_credentialed_sources_and_credentials(tmp_path):
    for source in ("Chest ImaGenome", "cxr-lt-2024", "REFLACX", "EGD-CXR", "cxr-pro", "physionet"):
        assert is_credentialed({"source": source, "images": []})
    refused(tmp_path, "may not hold 'auth_token'", teachers=[{**GOOD, "extra": {"auth_token": CANARY}}])
