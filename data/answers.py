"""What a provider's answer says of itself, in a response and in a table of responses alike: why it ended, which model.

The reasons were read from vendors' SDKs and pages: "refusal" (Anthropic), "sensitive" and "network_error" (Zhipu),
"max_len", "max_context", "time_limit" (xAI), SAFETY and its like (Gemini), COMPLETE (Cohere), "eos_token" (TGI).
"""

import re

ENDED = {
    "complete": ("stop", "end_turn", "eos", "eos_token", "stop_sequence", "complete", "completed"),
    "truncated": ("length", "max_tokens", "max_len", "max_context", "time_limit", "model_context_window_exceeded"),
    "filtered": ("content_filter", "sensitive", "safety", "recitation", "blocklist", "prohibited_content", "spii"),
    "refused": ("refusal",),
    "broken": ("network_error",),
}
_MEANING = {reason: meaning for meaning, reasons in ENDED.items() for reason in reasons}
# What a vendor hangs on a model's name for a snapshot of it: -MMDD, -YYYYMMDD or -YYYY-MM-DD. -4-5 is a successor.
_MONTH, _DAY = "(?:0[1-9]|1[0-2])", "(?:0[1-9]|[12][0-9]|3[01])"
SNAPSHOT = re.compile(rf"-(?:(?:20[0-9]{{2}})?{_MONTH}{_DAY}|20[0-9]{{2}}-{_MONTH}-{_DAY})(?![0-9])")


def ended(reason: str) -> str | None:
    """What a finish reason, in any case, means: a key of ENDED, or None for one that is not known.

    One that is not known to mean a complete answer is never to be taken for it.
    """
    reason = reason.lower().removeprefix("finishreason.")  # as Python writes Gemini's enum
    return "filtered" if reason.startswith(("content_filter", "image_")) else _MEANING.get(reason)
