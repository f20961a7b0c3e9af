"""What kind of answer a response is: ok, truncated, filtered, refused or empty. And what it cost in tokens.

A reason (data/answers.py) that is not known to mean a complete answer is never taken for one.
"""

import json
from typing import Any, NamedTuple

from data.answers import SNAPSHOT, ended
from data.findings import is_refusal
from data.records import clean

# Codes and types of an HTTP 400 that mean the provider's filter, not a mistake in the request.
FILTER_CODES = {
    "content_filter",
    "content_policy_violation",
    "responsibleaipolicyviolation",
    "data_inspection_failed",
    "datainspectionfailed",
    "1301",
}


class BrokenAnswer(Exception):
    """HTTP 200, but no answer: not JSON, an error object, or declared broken. Worth asking again."""


class Verdict(NamedTuple):
    """status as in the study record; text cleaned for it; detail says why, where it is not ok or was changed."""

    status: str
    text: str
    finish: str | None
    detail: str | None
    echoed: str | None


class Usage(NamedTuple):
    """Tokens as billed; None: the provider did not say."""

    tokens_in: int
    tokens_out: int


def parse_body(raw: str) -> dict:
    """The JSON object of a response.

    Raises:
        BrokenAnswer: no JSON object, or one that only holds an error.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise BrokenAnswer("the response is not JSON") from None
    if not isinstance(body, dict):
        raise BrokenAnswer("the response is not a JSON object")
    if body.get("error") and not body.get("choices"):
        raise BrokenAnswer("the response holds an error under HTTP 200")
    return body


def classify(body: dict) -> Verdict:
    """Judge a chat completion.

    Raises:
        BrokenAnswer: the provider declares the answer broken (Zhipu's `network_error`).
    """
    echoed = body.get("model") if isinstance(body.get("model"), str) and body["model"] else None
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    if choice is None:
        blocked = _says_blocked(body)
        return Verdict("filtered" if blocked else "empty", "", None, "no choice in the response", echoed)
    message = choice.get("message") if isinstance(choice.get("message"), dict) else {}
    finish = choice.get("finish_reason") if isinstance(choice.get("finish_reason"), str) else None
    meaning = ended(finish or "")
    text, changed = clean(_text_of(message.get("content")))  # GLM boxes its answers in special tokens
    text = text.strip()
    refusal = message.get("refusal")
    if meaning == "broken":
        raise BrokenAnswer(f"finish_reason {finish.lower()}")
    if meaning == "filtered":
        return Verdict("filtered", text, finish, None, echoed)
    if meaning == "refused" or (isinstance(refusal, str) and refusal.strip()):
        return Verdict("refused", text or clean(str(refusal or ""))[0].strip(), finish, "by the provider", echoed)
    if not text:
        used_up = "reasoning may have used up max_tokens" if finish and finish.lower() == "length" else None
        return Verdict("empty", "", finish, used_up, echoed)
    if meaning != "complete":
        return Verdict("truncated", text, finish, None, echoed)
    if is_refusal(text):
        return Verdict("refused", text, finish, "by its text", echoed)
    return Verdict("ok", text, finish, "special tokens taken out" if changed else None, echoed)


def is_filter_error(body: Any) -> bool:
    """Whether the body of an HTTP 400 says that the provider's content filter refused the request."""
    error = body.get("error", body) if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return False
    inner = error.get("innererror") if isinstance(error.get("innererror"), dict) else {}
    said = (error.get("code"), error.get("type"), inner.get("code"))
    return any(str(one).lower() in FILTER_CODES for one in said if one is not None)


def usage_of(body: dict) -> Usage | None:
    """Billed tokens, reasoning included, or None when the response does not tell them."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    told, made, total = (usage.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
    if not _count(told) or not _count(made):
        return None
    # xAI and Gemini count reasoning only in the total; it is billed as output all the same.
    return Usage(told, max(made, total - told) if _count(total) else made)


def same_model(asked: str, echoed: str) -> bool:
    """Whether the model named in a response is the one asked for, or a dated snapshot of it; a successor is not."""
    plain = echoed.removeprefix("models/").rsplit("/", 1)[-1].lower()
    asked = asked.removeprefix("models/").rsplit("/", 1)[-1].lower()
    rest = plain.removeprefix(asked)
    return plain.startswith(asked) and (not rest or SNAPSHOT.fullmatch(rest) is not None)


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(part for part in parts if isinstance(part, str))
    return ""


def _says_blocked(body: dict) -> bool:
    told = json.dumps({key: value for key, value in body.items() if key != "choices"}).lower()
    return any(word in told for word in ("blockreason", "block_reason", "content_filter", "prohibited_content"))


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
