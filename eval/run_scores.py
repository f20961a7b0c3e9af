"""Scores the answers to one benchmark: its rows and notes for results.json, and per_item.jsonl beside the answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from data.files import dump_line, write_atomic
from eval import benchmarks
from eval.items import Benchmark


def answers_to(kept: Benchmark, asked: Benchmark, answers: Sequence[dict] | None) -> list[dict] | None:
    """Those of the answers that are to items of `kept`, in its order."""
    if answers is None:
        return None
    by_id = {item.id: answer for item, answer in zip(asked.items, answers, strict=True)}
    return [by_id[item.id] for item in kept.items]


def score_benchmark(
    benchmark: Benchmark, asked: Mapping, folder: Path, decoding: dict, *, name: str, seed: int, resamples: int
) -> dict:
    """Score one benchmark and write its per_item.jsonl; returns its entry of results.json."""
    module = benchmarks.module_of(benchmark.name)
    draw = {"seed": seed, "resamples": resamples}
    scored = module.score(benchmark, asked["answers"], **draw)
    rows = [row if row.get("baseline") else row | {"name": named(row, name)} for row in scored["rows"]]
    notes = [*benchmark.notes, *answer_notes(asked["answers"], decoding), *scored["notes"]]
    if asked["no_image"] is not None:
        blind = module.score(benchmark, asked["no_image"], **draw)
        extra = [row | {"name": f"{named(row, name)}, no image"} for row in blind["rows"] if not row.get("baseline")]
        at = max(i for i, row in enumerate(rows) if not row.get("baseline")) + 1
        rows[at:at] = extra
        notes += [f"no image: {note}" for note in blind["notes"] if note not in scored["notes"]]
    elif any(item.images for item in benchmark.items):
        notes.append("no no-image row: the answers without films were not given or not asked for")
    else:
        notes.append("no no-image row: the questions have no films")
    patients = {item.id: item.patient for item in benchmark.items}
    lines = [dump_line({"id": one["id"], "patient": patients[one["id"]], **one}) for one in scored["per_item"]]
    per_item = folder / "per_item.jsonl"
    write_atomic(per_item, b"".join(lines))
    return {
        "kind": benchmark.kind,
        "protocol": benchmark.protocol,
        "fingerprint": benchmark.fingerprint,
        "decoding": decoding,
        "n": len(benchmark.items),
        "patients": len(set(patients.values())),
        "rows": rows,
        "per_item_file": f"{folder.name}/{per_item.name}",
        "notes": notes,
    }


def named(row: Mapping, name: str) -> str:
    """The row's name with the checkpoint's in place of "student"."""
    return row["name"].replace("student", name, 1)


def answer_notes(answers: Sequence[Mapping], decoding: Mapping) -> list[str]:
    """What must be said of text answers: how many were cut off, how many are empty."""
    cut = sum(one.get("finish_reason") == "length" for one in answers)
    empty = sum("text" in one and not one["text"].strip() for one in answers)
    limit = f" at {decoding['max_new_tokens']} tokens" if "max_new_tokens" in decoding else ""
    notes = [f"{cut} of {len(answers)} answers were cut off{limit} and are read as far as they go"] if cut else []
    return notes + ([f"{empty} of {len(answers)} answers are empty"] if empty else [])
