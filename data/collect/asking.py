"""Asks one teacher about its films: limits, retries, budget, and a stop that loses nothing.

Every teacher has its own client, limits and workers, so that a slow or failing one holds up only itself. All run in one
event loop; an answer is on disk before its worker goes on.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import openai
from aiolimiter import AsyncLimiter
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from data.collect.classify import BrokenAnswer, Usage, Verdict, classify, parse_body, usage_of
from data.collect.endpoint import Fault, backoff, fault_of, without_key
from data.collect.films import FilmChanged, data_url, encode_checked
from data.collect.money import Ledger, OverBudget, price, worst_usage
from data.collect.progress import Counts, Display
from data.collect.settings import Teacher
from data.collect.store import Answer, Store
from data.records import clean

T = TypeVar("T")

BUDGET_REACHED = "the next request might pass the budget"


class Task(NamedTuple):
    """One question that has no answer yet. films: (absolute path, SHA-256 of the bytes to be sent)."""

    key: str
    study: str
    prompt: str
    films: tuple[tuple[str, str], ...]


class Stopped(Exception):
    """The teacher takes no more requests; what was not answered is left for the next run."""


@dataclass(eq=False)
class Run:
    """What belongs to one teacher while it is asked."""

    teacher: Teacher
    key: str | None
    client: openai.AsyncOpenAI
    store: Store
    ledger: Ledger
    counts: Counts
    display: Display
    others: list["Run"] = field(default_factory=list)  # the runs of all teachers
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    not_before: float = 0.0
    failed_in_a_row: int = 0
    seen: Usage = Usage(0, 0)

    def __post_init__(self) -> None:
        t = self.teacher
        # A bucket of one: requests are spaced evenly, so that no minute holds more than allowed.
        self.requests = AsyncLimiter(1, 60 / t.requests_per_minute)
        self.tokens: AsyncLimiter | None = None
        if t.tokens_per_minute is not None:
            # As small a bucket as lets the largest request through, to keep bursts short.
            bucket = max(t.tokens_per_minute / 6, 1)
            self.tokens = AsyncLimiter(bucket, 60 * bucket / t.tokens_per_minute)

    def stop(self, why: str) -> None:
        """Take no more requests; the first reason stays."""
        if self.counts.stopped is None:
            self.counts.stopped = why
            self.display.say(f"{self.teacher.name}: stopped: {why}")
        self.stopping.set()

    def stop_all(self) -> None:
        """Stop this teacher, whose run failed, and all others: an answer that cannot be kept is paid for as well."""
        self.stop("its run failed; requests under way are finished, then the error is told")
        for run in self.others:
            run.stop("another teacher's run failed")

    def worst(self, task: Task) -> Usage:
        """Upper bound of a request's tokens, raised by what the provider has billed before."""
        usage = worst_usage(self.teacher, task.prompt, len(task.films))
        return Usage(max(usage.tokens_in, self.seen.tokens_in), max(usage.tokens_out, self.seen.tokens_out))

    async def unless_stopped(self, waiting: Awaitable[T]) -> T:
        """Await something, but no longer than until the teacher is stopped.

        Raises:
            Stopped: it was stopped first.
        """
        task, stop = asyncio.ensure_future(waiting), asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Stopped
        finally:
            task.cancel()
            stop.cancel()

    async def sleep(self, seconds: float) -> None:
        await self.unless_stopped(asyncio.sleep(seconds))

    async def turn(self, tokens: int) -> None:
        """Wait until the limits allow a request of so many tokens."""
        loop = asyncio.get_running_loop()
        while self.not_before > loop.time():
            await self.sleep(self.not_before - loop.time())
        if self.tokens is not None:
            left = tokens
            while left > 0:  # a request larger than the bucket takes several fillings
                part = min(left, self.tokens.max_rate)
                await self.unless_stopped(self.tokens.acquire(part))
                left -= part
        await self.unless_stopped(self.requests.acquire())
        while self.not_before > loop.time():  # a 429 may have come meanwhile
            await self.sleep(self.not_before - loop.time())
        if self.stopping.is_set():
            raise Stopped

    def note_fault(self, fault: Fault) -> None:
        if fault.retry_after is not None:
            self.not_before = max(self.not_before, asyncio.get_running_loop().time() + fault.retry_after)
        if fault.kind == "stop":
            self.stop(fault.what)

    async def retrying(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Call `attempt` until it gives no Fault "again", with backoff, at most `attempts` times; raise its last."""

        def again(error: BaseException) -> bool:
            return isinstance(error, Fault) and error.kind == "again"

        def wait(state: RetryCallState) -> float:
            fault = state.outcome.exception()
            return backoff(self.teacher, state.attempt_number, fault.retry_after)

        async def sleep(seconds: float) -> None:
            self.counts.retries += 1
            await self.sleep(seconds)

        # One for each call: an AsyncRetrying keeps its state in itself.
        loop = AsyncRetrying(
            stop=stop_after_attempt(self.teacher.attempts),
            wait=wait,
            retry=retry_if_exception(again),
            sleep=sleep,
            reraise=True,
        )
        return await loop(attempt)

    def gave_up(self, task: Task, what: str) -> None:
        """Count a request that got no answer; too many one after another stop the teacher."""
        self.counts.failed += 1
        self.failed_in_a_row += 1
        if self.failed_in_a_row >= self.teacher.stop_after:
            path = self.store.path("failures", self.teacher.name)
            self.stop(f"{self.failed_in_a_row} requests in a row failed, the last with {what}; see {path}")


def body_of(teacher: Teacher, task: Task) -> dict:
    """The request's JSON: model, one user message of text and films, decoding settings. Reads the films.

    Raises:
        FilmChanged: a film is not the one that the task was made for.
    """
    content: list[dict] = [{"type": "text", "text": task.prompt}]
    for path, expected in task.films:
        jpeg = encode_checked(path, teacher.image_size, teacher.image_quality, expected)
        content.append({"type": "image_url", "image_url": {"url": data_url(jpeg)}})
    return {"model": teacher.model, "messages": [{"role": "user", "content": content}], **teacher.decoding}


def make_answer(run: Run, task: Task, verdict: Verdict, told: Usage | None) -> Answer:
    """An Answer from a verdict; where the provider told no tokens, the worst case counts."""
    usage = told or run.worst(task)
    if told:
        run.seen = Usage(max(run.seen.tokens_in, told.tokens_in), max(run.seen.tokens_out, told.tokens_out))
    text = clean(without_key(verdict.text, run.key))[0].strip()
    cost = price(run.teacher, usage)
    return Answer(
        task.key, verdict.status, text, verdict.finish, verdict.detail, verdict.echoed, *usage, cost, told is not None
    )


def filtered_answer(run: Run, task: Task, fault: Fault) -> Answer:
    """The answer to a request that the provider's filter refused. Its prompt may have been billed, an answer not."""
    usage = Usage(run.worst(task).tokens_in, 0)
    cost = price(run.teacher, usage)
    return Answer(task.key, "filtered", "", None, fault.what, None, *usage, cost, False)


async def ask_live(run: Run, tasks: list[Task]) -> None:
    """Ask all tasks with the teacher's concurrency; returns when all are answered, given up, or the teacher stopped."""
    queue = iter(tasks)
    await all_workers(run, [_work(run, queue) for _ in range(min(run.teacher.concurrency, len(tasks)))])


async def all_workers(run: Run, workers: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Await a teacher's workers.

    When one fails (a full disk, a defect), no teacher takes more requests, and those under way come back before the
    error is raised: a TaskGroup would abandon them, and they are paid for.

    Raises:
        ExceptionGroup: the errors of all.
    """
    errors: list[Exception] = []

    async def guarded(worker: Coroutine[Any, Any, None]) -> None:
        try:
            await worker
        except Exception as error:
            run.stop_all()
            errors.append(error)

    try:
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(guarded(worker))
    finally:  # also when it was cancelled meanwhile
        if errors:
            raise ExceptionGroup(run.teacher.name, errors)


async def _work(run: Run, queue: Iterator[Task]) -> None:
    for task in queue:
        if run.stopping.is_set():
            return
        try:
            await _ask(run, task)
        except Stopped:
            return


async def body_or_failure(run: Run, task: Task) -> dict | None:
    """The request of a task; None, with the task given up and recorded, if its film changed during the run."""
    try:
        return await asyncio.to_thread(body_of, run.teacher, task)
    except FilmChanged as error:
        run.store.fail(run.teacher, task.study, task.key, cost=0.0, what=str(error))
        run.gave_up(task, str(error))
        return None


async def _ask(run: Run, task: Task) -> None:
    start = time.monotonic()
    attempts = 0

    async def attempt() -> tuple[Answer, str]:
        nonlocal attempts
        attempts += 1
        return await _attempt(run, task, body, attempts)

    body = await body_or_failure(run, task)
    if body is None:
        return
    try:
        answer, raw = await run.retrying(attempt)
    except Fault as fault:
        if fault.kind == "stop":
            raise Stopped from None
        run.gave_up(task, fault.what)
        return
    seconds = round(time.monotonic() - start, 3)
    run.store.add(
        run.teacher, task.study, answer, raw, attempts=attempts, seconds=seconds, decoding=run.teacher.decoding
    )
    run.counts.add(answer)
    run.failed_in_a_row = 0


async def _attempt(run: Run, task: Task, body: dict, number: int) -> tuple[Answer, str]:
    worst = run.worst(task)
    await run.turn(worst.tokens_in + worst.tokens_out)
    amount = price(run.teacher, worst)
    try:
        await run.unless_stopped(run.ledger.reserve(amount))
    except OverBudget:
        run.stop(BUDGET_REACHED)
        raise Stopped from None
    if run.stopping.is_set():
        run.ledger.settle(amount, 0.0)
        raise Stopped
    cost = amount
    run.counts.in_flight += 1
    try:
        try:
            answer, raw = await _send(run, task, body)
            cost = answer.cost
            return answer, raw
        except Exception as error:
            fault = error if isinstance(error, Fault) else fault_of(error, run.teacher, run.key)
            if fault.kind == "filtered":
                answer = filtered_answer(run, task, fault)
                cost = answer.cost
                return answer, fault.raw
            cost = amount if fault.billed else 0.0
            _log(run, task, fault, cost, number)
            run.note_fault(fault)
            raise fault from None
    except asyncio.CancelledError:
        _log(run, task, Fault("abandoned", "abandoned on interrupt", billed=True), amount, number)
        raise
    finally:
        run.counts.in_flight -= 1
        run.ledger.settle(amount, cost)


async def _send(run: Run, task: Task, body: dict) -> tuple[Answer, str]:
    sent = {name: value for name, value in body.items() if name not in ("model", "messages")}
    # The client's own time limit is between two reads: a server that drips would hold it for ever.
    async with asyncio.timeout(run.teacher.timeout_s):
        response = await run.client.chat.completions.with_raw_response.create(
            model=body["model"], messages=body["messages"], extra_body=sent
        )
        raw = without_key(response.http_response.content.decode("utf-8", "replace"), run.key)
    try:
        whole = parse_body(raw)
        return make_answer(run, task, classify(whole), usage_of(whole)), raw
    except BrokenAnswer as error:
        raise Fault("again", str(error), billed=True, raw=raw) from None


def _log(run: Run, task: Task, fault: Fault, cost: float, number: int) -> None:
    run.counts.cost += cost
    run.store.fail(
        run.teacher, task.study, task.key, cost=cost, what=fault.what, attempt=number, raw=fault.raw[:4000]
    )  # fmt: skip
