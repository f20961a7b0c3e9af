"""What each teacher's log says of its batches at a provider: planned, uploaded, submitted, read back or dropped."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from data.collect.settings import Teacher
from data.collect.store import Store
from data.errors import Problems, UserError
from data.files import read_jsonl


@dataclass
class Batch:
    """One batch: `requests` maps each key to its study, `worst` to what it may cost at most. base_url: where it is."""

    name: str
    base_url: str | None
    requests: dict[str, str] = field(default_factory=dict)
    worst: dict[str, float] = field(default_factory=dict)
    file_id: str | None = None
    batch_id: str | None = None

    @property
    def at_most(self) -> float:
        return sum(self.worst.values())


def open_batches(path: Path) -> list[Batch]:
    """Batches that a teacher's state file says are at a provider, not read back yet.

    One that was planned and never uploaded is none: nothing was paid, and its films are planned anew if asked for.
    """
    found: dict[str, Batch] = {}
    if path.exists():
        for line, row in read_jsonl(path, torn="drop"):
            try:
                name, event = row["batch"], row["event"]
                if event == "planned":
                    found[name] = Batch(name, row.get("base_url"), row["requests"], _worst(row))
                elif event == "uploaded":
                    found[name].file_id = row["file_id"]
                elif event == "submitted":
                    found[name].batch_id = row["batch_id"]
                else:
                    del found[name]
            except (KeyError, TypeError):
                raise UserError(f"{path}:{line}: no row of a batch log; restore the file or remove that line") from None
    return [batch for batch in found.values() if batch.file_id is not None]


def _worst(row: dict) -> dict[str, float]:
    """What each request of a "planned" row may cost; logs of earlier versions hold the sum, which is spread evenly."""
    requests, worst = row["requests"], row["worst"]
    return worst if isinstance(worst, dict) else dict.fromkeys(requests, worst / max(len(requests), 1))


def keys_in(batches: Iterable[Batch]) -> set[str]:
    return {key for batch in batches for key in batch.requests}


def refuse_elsewhere(teachers: Iterable[Teacher], store: Store) -> None:
    """Refuse to leave a batch behind at an address that is no longer its teacher's.

    Raises:
        UserError: names every such log, batch, both addresses, remedy.
    """
    problems = Problems(store.folder)
    for teacher in teachers:
        path = store.path("batches", teacher.name)
        for batch in open_batches(path):
            # Logs of earlier versions name no address: reading back sends no film, and a wrong one answers 404.
            if batch.base_url is not None and batch.base_url.rstrip("/") != teacher.base_url.rstrip("/"):
                problems.add(
                    f"{path}: batch {batch.batch_id or batch.name} of teacher {teacher.name!r} is at {batch.base_url}, "
                    f"not at {teacher.base_url}, and may be paid for: set base_url back to read it back, or, if it is "
                    f"gone for good, take the lines of {batch.name} out of that file"
                )
    problems.refuse()


def held_by_batches(store: Store) -> float:
    """What all batches that are not read back may cost at most, also those of teachers that are not asked now."""
    paths = sorted(store.folder.glob("batches/*.jsonl"))
    return sum(batch.at_most for path in paths for batch in open_batches(path))
