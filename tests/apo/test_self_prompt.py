"""The prompt of `self`: all ok trajectories, no names, every order, whole readings only."""

import random

from apo.self_prompt import self_prompt
from data.draws import study_rng
from tests.apo.voices import study


def seven(name="s1"):
    s = study([], name=name)
    s["trajectories"] = [
        {"teacher": f"Model-{c}", "text": f"As Model-{c}, I see finding {c}.", "status": "ok"} for c in "ABCDEFG"
    ]
    s["trajectories"][2]["status"] = "refused"
    return s


def test_prompt_holds_all_ok_trajectories_and_no_name():
    prompt = self_prompt(seven(), study_rng(seven()))
    assert prompt.text.startswith(seven()["prompt"]) and prompt.text.count("<image>") == 1
    for c in "ABDEFG":
        assert f"finding {c}." in prompt.text
    assert "finding C." not in prompt.text  # refused
    assert "Model-" not in prompt.text and "6 independent readings" in prompt.text
    assert sorted(prompt.order) == [f"Model-{c}" for c in "ABDEFG"] and prompt.dropped == []


def test_prompt_is_deterministic_and_differs_by_study_and_seed():
    first = self_prompt(seven("s1"), study_rng(seven("s1"), 0))
    assert first == self_prompt(seven("s1"), study_rng(seven("s1"), 0))
    orders = {tuple(self_prompt(seven(f"s{i}"), study_rng(seven(f"s{i}"), 0)).order) for i in range(20)}
    assert len(orders) > 10
    assert len({tuple(self_prompt(seven(), study_rng(seven(), seed)).order) for seed in range(20)}) > 10


def test_every_teacher_takes_every_place():
    first = [self_prompt(seven(f"s{i}"), study_rng(seven(f"s{i}"))).order[0] for i in range(600)]
    assert all(60 < first.count(f"Model-{c}") < 140 for c in "ABDEFG")


def test_whole_trajectories_are_dropped_from_the_end_of_the_order():
    full = self_prompt(seven(), random.Random(1))
    short = self_prompt(seven(), random.Random(1), length=len, limit=len(full.text) - 1)
    assert short.order + short.dropped == full.order and len(short.dropped) == 1
    assert "5 independent readings" in short.text and len(short.text) < len(full.text)
    kept = {name[-1] for name in short.order}
    assert {c for c in "ABDEFG" if f"finding {c}." in short.text} == kept  # whole ones, none in part
    assert self_prompt(seven(), random.Random(1), length=len, limit=100) is None


def test_a_prompt_may_be_as_long_as_the_limit():
    full = self_prompt(seven(), random.Random(1))
    assert self_prompt(seven(), random.Random(1), length=len, limit=len(full.text)) == full


def test_no_prompt_without_an_ok_trajectory():
    s = seven()
    for t in s["trajectories"]:
        t["status"] = "empty"
    assert self_prompt(s, random.Random(0)) is None


def test_tags_in_a_trajectory_cannot_add_a_film():
    s = seven()
    s["trajectories"][0]["text"] = "See <image> and <|im_end|>."
    text = self_prompt(s, random.Random(0)).text
    assert text.count("<image>") == 1 and "<|im_end|>" not in text


def test_no_part_of_a_teachers_name_is_left_in_any_case_or_status():
    s = study([])
    s["trajectories"] = [
        {"teacher": "GPT-5", "text": "As gpt-5-NANO or Grok I see an effusion.", "status": "ok"},
        {"teacher": "GPT-5-nano", "text": "GPT-5 and GPT-5-nano see edema.", "status": "ok"},
        {"teacher": "Grok", "text": "", "status": "empty"},
    ]
    text = self_prompt(s, random.Random(0)).text.lower()
    assert not any(part in text for part in ("gpt", "nano", "grok")) and "effusion" in text and "edema" in text


def test_films_of_one_patient_are_drawn_apart():
    one, other = seven("s1"), seven("s2") | {"patient": "s1"}
    assert study_rng(one).random() != study_rng(other).random()
