"""Answers on disk: one file a teacher, one append a finished answer, each flushed before the next step.

STORE/answers/NAME.jsonl    every answer with its raw response, keyed by a hash of all that it depends on
STORE/failures/NAME.jsonl   attempts that gave none, with what they may have cost
STORE/batches/NAME.jsonl    batches at a provider that are under way or read back
STORE/films.jsonl           cache of film hashes
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from data.collect.settings import Teacher
from data.errors import UserError
from data.files import append_jsonl, exclusive, read_jsonl
from data.records import STATUSES


class Answer(NamedTuple):
    """A stored answer. status, text, finish, detail, echoed as in classify.Verdict; cost in the budget's currency.

    usage_told is False where the provider did not say how many tokens it billed: tokens and cost are then upper bounds.
    """

    key: str
    status: str
    text: str
    finish: str | None
    detail: str | None
    echoed: str | None
    tokens_in: int
    tokens_out: int
    cost: float
    usage_told: bool


def answer_key(teacher: Teacher, prompt: str, films: list[str]) -> str:
    """SHA-256 over teacher, model, prompt text, hashes of the films as sent and decoding settings."""
    basis = {
        "teacher": teacher.name,
        "model": teacher.model,
        "prompt": prompt,
        "films": films,
        "decoding": teacher.decoding,
    }
    return hashlib.sha256(json.dumps(basis, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


class Store:
    """Reads what is there once, then appends. `spent` is what all answers and failed attempts in it cost, `failed` the
    (batch, key) of requests in batches that were noted as failed."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.answers: dict[str, dict[str, Answer]] = {}
        self.spent = 0.0
        self.failed: set[tuple[str, str]] = set()
        for path in sorted(self.folder.glob("answers/*.jsonl")):
            for line, row in read_jsonl(path, torn="drop"):
                answer = _answer(row, f"{path}:{line}")
                self.spent += answer.cost
                # The first stays: a later one under the same key would change a result that was already used.
                self.answers.setdefault(row["teacher"], {}).setdefault(answer.key, answer)
        for path in sorted(self.folder.glob("failures/*.jsonl")):
            for line, row in read_jsonl(path, torn="drop"):
                if not isinstance(row, dict) or not isinstance(row.get("cost"), (int, float)):
                    raise UserError(f"{path}:{line}: no row of a failure log; restore the file or remove that line")
                self.spent += row["cost"]
                if "batch" in row:
                    self.failed.add((str(row["batch"]), str(row.get("key"))))

    def get(self, teacher: str, key: str) -> Answer | None:
        return self.answers.get(teacher, {}).get(key)

    def add(self, teacher: Teacher, study: str, answer: Answer, raw: str, **more: object) -> None:
        """Append a finished answer; on return it is on disk."""
        row = {
            **answer._asdict(),
            "teacher": teacher.name,
            "model": teacher.model,
            "study": study,
            "at": now(),
            **more,
            "raw": raw,
        }
        append_jsonl(self.path("answers", teacher.name), row)
        self.answers.setdefault(teacher.name, {})[answer.key] = answer

    def fail(self, teacher: Teacher, study: str, key: str, *, cost: float, **more: object) -> None:
        """Append an attempt that gave no answer; `cost` is what it may have cost at most."""
        row = {"key": key, "teacher": teacher.name, "study": study, "cost": cost, "at": now(), **more}
        append_jsonl(self.path("failures", teacher.name), row)

    def path(self, kind: str, teacher: str) -> Path:
        return self.folder / kind / f"{file_name(teacher)}.jsonl"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store for this process.

        Raises:
            UserError: another run holds it: two would ask (and pay for) the same films twice.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with exclusive(
            self.folder / ".lock", f"{self.folder}: another run is using this store; wait for it or stop it"
        ):
            yield


def file_name(teacher: str) -> str:
    """A teacher's name as a file name; a hash keeps apart what would otherwise fall together."""
    plain = re.sub(r"[^a-z0-9._-]", "_", teacher.lower())[:80].lstrip(".")
    if plain == teacher:
        return plain
    return f"{plain}-{hashlib.sha256(teacher.encode()).hexdigest()[:8]}"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _answer(row: object, where: str) -> Answer:
    if not (
        isinstance(row, dict)
        and {"teacher", *Answer._fields} <= row.keys()
        and all(isinstance(row[name], str) for name in ("teacher", "key", "text"))
        and all(isinstance(row[name], (int, float)) for name in ("tokens_in", "tokens_out", "cost"))
        and row["status"] in STATUSES
    ):
        raise UserError(f"{where}: no row of an answer store; restore the file or choose another store")
    return Answer(**{name: row[name] for name in Answer._fields})
