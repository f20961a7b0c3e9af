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
FINISHED, FAILED = {"id", "key", "text", "order", "dropped"}, {"id", "key", "failure"}  # what a row of the store holds


def self_answers(
    studies: Sequence[dict],
    *,
    root: str,
    store: Path,
    settings: dict,
    seed: int,
    batch_size: int,
    student: Callable[[], tuple[Write, Callable[[str, Sequence[str]], int], int]],
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
    basis = json.dumps(settings, sort_keys=True)
    keys: dict[str, str] = {}
    for study in studies:
        whole = self_prompt(study, study_rng(study, seed))
        if whole is not None:
            films = [sha256_file(path) for path in image_paths(study, root)]
            keys[study["id"]] = hashlib.sha256(json.dumps([basis, whole.text, films]).encode()).hexdigest()
    done, other = {}, 0
    for path in (store, made):
        for line, row in read_jsonl(path, torn="drop") if path and path.exists() else ():
            if not isinstance(row, dict) or not any(kind <= row.keys() for kind in (FINISHED, FAILED)):
                raise UserError(f"{path}:{line}: not a row of a compare run; remove the file or choose another --out")
            if keys.get(row["id"]) == row["key"]:
                done[row["id"]] = row
            else:
                other += path == store or row["id"] in keys
    if done or other:
        note = f" ({other} of other settings or studies not used)" if other else ""
        print(f"resuming: {len(done)} of {len(keys)} answers are there already{note}", flush=True)
    asked = [s for s in studies if s["id"] in keys]
    # What shares a batch changes a text now and then (by its rounding), so it must not depend on interruptions: the
    # batches are cut once, and one that lacks an answer is asked as a whole.
    grid = [asked[at : at + batch_size] for at in range(0, len(asked), batch_size)]
    grid = [batch for batch in grid if any(s["id"] not in done for s in batch)]
    total = sum(s["id"] not in done for s in asked)
    failed: dict[str, str] = {}

    def fail(study: dict, why: str) -> None:
        failed[study["id"]] = why
        if keep_failures and study["id"] not in done:
            append_jsonl(store, {"id": study["id"], "key": keys[study["id"]], "failure": why})

    if grid:
        write, length, limit = student()
        start = time.monotonic()
        new = 0
        for chosen in grid:
            missing = {s["id"] for s in chosen if s["id"] not in done}
            batch: list[tuple[dict, SelfPrompt, list[str]]] = []
            for study in chosen:
                images = image_paths(study, root)
                prompt = self_prompt(study, study_rng(study, seed), length=partial(length, images=images), limit=limit)
                if prompt is None:
                    fail(study, "too long with a single trajectory")
                else:
                    batch.append((study, prompt, images))
            texts = write([(prompt.text, images) for _, prompt, images in batch]) if batch else []
            if len(texts) != len(batch):
                raise RuntimeError(f"{len(texts)} answers to {len(batch)} prompts")
            for (study, prompt, _), (text, finish) in zip(batch, texts, strict=True):
                if study["id"] not in missing:
                    continue
                if (
                    finish == "length" and not keep_cut_off
                ):  # a positive that stops in mid-sentence would teach just that
                    fail(study, "cut off at --max-new-tokens")
                elif not text.strip():
                    fail(study, "empty")
                elif PLACEHOLDER.search(text) or "\0" in text:  # no study record may hold one
                    fail(study, "a special token in the text")
                else:
                    row = {"id": study["id"], "key": keys[study["id"]], "text": text.strip()}
                    row |= {"order": prompt.order, "dropped": prompt.dropped}
                    append_jsonl(store, row)
                    done[study["id"]] = row
            new += len(missing)
            seconds = time.monotonic() - start
            left = seconds / new * (total - new)
            print(f"self: {new}/{total} studies, {seconds:.0f} s, about {left:.0f} s left", flush=True)
    for study in studies:
        row = done.get(study["id"])
        if row and "failure" not in row:
            yield Answer(SelfPrompt("", row["order"], row["dropped"]), row["text"], None)
        else:
            yield Answer(None, None, row["failure"] if row else failed.get(study["id"]))


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
