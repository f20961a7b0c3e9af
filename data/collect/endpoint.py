"""One provider's client, and what its faults mean: ask again, stop the teacher, or give the request up."""

import email.utils
import json
import logging
import random
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2
import openai

from data.collect.classify import BrokenAnswer, is_filter_error
from data.collect.settings import Teacher

LONGEST_BACKOFF_S = 60
# A provider that asks for more (a daily quota) is not worth holding the run open for.
LONGEST_RETRY_AFTER_S = 600
REMOVED = "[key removed]"


@dataclass(eq=False)
class Fault(Exception):
    """A request that gave no answer.

    kind "again" may be retried, "stop" ends the teacher, "give_up" is about this request alone, "filtered" is the
    provider's content filter. billed: the provider may charge for it. raw: the response's text, key removed.
    """

    kind: str
    what: str
    billed: bool = False
    retry_after: float | None = None
    raw: str = ""


def make_client(teacher: Teacher, key: str | None) -> openai.AsyncOpenAI:
    """A client that never retries by itself, follows no redirect and sends no other provider's identifiers."""
    # With OPENAI_LOG=debug the client would print prompts and films.
    for name in ("openai", "httpx2", "httpcore2", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    http = openai.DefaultAsyncHttpxClient(
        # A redirect could carry films and key to another host than the one that was checked and attested.
        follow_redirects=False,
        # A proxy from the environment would take a loopback request off this machine.
        trust_env=not teacher.local,
        limits=httpx2.Limits(max_connections=teacher.concurrency + 4, max_keepalive_connections=teacher.concurrency),
    )
    client = openai.AsyncOpenAI(
        api_key=key or "none",
        base_url=teacher.base_url,
        max_retries=0,
        timeout=teacher.timeout_s,
        http_client=http,
    )
    if urlsplit(teacher.base_url).hostname != "api.openai.com":
        # The client takes them from OPENAI_ORG_ID and OPENAI_PROJECT_ID, whoever it talks to.
        client.organization = client.project = None
    return client


def without_key(text: str, key: str | None) -> str:
    """`text` without the key: some servers quote it in their error messages."""
    return text.replace(key, REMOVED) if key and len(key) >= 6 else text


def fault_of(error: Exception, teacher: Teacher, key: str | None) -> Fault:
    """Say what an exception of a request means; exceptions that are no fault of the endpoint are raised again."""
    if isinstance(error, openai.APIStatusError):
        return _status_fault(error, teacher, key)
    if isinstance(error, BrokenAnswer):
        return Fault("again", str(error), billed=True)
    if isinstance(error, (openai.APITimeoutError, TimeoutError)):
        return Fault("again", f"no answer within {teacher.timeout_s:g} s", billed=_was_sent(error))
    if isinstance(error, openai.APIConnectionError):
        cause = type(error.__cause__).__name__ if error.__cause__ else "connection error"
        return Fault("again", f"connection failed or was cut ({cause})", billed=_was_sent(error))
    if isinstance(error, (openai.APIError, json.JSONDecodeError)):
        return Fault("again", "the response could not be read", billed=True)
    raise error


def backoff(teacher: Teacher, attempt: int, retry_after: float | None) -> float:
    """Seconds before the next attempt: what the server asks for, or doubling from `backoff_s` with jitter, capped."""
    if retry_after is not None:
        return retry_after
    return min(LONGEST_BACKOFF_S, teacher.backoff_s * 2 ** (attempt - 1)) * random.uniform(0.75, 1.25)


def _status_fault(error: openai.APIStatusError, teacher: Teacher, key: str | None) -> Fault:
    status = error.status_code
    raw = without_key(error.response.text, key)
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    what = f"HTTP {status}{_code_of(body)}"
    if status == 400 and is_filter_error(body):
        return Fault("filtered", what, billed=True, raw=raw)
    if status in (401, 403):
        remedy = f"check the key in {teacher.key_env} and the account's access to {teacher.model!r}"
        return Fault("stop", f"{what}: the key was refused; {remedy}", raw=raw)
    if status == 402:
        return Fault("stop", f"{what}: the provider asks for payment", raw=raw)
    if status == 404:
        return Fault("stop", f"{what}: no such address or model; check base_url and model {teacher.model!r}", raw=raw)
    if 300 <= status < 400:
        return Fault(
            "stop", f"{what}: the address redirects, which is not followed; set base_url to its target", raw=raw
        )
    if status in (408, 409, 425, 429) or status >= 500:
        wait = _retry_after(error.response.headers)
        if wait is not None and wait > LONGEST_RETRY_AFTER_S:
            return Fault("stop", f"{what}: the provider asks to wait {wait:.0f} s; run again after that", raw=raw)
        # A gateway may give up on a request that the model behind it goes on to answer and bill.
        return Fault("again", what, billed=status in (408, 504), retry_after=wait, raw=raw)
    return Fault("give_up", what, raw=raw)


def _code_of(body: object) -> str:
    """Code or type of an error body. Its message is not shown: it may quote the prompt or part of the key."""
    error = body.get("error", body) if isinstance(body, dict) else None
    said = (error.get("code") or error.get("type")) if isinstance(error, dict) else None
    plain = str(said) if isinstance(said, (str, int)) else ""
    return f" {plain}" if plain and len(plain) <= 60 and plain.replace("_", "").replace(".", "").isalnum() else ""


def _retry_after(headers: httpx2.Headers) -> float | None:
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            wait = float(value) / unit
        except ValueError:
            moment = email.utils.parsedate_tz(value)
            if moment is None:
                continue
            wait = email.utils.mktime_tz(moment) - time.time()
        if wait == wait:  # "nan" parses as a float
            return max(0.0, wait)
    return None


def _was_sent(error: Exception) -> bool:
    cause = error.__cause__
    return not isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout))
