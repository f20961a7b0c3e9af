"""Every kind of response that a vendor may send is told from a complete answer."""

import json
from pathlib import Path

import pytest

from data.collect.classify import BrokenAnswer, classify, is_filter_error, parse_body, same_model, usage_of
from data.files import read_jsonl
from tests.data.collect_server import EFFUSION, completion, error

CASE = Path(__file__).resolve().parents[2].parent / "shared/data/cxr_max_case/trajectories.jsonl"
SORRY = "I'm sorry, but I can't interpret medical images. Please consult a radiologist."


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (completion(), "ok"),
        (completion(finish="end_turn"), "ok"),
        (completion([{"type": "text", "text": EFFUSION}]), "ok"),
        (completion(finish="length"), "truncated"),
        (completion(finish="max_len"), "truncated"),
        (completion(finish="time_limit"), "truncated"),
        (completion(finish=None), "truncated"),
        (completion(finish="a reason of next year"), "truncated"),
        (completion(finish="content_filter"), "filtered"),
        (completion(finish="sensitive"), "filtered"),
        (completion(finish="SAFETY"), "filtered"),
        (completion("", finish="IMAGE_SAFETY"), "filtered"),
        ({"choices": [], "promptFeedback": {"blockReason": "SAFETY"}}, "filtered"),
        ({"choices": []}, "empty"),
        ({"choices": None}, "empty"),
        (completion("  \n"), "empty"),
        (completion(None), "empty"),
        (completion("", finish="length"), "empty"),
        (completion("", finish="length", reasoning_content="long thoughts"), "empty"),
        (completion("", finish="refusal"), "refused"),
        (completion(None, refusal="I can't help with that."), "refused"),
        (completion(SORRY), "refused"),
        (completion("I am not a doctor, but: " + EFFUSION), "ok"),
        (completion("<|image_pad|>"), "empty"),
    ],
)
def test_status(body, status):
    assert classify(body).status == status


def test_a_provider_refusal_keeps_its_words():
    assert classify(completion(None, refusal="I can't help with that.")).text == "I can't help with that."


def test_a_broken_answer_is_not_taken_for_a_complete_one():
    with pytest.raises(BrokenAnswer):
        classify(completion(finish="network_error"))
    for raw in ("", "<html>", "[1]", '{"error": {"code": "x"}}', '{"choices": ['):
        with pytest.raises(BrokenAnswer):
            parse_body(raw)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<|begin_of_box|>Effusion.<|end_of_box|>", "Effusion."),
        ("<im<image>age> Effusion.\0", "Effusion."),
        (" a\ud800b ", "a?b"),
    ],
)
def test_what_no_record_may_hold_is_taken_out(text, kept):
    judged = classify(completion(text))
    assert (judged.text, judged.detail) == (kept, "special tokens taken out")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (error("content_filter"), True),
        (error(None, kind="content_filter"), True),
        (error("data_inspection_failed"), True),
        ({"code": "DataInspectionFailed", "message": "x"}, True),
        ({"error": {"code": "bad", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}, True),
        (error("unsupported_parameter", "content_filter is not a parameter"), False),
        ("content_filter", False),
        (None, False),
    ],
)
def test_filter_errors(body, expected):
    assert is_filter_error(body) is expected


def test_reasoning_that_only_the_total_counts_is_billed_as_output():
    told = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 100}
    assert usage_of({"usage": told}) == (10, 90)
    assert usage_of({"usage": {**told, "total_tokens": None}}) == (10, 5)
    for usage in (
        None,
        {},
        {"prompt_tokens": "10", "completion_tokens": 5},
        {"prompt_tokens": -1, "completion_tokens": 5},
    ):
        assert usage_of({"usage": usage}) is None


@pytest.mark.parametrize(
    ("asked", "echoed", "same"),
    [
        ("gpt-5-nano", "gpt-5-nano-2025-08-07", True),
        ("gemini-2.5-flash-lite", "models/gemini-2.5-flash-lite", True),
        ("grok-4", "grok-4-0709", True),
        ("claude-sonnet-4", "claude-sonnet-4-20250514", True),
        ("grok-4", "grok-4.3", False),
        ("claude-sonnet-4", "claude-sonnet-4-5-20250929", False),
        ("claude-opus-4", "claude-opus-4-1", False),
        ("grok-4", "grok-4-0799", False),
        ("grok-4", "grok-4-20251309", False),
        ("gpt-5", "gpt-5-nano", False),
        ("qwen-vl-max", "qwen-vl-plus", False),
    ],
)
def test_same_model(asked, echoed, same):
    assert same_model(asked, echoed) is same


def test_published_case():
    if not CASE.exists():
        pytest.skip(f"{CASE} is not there: the published case is not part of this repository")
    found = {
        row["teacher"]: classify(json.loads(json.dumps(completion(row["trajectory"])))) for _, row in read_jsonl(CASE)
    }
    refused = [name for name, verdict in found.items() if verdict.status == "refused"]
    assert len(found) == 7
    assert [name for name in refused if "oonshot" in name] == refused
    assert len(refused) == 1
    assert {verdict.status for verdict in found.values()} == {"ok", "refused"}


def test_white_space_alone_is_no_change_and_a_change_is_told():
    judged = classify(completion("  Effusion. "))
    assert (judged.text, judged.detail) == ("Effusion.", None)
    assert classify(completion(f" {EFFUSION} ")).detail is None
    assert classify(completion(f"<|begin_of_box|>{EFFUSION}")).detail == "special tokens taken out"


def test_further_forms_of_answers():
    parts = [{"type": "text", "text": "Left "}, {"type": "image"}, {"type": "text", "text": "effusion."}]
    assert classify(completion(parts)).text == "Left effusion."
    assert {classify(completion(finish=f)).status for f in ("eos", "stop_sequence", "STOP")} == {"ok"}
    assert classify({"choices": [], "detail": "prohibited_content"}).status == "filtered"
    assert parse_body(json.dumps(completion() | {"error": {"code": "late"}}))["choices"]
    assert is_filter_error(error("1301"))
    told = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 12}
    assert usage_of({"usage": told}) == (10, 5), "a total that is too small takes nothing off"
    assert not same_model("gpt-4", "gpt-41") and not same_model("gpt-5", "gpt-5.")
