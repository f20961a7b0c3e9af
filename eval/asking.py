"""Asks a checkpoint the items of a benchmark and keeps the answers: films checked, resumable by item, sharded.

Answers lie in FOLDER/predictions.jsonl, one row an item in the benchmark's order: {"id", "text", "finish_reason"} or
{"id", "p_yes", "mass"}. A shard writes predictions.i-of-n.jsonl; the last one to finish joins them. What the answers
depend on stands beside each file as FILE.meta.json (`eval.predict`). Answers without films are in no_image.jsonl, one
row for each different question.

Which questions share a batch changes a number in its last digits, so it depends on neither shards nor interruptions:
the questions are cut into fixed blocks, batches never cross a block, and a shard takes every n-th block. Yes/no
questions about the same films stay in one batch, because they share their forward pass.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from data import manifest
from data.errors import Problems, UserError
from data.files import dump_line, read_jsonl, write_atomic
from data.images import decode_problem
from data.records import IMAGE_TAG
from eval import predict
from eval.items import Benchmark

Ask = Callable[[Sequence[tuple[str, Sequence[str]]]], list[dict]]  # (prompt, image paths) each -> answers
FITS = {"generate": predict.is_text, "yesno": predict.is_score}
NEEDS = {"generate": 'a string "text"', "yesno": '"p_yes" and "mass" from 0 to 1'}
BLOCK = 32  # questions, or (yes/no) groups of questions about the same films
PREDICTIONS, NO_IMAGE = "predictions", "no_image"


def with_films(benchmark: Benchmark, drop: bool = False) -> Benchmark:
    """The benchmark, all of whose films are there: without the items whose films are not (`drop`), which is noted.

    Raises UserError that lists the first missing films, or says that none is there.
    """
    problems = Problems(f"films of {benchmark.name}")
    bad = {path for path in _films(benchmark) if not _size(path)}
    for path in sorted(bad):
        problems.add(f"{path}: film is missing or empty; put it there, or leave its items out (--missing-films drop)")
    if not drop:
        problems.refuse()
    if not bad:
        return benchmark
    kept = tuple(item for item in benchmark.items if not bad & set(item.images))
    left_out = len(benchmark.items) - len(kept)
    if not kept:
        raise UserError(f"{benchmark.name}: not one item has its films ({problems.first[0]})")
    note = f"{left_out} of {len(benchmark.items)} items left out: {len(bad)} films are missing"
    fingerprint = benchmark.fingerprint | {"items_without_film": left_out}
    notes = (*benchmark.notes, note)
    return dataclasses.replace(benchmark, items=kept, notes=notes, fingerprint=fingerprint)


def digest_of(benchmark: Benchmark) -> str:
    """SHA-256 of all that the benchmark shows to a student: ids, prompts, and the films by name and size.

    Not by their bytes, which for the large sets would take longer than some runs.
    """
    sizes = {path: _size(path) for path in _films(benchmark)}
    digest = hashlib.sha256()
    for item in benchmark.items:
        films = [[os.path.basename(path), sizes[path]] for path in item.images]
        digest.update(json.dumps([item.id, item.prompt, films]).encode())
    return digest.hexdigest()


def rows_of(benchmark: Benchmark, image: bool = True) -> list[dict]:
    """What is asked, as {"id", "prompt", "images"}: the items, or (no image) the different questions among them."""
    if image:
        return [{"id": item.id, "prompt": item.prompt, "images": item.images} for item in benchmark.items]
    prompts = dict.fromkeys(without_tags(item.prompt) for item in benchmark.items)
    return [{"id": question_id(prompt), "prompt": prompt, "images": ()} for prompt in prompts]


def without_tags(prompt: str) -> str:
    """A prompt without its <image> tags and the blanks before them."""
    return re.sub(rf"\s*{IMAGE_TAG}", "", prompt).strip()


def question_id(prompt: str) -> str:
    return "question-" + hashlib.sha256(prompt.encode()).hexdigest()[:16]


def blocks(rows: Sequence[dict], kind: str, batch_size: int) -> list[list[list[dict]]]:
    """Blocks of batches of rows. A batch has up to `batch_size` rows or (yes/no) groups of rows with the same films."""
    groups: dict[object, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["images"] if kind == "yesno" and row["images"] else row["id"]), []).append(row)
    units = list(groups.values())
    out = []
    for start in range(0, len(units), BLOCK):
        block = units[start : start + BLOCK]
        batches = [block[at : at + batch_size] for at in range(0, len(block), batch_size)]
        out.append([[row for unit in batch for row in unit] for batch in batches])
    return out


def file_of(folder: Path, stem: str, shard: tuple[int, int] = (1, 1)) -> Path:
    i, n = shard
    return folder / (f"{stem}.jsonl" if n == 1 else f"{stem}.{i}-of-{n}.jsonl")


def clear(folder: Path, stem: str, shard: tuple[int, int] = (1, 1)) -> None:
    """Remove the answers of a shard, and the joined ones, which hold them too; those of other shards stay."""
    for path in {file_of(folder, stem, shard), file_of(folder, stem)}:
        path.unlink(missing_ok=True)
        manifest.sidecar(path).unlink(missing_ok=True)


def begun(folder: Path) -> bool:
    """Whether any shard has begun to write answers, with films or without."""
    return any(any(folder.glob(f"{stem}*")) for stem in (PREDICTIONS, NO_IMAGE))


def ask_all(
    rows: Sequence[dict],
    ask: Ask,
    folder: Path,
    stem: str,
    meta: dict,
    *,
    kind: str,
    batch_size: int,
    shard: tuple[int, int] = (1, 1),
    problems: list[str],
) -> list[dict] | None:
    """Ask what is not answered yet, join the shards when all are there, and return the answers in the order of `rows`.

    None as long as another shard is not finished; why one that is there does not count is added to `problems`. `ask` is
    called with (prompt, image paths) each, in batches whose composition depends on `rows` and `batch_size` alone.

    Raises UserError for answers made under other settings (`clear` removes them), or a film that the student would not
    see as it is.
    """
    _, n = shard
    whole = file_of(folder, stem)
    grid = blocks(rows, kind, batch_size)
    if n > 1 and whole.exists() and len(_done(whole, rows, meta, kind)) == len(rows):
        shard = (1, 1)  # joined before

    def answer(batch: Sequence[dict]) -> list[dict]:
        for path in dict.fromkeys(path for row in batch for path in row["images"]):
            problem = decode_problem(path)
            if problem:
                raise UserError(f"{path}: film {problem}; then run the same command again")
        return ask([(row["prompt"], row["images"]) for row in batch])

    def part_of(k: int, n: int) -> tuple[list[list[dict]], Path, dict]:
        """(batches, file, meta) of a shard."""
        mine = [batch for block in grid[k - 1 :: n] for batch in block]
        return mine, file_of(folder, stem, (k, n)), meta if n == 1 else meta | {"shard": f"{k}/{n}"}

    batches, out, settings = part_of(*shard)
    predict.answer_batches(batches, answer, out, settings, fits=FITS[kind])
    if shard != (1, 1):
        parts = []
        for k in range(1, n + 1):
            batches, out, settings = part_of(k, n)
            part = [row for batch in batches for row in batch]
            parts += [(out, part, settings)] if part else []
        # All are looked at: each says what is wrong with it.
        if not all([finished(path, part, settings, kind, problems) for path, part, settings in parts]):
            return None
        found = {row["id"]: row for path, part, _ in parts for row in read(path, part, kind)}
        write_atomic(manifest.sidecar(whole), json.dumps(meta, indent=2) + "\n")
        order = [row for block in grid for batch in block for row in batch]
        write_atomic(whole, b"".join(dump_line(found[row["id"]]) for row in order))
    return read(whole, rows, kind)


def read_given(path: Path, benchmark: Benchmark) -> list[dict]:
    """Answers of any model from a file, in the order of the items; UserError unless it has exactly their ids."""
    return read(path, rows_of(benchmark), benchmark.kind)


def read_given_without_films(path: Path, benchmark: Benchmark) -> list[dict]:
    """Answers to the questions alone, one an item: from a file with the ids of the items, or of the questions, as
    evaluating a checkpoint writes it."""
    questions = rows_of(benchmark, image=False)
    first = next(iter(read_jsonl(path)), (0, None))[1]
    if not isinstance(first, dict) or first.get("id") not in {row["id"] for row in questions}:
        return read_given(path, benchmark)
    return of_items(benchmark, read(path, questions, benchmark.kind))


def of_items(benchmark: Benchmark, answers: Sequence[dict]) -> list[dict]:
    """The answer to its question for every item; `answers` as those of `rows_of(benchmark, image=False)`."""
    by_id = {row["id"]: row for row in answers}
    return [by_id[question_id(without_tags(item.prompt))] for item in benchmark.items]


def read(path: Path, rows: Sequence[dict], kind: str) -> list[dict]:
    ids = [row["id"] for row in rows]
    check = "score it with the benchmark, options and --limit that it was made for"
    return predict.read_answers(path, ids, fits=FITS[kind], needs=NEEDS[kind], what="items", check=check)


def finished(path: Path, rows: Sequence[dict], meta: dict, kind: str, problems: list[str]) -> bool:
    """Whether a file holds an answer to each of `rows` under these settings.

    One of other settings does not count, which is added to `problems`.
    """
    try:
        return path.exists() and len(_done(path, rows, meta, kind)) == len(rows)
    except UserError as error:
        problems.append(str(error))
        return False


def _done(path: Path, rows: Sequence[dict], meta: dict, kind: str) -> set[str]:
    return predict.open_predictions(path, meta, rows, fits=FITS[kind])


def _films(benchmark: Benchmark) -> dict[str, None]:
    return dict.fromkeys(path for item in benchmark.items for path in item.images)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path) if os.path.isfile(path) else 0
    except OSError:
        return 0
