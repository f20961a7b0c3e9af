"""The `self` strategy of compare: prompts, the student's answers, and the rows that keep what is finished."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from apo.compare_files import store_of
from apo.consensus import STRATEGIES, Answer
from apo.self_prompt import SelfPrompt, self_prompt
from data import checkpoints
from data.draws import study_rng
from data.errors import UserError
from data.files import append_jsonl, read_jsonl, sha256_file
from data.records import PLACEHOLDER, image_paths
from scripts import machine

Write = Callable[[Sequence[tuple[str, Sequence[str]]]], list[tuple[str, str]]]
Engine = tuple[Write, Callable[[str, Sequence[str]], int], int]  # write, a prompt's tokens, and their maximum
FINISHED, FAILED = {"id", "key", "text", "order", "dropped"}, {"id", "key", "failure"}  # what a row of the store holds


def self_answers(
    studies: Sequence[dict],
    *,
    root: str,
    store: Path,
    settings: dict,
    seed: int,
    batch_size: int,
    student: Callable[[], Engine],
    keep_cut_off: bool = False,
    keep_failures: bool = False,
    made: Path | None = None,
) -> Iterator[Answer]:
    """Prompts, generates and stores row by row; yields one Answer a study, in order.

    Args:
        root: absolute image root.
        store: JSONL of finished rows, read for resuming and appended to.
        settings: everything besides prompt and films that an answer depends on (JSON).
        student: called once, and only if something is left to generate: (write, length, limit), where write maps
            (prompt, image paths) to (text, finish_reason), length counts a prompt's tokens and limit is their maximum.
        keep_cut_off: take texts that ran into the token limit instead of counting them as failed.
        keep_failures: store failures, too: where nothing is drawn, asking again gives the same.
        made: JSONL of further finished rows, of these and other studies, which is only read.
    """
    studies = list(studies)
    keys = _keys(studies, root, settings, seed)
    rows = _stored(keys, store, made)
    asked = [study for study in studies if study["id"] in keys]
    left = {study["id"] for study in asked if study["id"] not in rows}
    # What shares a batch changes a text now and then (by its rounding), so it must not depend on interruptions: the
    # batches are cut once, and one that lacks an answer is asked as a whole.
    grid = [asked[at : at + batch_size] for at in range(0, len(asked), batch_size)]
    grid = [batch for batch in grid if any(study["id"] in left for study in batch)]
    if grid:
        engine = student()
        start = time.monotonic()
        new = 0
        for batch in grid:
            for row in _ask(batch, keys, root, seed, engine, keep_cut_off):
                if row["id"] not in left:
                    continue
                rows[row["id"]] = row
                new += 1
                if keep_failures or "failure" not in row:
                    append_jsonl(store, row)
            seconds = time.monotonic() - start
            to_go = seconds / new * (len(left) - new)
            print(f"self: {new}/{len(left)} studies, {seconds:.0f} s, about {to_go:.0f} s left", flush=True)
    for study in studies:
        row = rows.get(study["id"], {})
        if "text" in row:
            yield Answer(SelfPrompt("", row["order"], row["dropped"]), row["text"], None)
        else:
            yield Answer(None, None, row.get("failure"))


def _keys(studies: Sequence[dict], root: str, settings: dict, seed: int) -> dict[str, str]:
    """{study id: digest of all that its answer depends on} of the studies that the student can be asked about."""
    basis = json.dumps(settings, sort_keys=True)
    keys = {}
    for study in studies:
        whole = self_prompt(study, study_rng(study, seed))
        if whole is not None:
            films = [sha256_file(path) for path in image_paths(study, root)]
            keys[study["id"]] = hashlib.sha256(json.dumps([basis, whole.text, films]).encode()).hexdigest()
    return keys


def _stored(keys: dict[str, str], store: Path, made: Path | None) -> dict[str, dict]:
    """{study id: its row} of what both files hold under these keys; prints how many, and how many under others."""
    rows, other = {}, 0
    for path in (store, made):
        for line, row in read_jsonl(path, torn="drop") if path and path.exists() else ():
            if not isinstance(row, dict) or not any(kind <= row.keys() for kind in (FINISHED, FAILED)):
                raise UserError(f"{path}:{line}: not a row of a compare run; remove the file or choose another --out")
            if keys.get(row["id"]) == row["key"]:
                rows[row["id"]] = row
            else:
                other += path == store or row["id"] in keys
    if rows or other:
        note = f" ({other} of other settings or studies not used)" if other else ""
        print(f"resuming: {len(rows)} of {len(keys)} answers are there already{note}", flush=True)
    return rows


def _ask(
    batch: Sequence[dict], keys: dict[str, str], root: str, seed: int, engine: Engine, keep_cut_off: bool
) -> Iterator[dict]:
    """One batch: a row of the store for each of its studies, finished or failed."""
    write, length, limit = engine
    asked: list[tuple[dict, SelfPrompt, list[str]]] = []
    for study in batch:
        row = {"id": study["id"], "key": keys[study["id"]]}
        images = image_paths(study, root)
        prompt = self_prompt(study, study_rng(study, seed), length=partial(length, images=images), limit=limit)
        if prompt is None:
            yield row | {"failure": "too long with a single trajectory"}
        else:
            asked.append((row, prompt, images))
    texts = write([(prompt.text, images) for _, prompt, images in asked]) if asked else []
    if len(texts) != len(asked):
        raise RuntimeError(f"{len(texts)} answers to {len(asked)} prompts")
    for (row, prompt, _), (text, finish) in zip(asked, texts, strict=True):
        if failure := _failure(text, finish, keep_cut_off):
            yield row | {"failure": failure}
        else:
            yield row | {"text": text.strip(), "order": prompt.order, "dropped": prompt.dropped}


def _failure(text: str, finish: str, keep_cut_off: bool) -> str | None:
    """Why a text cannot be a consensus, None if it can."""
    if finish == "length" and not keep_cut_off:  # a positive that stops in mid-sentence would teach just that
        return "cut off at --max-new-tokens"
    if not text.strip():
        return "empty"
    if PLACEHOLDER.search(text) or "\0" in text:  # no study record may hold one
        return "a special token in the text"
    return None


def run_self(args, info: dict, studies: list[dict], root: str, failed: Counter) -> list[dict | None]:
    """The `self` strategy with the student of `info`; counts failed generations by reason in `failed`."""
    device = args.device or machine.default_device()

    def student():
        from apo.student_engine import Student

        one = Student(info, backend=args.backend, device=device, batch_size=args.batch_size)
        limit = min(args.max_length or one.max_length, one.max_length) - args.max_new_tokens
        if limit < 1:
            raise UserError(f"--max-new-tokens {args.max_new_tokens}: leaves no room for a prompt; lower it")
        write = partial(one.answer, max_new_tokens=args.max_new_tokens, temperature=args.temperature, seed=args.seed)
        return write, one.length, limit

    settings = {
        "checkpoint": checkpoints.fingerprint(args.checkpoint, args.base),
        "seed": args.seed,
        "temperature": args.temperature,
        "max_new_tokens": args.max_new_tokens,
        "max_length": args.max_length,
        "cut_off": args.cut_off,
        "backend": args.backend,
        "dtype": "bfloat16" if device == "cuda" else "float32",
    }

    def answer(studies: Sequence[dict]) -> Iterator[Answer]:
        for one in self_answers(
            studies,
            root=root,
            store=store_of(args.out),
            settings=settings,
            seed=args.seed,
            batch_size=args.batch_size,
            student=student,
            keep_cut_off=args.cut_off == "keep",
            keep_failures=args.temperature == 0,
            made=args.made,
        ):
            if one.failure:
                failed[one.failure] += 1
            yield one

    return STRATEGIES["self"](studies, answer=answer)
