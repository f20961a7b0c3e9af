"""Texts of a source: cleaned, and their status by text and finish reason."""

import pytest

from data.cxr_status import status_of, unknown_reason
from data.findings import is_refusal


@pytest.mark.parametrize(
    ("text", "finish", "status"),
    [
        ("Small left effusion.", None, "ok"),
        ("Small left effusion.", "stop", "ok"),
        ("Small left eff", "length", "truncated"),
        ("As an AI, I'm not capable of interpreting medical images.", "stop", "refused"),
        (" \n", None, "empty"),
        ("Cut", "content_filter", "filtered"),
    ],
)
def test_status(text, finish, status):
    assert status_of(text, finish) == status


@pytest.mark.parametrize(
    ("finish", "status"),
    [
        ("LENGTH", "truncated"),
        ("MAX_TOKENS", "truncated"),
        ("max_len", "truncated"),
        ("max_context", "truncated"),
        ("time_limit", "truncated"),
        ("model_context_window_exceeded", "truncated"),
        ("network_error", "truncated"),
        ("sensitive", "filtered"),
        ("SAFETY", "filtered"),
        ("recitation", "filtered"),
        ("FinishReason.PROHIBITED_CONTENT", "filtered"),
        ("Refusal", "refused"),
        ("FinishReason.STOP", "ok"),
        ("eos_token", "ok"),
        (float("nan"), "ok"),
        (" ", "ok"),
    ],
)
def test_finish_reasons_in_any_case(finish, status):
    assert status_of("Small left eff", finish) == status and unknown_reason(finish) is None


@pytest.mark.parametrize(
    ("finish", "named"),
    [("a_reason.of-next:year", "a_reason.of-next:year"), (7, "7"), ("Small left effusion.", "other")],
)
def test_a_reason_that_is_not_known_is_truncated_and_named(finish, named):
    assert status_of("Small left eff", finish) == "truncated" and unknown_reason(finish) == named


REFUSALS = [
    "I'm unable to read this.",
    "I\u2019m sorry.",
    "I am not a doctor.",
    "I am an AI.",
    "I cannot interpret films.",
    "I can not help.",
    "I can\u2019t view images.",
    "I\u00a0cannot diagnose.",
    "I won't analyze it.",
    "I do not have the ability to.",
    "I don't provide diagnoses.",
    "I could not access it.",
    "It is not able to process images.",
    "This tool is unable to evaluate it.",
    "It is not qualified to diagnose.",
    "Not capable of interpreting.",
    "Please consult a qualified medical professional.",
    "As an AI, no.",
]


def test_every_form_of_refusal_is_one():
    assert all(map(is_refusal, REFUSALS))
