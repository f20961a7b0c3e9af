"""OpenAI's Batch API: write the requests as JSONL, upload, submit, poll, read back into the same store.

Each step is noted on disk before and after, so that an interrupted run takes up a batch where it was: a batch that was
created in the moment of a crash is found again by its metadata, one that was half read is read again, and no answer is
stored twice. The files, which hold films, are deleted here once they are uploaded, at the provider once they are read
back. No run uploads a file of an earlier one: it was checked for the films and the address of that run.
"""

import asyncio
import json
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import openai

from data.collect.asking import (
    BUDGET_REACHED,
    Run,
    Stopped,
    Task,
    all_workers,
    body_or_failure,
    filtered_answer,
    make_answer,
)
from data.collect.batch_log import Batch, keys_in, open_batches
from data.collect.classify import BrokenAnswer, classify, is_filter_error, parse_body, usage_of
from data.collect.endpoint import Fault, fault_of, without_key
from data.collect.money import price
from data.files import append_jsonl, atomic_open, dump_line

T = TypeVar("T")

MAX_BYTES = 190_000_000  # the API takes 200 MB a file
LABEL = "collect_batch"
ENDED = ("completed", "failed", "expired", "cancelled")


async def read_batches(run: Run, tasks: list[Task]) -> list[Task]:
    """Before asking live: read back the batches that have ended, wait for none; return the tasks that none holds."""
    _sweep(run)
    by_key = {task.key: task for task in tasks}
    batches = open_batches(run.store.path("batches", run.teacher.name))
    taken = keys_in(batches)
    try:
        for batch in batches:
            if batch.batch_id is None and not await _created(run, batch):
                _note(run, batch, "dropped")
                run.ledger.settle_hold(batch.at_most, 0.0)
                await _delete(run, [batch.file_id])
                taken -= batch.requests.keys()
                continue
            seen = await _retrieve(run, batch)
            if seen.status in ENDED:
                await _finish(run, batch, seen, by_key)
                taken -= batch.requests.keys()
            else:
                run.display.say(
                    f"{run.teacher.name}: batch {batch.batch_id} is {seen.status}: its {len(batch.requests)} requests "
                    "are not asked live; run again when it has ended, or set mode: batch to wait for it"
                )
    except Stopped:
        pass  # the teacher's counts say why
    except Fault as fault:
        run.stop(_failed(run, fault))
    return [task for task in tasks if task.key not in taken and run.store.get(run.teacher.name, task.key) is None]


async def _created(run: Run, batch: Batch) -> bool:
    """Whether a batch that was only uploaded, by its log, was created all the same; if so, note it."""
    made = await _call(run, lambda: _find(run, batch))
    if made is None:
        return False
    batch.batch_id = made.id
    _note(run, batch, "submitted", batch_id=made.id)
    return True


async def ask_batch(run: Run, tasks: list[Task]) -> None:
    """Ask all tasks by batches, `concurrency` of them at a time; first go on with those of an earlier run.

    What batches of an earlier run may cost is held in the ledger already.
    """
    _sweep(run)
    by_key = {task.key: task for task in tasks}
    queue = open_batches(run.store.path("batches", run.teacher.name))
    run.counts.in_flight += sum(len(batch.requests) for batch in queue)
    taken = keys_in(queue)
    # A request of an earlier run may no longer be asked for (another split, another prompt): its answer is kept anyway.
    resumed, fresh = iter(queue), deque(task for task in tasks if task.key not in taken)
    planning = asyncio.Lock()  # or all workers would take turns at the queue and each get a fragment
    await all_workers(run, [_work(run, resumed, fresh, by_key, planning) for _ in range(run.teacher.concurrency)])
    if fresh and not run.stopping.is_set():
        run.stop(BUDGET_REACHED)


async def _work(
    run: Run, resumed: Iterator[Batch], fresh: deque[Task], by_key: dict[str, Task], planning: asyncio.Lock
) -> None:
    try:
        for batch in resumed:
            await _carry_out(run, batch, by_key)
        while not run.stopping.is_set():
            async with planning:
                batch = await _plan(run, fresh)
            if batch is None:
                return
            await _carry_out(run, batch, by_key)
    except Stopped:
        return
    except Fault as fault:
        run.stop(_failed(run, fault))


def _failed(run: Run, fault: Fault) -> str:
    path = run.store.path("batches", run.teacher.name)
    what = f"the batch API failed with {fault.what}; the same command goes on with its batches"
    return f"{what} (take the lines of one that is gone for good out of {path})"


async def _plan(run: Run, fresh: deque[Task]) -> Batch | None:
    """Write the next batch's file, as large as number, bytes and budget allow; None when nothing is left that fits."""
    batch = Batch(secrets.token_hex(8), run.teacher.base_url)
    path, size = _file(run, batch), 0
    with atomic_open(path) as out:
        while fresh and len(batch.requests) < run.teacher.batch_requests and size < MAX_BYTES:
            worst = price(run.teacher, run.worst(fresh[0]))
            if run.stopping.is_set() or not run.ledger.fits(worst):
                break
            task = fresh.popleft()
            run.ledger.hold(worst)
            body = await body_or_failure(run, task)
            if body is None:
                run.ledger.settle_hold(worst, 0.0)
                continue
            line = dump_line(
                {"custom_id": task.key, "method": "POST", "url": "/v1/chat/completions", "body": body}
            )  # fmt: skip
            size += out.write(line)
            batch.requests[task.key], batch.worst[task.key] = task.study, worst
    if not batch.requests or run.stopping.is_set():
        path.unlink()
        run.ledger.settle_hold(batch.at_most, 0.0)
        return None
    _note(run, batch, "planned", base_url=batch.base_url, requests=batch.requests, worst=batch.worst)
    run.counts.in_flight += len(batch.requests)
    return batch


async def _carry_out(run: Run, batch: Batch, by_key: dict[str, Task]) -> None:
    if batch.batch_id is None:
        await _submit(run, batch)
    while True:
        seen = await _retrieve(run, batch)
        if seen.status in ENDED:
            break
        await run.sleep(run.teacher.batch_poll_s)
    missing = await _finish(run, batch, seen, by_key)
    run.counts.in_flight -= len(batch.requests)
    if seen.status == "failed" or missing == len(batch.requests):
        code = next((one.code for one in (seen.errors.data if seen.errors else None) or [] if one.code), "no code")
        run.stop(f"batch {batch.batch_id} {seen.status} ({code}) without an answer; the next run asks its films again")


async def _finish(run: Run, batch: Batch, seen: Any, by_key: dict[str, Task]) -> int:
    """Read back a batch that has ended, book it and forget it; return how many of its requests have no answer."""
    spent, broken = 0.0, {}
    for file_id in (seen.output_file_id, seen.error_file_id):
        if file_id:
            cost, bad = _read_back(run, batch, await _content(run, batch, file_id), by_key)
            spent += cost
            broken |= bad
    missing = [key for key in batch.requests if run.store.get(run.teacher.name, key) is None]
    # Said before the note, after which the batch is forgotten. What a crash between left booked is not booked again.
    for key in missing:
        if (batch.name, key) in run.store.failed:
            continue
        if key in broken:
            cost, more = batch.worst[key], broken[key]
        else:
            cost, more = 0.0, {"what": f"batch {seen.status}, no answer to this request"}
        run.store.fail(run.teacher, batch.requests[key], key, cost=cost, batch=batch.name, **more)
        run.counts.cost += cost
        spent += cost
    run.counts.failed += len(missing)
    run.ledger.settle_hold(batch.at_most, spent)
    _note(run, batch, "read", status=seen.status, missing=len(missing))
    await _delete(run, [batch.file_id, seen.output_file_id, seen.error_file_id])
    return len(missing)


async def _submit(run: Run, batch: Batch) -> None:
    if batch.file_id is None:
        path = _file(run, batch)
        batch.file_id = await _upload(run, path)
        _note(run, batch, "uploaded", file_id=batch.file_id)
        path.unlink()

    async def create() -> Any:
        # Creating is not idempotent: after a crash or a lost response the batch may be there already.
        return await _find(run, batch) or await run.client.batches.create(
            input_file_id=batch.file_id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={LABEL: batch.name},
        )

    what = f"uploaded file {batch.file_id} (or the batch API itself)"
    made = await _call(run, lambda: _known(run, batch, what, create()))
    batch.batch_id = made.id
    _note(run, batch, "submitted", batch_id=made.id)
    run.display.say(f"{run.teacher.name}: batch {made.id} with {len(batch.requests)} requests submitted")


async def _upload(run: Run, path: Path) -> str:
    """Upload a file of requests; return its id. Says so where the provider may hold more of it than that one."""
    unclear = False

    async def create() -> Any:
        nonlocal unclear
        try:
            # The client reads the file itself, in another thread.
            return await run.client.files.create(file=path, purpose="batch")
        except (openai.APIConnectionError, openai.InternalServerError):  # the file may have arrived all the same
            unclear = True
            raise

    try:
        return (await _call(run, create)).id
    finally:
        if unclear:
            run.display.say(
                f"{run.teacher.name}: an upload of {path.name} failed and may have arrived all the same; if the "
                "provider lists a file of that name once its batch is read back, delete it there: it holds films"
            )


async def _retrieve(run: Run, batch: Batch) -> Any:
    ask = run.client.batches.retrieve
    return await _call(run, lambda: _known(run, batch, f"batch {batch.batch_id}", ask(batch.batch_id)))


async def _content(run: Run, batch: Batch, file_id: str) -> bytes:
    what = f"file {file_id} of batch {batch.batch_id}"  # providers delete result files after some weeks
    return (await _call(run, lambda: _known(run, batch, what, run.client.files.content(file_id)))).content


async def _known(run: Run, batch: Batch, what: str, asked: Awaitable[T]) -> T:
    """Await the answer to a request about `what` of a batch; one that the provider does not know stops the teacher."""
    try:
        return await asked
    except openai.NotFoundError:
        # Forgetting it would ask (and pay) again, and it may be base_url that is wrong.
        path = run.store.path("batches", run.teacher.name)
        told = f"HTTP 404: {what} is not known there; check base_url, or, if it is gone for good,"
        raise Fault("stop", f"{told} take the lines of {batch.name} out of {path}") from None


async def _find(run: Run, batch: Batch) -> Any:
    try:
        page = await run.client.batches.list(limit=100)
    except openai.NotFoundError:  # not every compatible API lists batches
        return None
    return next((one for one in page.data if (one.metadata or {}).get(LABEL) == batch.name), None)


def _read_back(run: Run, batch: Batch, content: bytes, by_key: dict[str, Task]) -> tuple[float, dict[str, dict]]:
    """Store every answer of a result file that is not stored yet.

    Returns what they cost together, and by key what the failure log is to say of those that came broken under HTTP 200,
    which may be billed, as in live mode.
    """
    spent, broken = 0.0, {}
    for raw in without_key(content.decode("utf-8", "replace"), run.key).split("\n"):
        if not raw.strip():
            continue
        try:
            line = json.loads(raw)
            key, response = line["custom_id"], line.get("response") or {}
            status, body = response.get("status_code"), response.get("body")
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a request without an answer: counted as missing
        if key not in batch.requests or run.store.get(run.teacher.name, key) is not None:
            continue
        task = by_key.get(key) or Task(key, batch.requests[key], "", ())
        if status == 200:
            try:
                whole = parse_body(json.dumps(body))
                answer = make_answer(run, task, classify(whole), usage_of(whole))
            except BrokenAnswer as error:
                broken[key] = {"what": str(error), "raw": raw[:4000]}
                continue
        elif status == 400 and is_filter_error(body):
            answer = filtered_answer(run, task, Fault("filtered", "HTTP 400 in a batch"))
        else:
            continue
        if key not in by_key and not answer.usage_told:
            # No longer asked for: its prompt and films are not known here, but what was held for it is.
            answer = answer._replace(cost=batch.worst[key])
        run.store.add(run.teacher, task.study, answer, raw, batch=batch.batch_id, decoding=run.teacher.decoding)
        if key in by_key:
            run.counts.add(answer)
        spent += answer.cost
    return spent, broken


async def _delete(run: Run, file_ids: list[str | None]) -> None:
    """Delete files at the provider; say which could not be. Never stops the teacher: its answers are read already."""

    async def delete(file_id: str) -> None:
        try:
            await run.client.files.delete(file_id)
        except openai.NotFoundError:
            pass  # gone already
        except openai.APIError as error:
            fault = fault_of(error, run.teacher, run.key)
            raise replace(fault, kind="give_up") if fault.kind == "stop" else fault from None

    left = []
    for file_id in filter(None, file_ids):
        try:
            await _call(run, lambda file_id=file_id: delete(file_id))
        except Fault as fault:
            left.append(f"{file_id} ({fault.what})")
        except Stopped:
            left.append(f"{file_id} (stopped before it)")
    if left:
        run.display.say(
            f"{run.teacher.name}: could not delete at the provider: {', '.join(left)}; delete them there: they hold "
            "films or answers"
        )


async def _call(run: Run, ask: Callable[[], Awaitable[T]]) -> T:
    """One call of the batch API with the teacher's retries; a Fault "stop" stops the teacher."""

    async def attempt() -> T:
        await run.turn(0)
        try:
            return await ask()
        except Exception as error:
            fault = error if isinstance(error, Fault) else fault_of(error, run.teacher, run.key)
            run.note_fault(fault)
            raise fault from None

    try:
        return await run.retrying(attempt)
    except Fault as fault:
        if fault.kind == "stop":
            raise Stopped from None
        raise


def _sweep(run: Run) -> None:
    """Remove request files, which hold films, that an earlier run left behind; say which may be at the provider."""
    for path in run.store.path("batches", run.teacher.name).with_suffix("").glob("*"):
        if path.suffix == ".jsonl":
            run.display.say(
                f"{run.teacher.name}: no upload of {path.name} was noted by a run that ended; if it is among the "
                "provider's files all the same, delete it there: it holds films"
            )
        path.unlink()


def _file(run: Run, batch: Batch) -> Path:
    return run.store.path("batches", run.teacher.name).with_suffix("") / f"{batch.name}.jsonl"


def _note(run: Run, batch: Batch, event: str, **more: object) -> None:
    append_jsonl(run.store.path("batches", run.teacher.name), {"batch": batch.name, "event": event, **more})
