"""Collect: asks the teachers of a config about every film of a manifest and writes the studies with trajectories.

    bash scripts/collect.sh CONFIG.yaml [--out STUDIES.jsonl] [--limit N] [--dry-run]

The same command goes on where an interrupted run stopped. Exit status: 0 every question has an answer, 1 some have none
(stopped teachers, failed requests, budget), 2 bad input, 130 interrupted.
"""

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from data import manifest
from data.collect.asking import Run, Task, ask_live
from data.collect.batch import ask_batch, read_batches
from data.collect.batch_log import held_by_batches, keys_in, open_batches, refuse_elsewhere
from data.collect.classify import same_model
from data.collect.endpoint import make_client
from data.collect.money import Ledger, price, worst_usage
from data.collect.plan import Plan, make_plans, read_manifest
from data.collect.progress import Counts, Display, duration
from data.collect.prompts import TEMPLATES
from data.collect.settings import Config, read_config, read_key
from data.collect.store import Store
from data.errors import GOES_ON, Problems, UserError, refuse_below_one, run_cli
from data.files import write_atomic
from data.records import ALLOW_OUTSIDE, STATUSES, root_of, write_studies
from scripts import doctor


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/collect.sh", description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n")[2]
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="configs/collect_example.yaml explains every field")
    parser.add_argument("--out", metavar="STUDIES.jsonl", help="studies with trajectories (default: the config's out)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N studies, for a trial")
    parser.add_argument("--dry-run", action="store_true", help="check everything, count and price it, send nothing")
    parser.add_argument("--allow-outside", action="store_true", help=ALLOW_OUTSIDE)
    args = parser.parse_args(argv)
    refuse_below_one(args, "limit")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    config = read_config(args.config, out=args.out)
    if not args.dry_run:
        doctor.before("collect", Path(config.out))
    studies = read_manifest(config, args.limit)
    root = root_of(config.studies, config.image_root)
    films = {"allow_outside": args.allow_outside, "tell": _tell_films()}
    if args.dry_run:
        plans = make_plans(config, studies, root, keep_cache=False, **films)
        store = Store(config.store)
        _describe(config, plans, store, len(studies))
        try:
            refuse_elsewhere(config.teachers, store)
            _keys(plans, store)
        except UserError as error:
            print(f"note: the run itself would end here: {error}")
        print("dry run: nothing was sent or written")
        return 0
    store = Store(config.store)
    with store.locked():
        plans = make_plans(config, studies, root, keep_cache=True, **films)
        # Read again under the lock: another run may have ended between the two.
        store = Store(config.store)
        _describe(config, plans, store, len(studies))
        refuse_elsewhere(config.teachers, store)
        keys = _keys(plans, store)
        interrupted, counts, ledger = asyncio.run(_collect(config, plans, store, keys))
        _write_summary(config, store, counts, ledger)
        if interrupted:
            _say_how_to_go_on(config, counts)
            return 130
        write_studies(config.out, _with_trajectories(studies, plans, store))
        asked = {plan.teacher.name: {"model": plan.teacher.model, "prompt": plan.teacher.prompt} for plan in plans}
        made_from = {"studies": config.studies, "config": args.config}
        manifest.write(config.out, made_from, {"limit": args.limit, "teachers": asked})
    return _report(config, studies, plans, store, counts, ledger, root)


def _keys(plans: list[Plan], store: Store) -> dict[str, str | None]:
    """Keys of the teachers that have something to be asked; the error names every variable that is missing."""
    problems, keys = Problems("environment"), {}
    for plan in plans:
        if _is_needed(plan, store):
            try:
                keys[plan.teacher.name] = read_key(plan.teacher)
            except UserError as error:
                problems.add(error)
    problems.refuse()
    return keys


def _is_needed(plan: Plan, store: Store) -> bool:
    """Whether a teacher has something to be asked, or a batch to be read back (perhaps of another manifest or mode)."""
    return bool(plan.open(store) or open_batches(store.path("batches", plan.teacher.name)))


async def _ask(run: Run, tasks: list[Task]) -> None:
    try:
        if run.teacher.mode == "batch":
            await ask_batch(run, tasks)
        else:
            await ask_live(run, await read_batches(run, tasks))
    except Exception:
        # A full disk, or a defect: let the others finish what they have paid for, then report it.
        run.stop_all()
        raise


async def _collect(
    config: Config, plans: list[Plan], store: Store, keys: dict[str, str | None]
) -> tuple[bool, list[Counts], Ledger]:
    ledger = Ledger(config.budget, store.spent)
    ledger.hold(held_by_batches(store))
    counts = [_counts(plan, store) for plan in plans]
    display = Display(counts, ledger)
    runs, jobs = [], []
    for plan, one in zip(plans, counts, strict=True):
        if _is_needed(plan, store):
            todo = plan.open(store)
            key = keys[plan.teacher.name]
            run = Run(plan.teacher, key, make_client(plan.teacher, key), store, ledger, one, display, runs)
            runs.append(run)
            jobs.append(asyncio.create_task(_ask(run, todo)))
    if not jobs:
        return False, counts, ledger
    presses = 0

    def on_signal() -> None:
        nonlocal presses
        presses += 1
        if presses == 1:
            waiting = sum(run.counts.in_flight for run in runs if run.teacher.mode == "live")
            display.say(f"interrupt: {waiting} requests in flight are finished; once more abandons them")
            for run in runs:
                run.stop("interrupted")
        else:
            for job in jobs:
                job.cancel()

    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        loop.add_signal_handler(number, on_signal)
    drawing = asyncio.create_task(display.keep_drawing())
    try:
        await asyncio.wait(jobs)
    finally:
        drawing.cancel()
        for run in runs:
            await run.client.close()
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
    if display.live:
        display.draw()
    broken = _error_of(jobs)
    if broken:
        raise broken
    return presses > 0, counts, ledger


def _error_of(jobs: list[asyncio.Task]) -> BaseException | None:
    """The error to report of the jobs that have ended: a defect before a full disk, which the next run tells again."""
    # Each is asked: asyncio prints a traceback for an error that nobody has looked at.
    found = [_first(error) for job in jobs if job.done() and not job.cancelled() and (error := job.exception())]
    return next((error for error in found if not isinstance(error, UserError)), next(iter(found), None))


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = next((one for one in error.exceptions if isinstance(one, UserError)), error.exceptions[0])
    return error


def _counts(plan: Plan, store: Store) -> Counts:
    counts = Counts(plan.teacher.name, total=len(plan.tasks))
    for key in plan.tasks:
        answer = store.get(plan.teacher.name, key)
        if answer is not None:
            counts.add(answer, found=True)
    return counts


def _with_trajectories(studies: list[dict], plans: list[Plan], store: Store) -> Iterator[dict]:
    for study in studies:
        trajectories = list(study["trajectories"])
        for plan in plans:
            answer = store.get(plan.teacher.name, plan.keys.get(study["id"], ""))
            if answer is not None:
                trajectories.append({"teacher": plan.teacher.name, "text": answer.text, "status": answer.status})
        yield {**study, "trajectories": trajectories}


def _describe(config: Config, plans: list[Plan], store: Store, studies: int) -> None:
    print(f"{config.studies}: {studies} studies, {len(plans)} teachers; answers are kept in {config.store}")
    whole = 0.0
    for plan in plans:
        teacher, unanswered = plan.teacher, plan.open(store)
        taken = keys_in(open_batches(store.path("batches", teacher.name)))
        todo = [task for task in unanswered if task.key not in taken]
        worst = sum(price(teacher, worst_usage(teacher, task.prompt, len(task.films))) for task in todo)
        whole += worst
        prompt = teacher.prompt if teacher.prompt in TEMPLATES else "own text"
        parts = [f"{len(todo)} to ask ({teacher.mode}, prompt {prompt})"]
        parts += [f"{len(plan.tasks) - len(unanswered)} in the store"]
        waiting = len(unanswered) - len(todo)
        parts += [f"{waiting} in batches of an earlier run"] if waiting else []
        shared = len(plan.keys) - len(plan.tasks)
        parts += [f"{shared} with the same films and prompt as another"] if shared else []
        parts += [f"{plan.skipped} without a diagnosis to give, left out"] if plan.skipped else []
        parts.append("no prices given" if teacher.price_in is None else f"at most {worst:.2f}")
        if todo and teacher.mode == "live":
            parts.append(f"at least {duration(len(todo) / teacher.requests_per_minute * 60)}")
        print(f"  {teacher.name}: " + ", ".join(parts))
    budget = "no budget" if config.budget is None else f"budget {config.budget:g}"
    held = held_by_batches(store)
    under_way = f"at most {held:.2f} in batches of earlier runs, " if held else ""
    print(f"spent so far {store.spent:.4f}, {under_way}at most {whole:.2f} to come, {budget}", flush=True)


def _report(
    config: Config,
    studies: list[dict],
    plans: list[Plan],
    store: Store,
    counts: list[Counts],
    ledger: Ledger,
    root: str,
) -> int:
    missing = 0
    for plan, one in zip(plans, counts, strict=True):
        told = ", ".join(f"{one.statuses[status]} {status}" for status in STATUSES if one.statuses[status]) or "none"
        none = one.total - one.done
        missing += none
        line = f"  {one.name}: {told}" + (f"; {none} without an answer" if none else "")
        line += f"; {one.untold} without token counts, priced at their upper bound" if one.untold else ""
        print(line + (f"; stopped: {one.stopped}" if one.stopped else ""))
        _warn_of_models(plan, one)
        if _over_bound(plan, store):
            print(f"warning: {one.name}: was billed more tokens than image_tokens or max_tokens allow for; raise them")
    mute = sum(
        not any(t["status"] == "ok" for t in s["trajectories"]) for s in _with_trajectories(studies, plans, store)
    )
    print(f"{config.out}: {len(studies)} studies, {mute} of them without an ok trajectory; spent {ledger.spent:.4f}")
    if root_of(config.out) != root:
        print(f"note: its image paths start from {root}: give that as --image-root")
    if missing:
        print(f"{missing} questions have no answer yet: the same command goes on with only those")
    return 1 if missing else 0


def _warn_of_models(plan: Plan, counts: Counts) -> None:
    other = {name: n for name, n in counts.echoes.items() if name and not same_model(plan.teacher.model, name)}
    if other:
        told = ", ".join(f"{name} ({n})" for name, n in sorted(other.items()))
        print(f"warning: {counts.name}: asked {plan.teacher.model}, but {sum(other.values())} answers name {told}")


def _over_bound(plan: Plan, store: Store) -> bool:
    for key, task in plan.tasks.items():
        answer = store.get(plan.teacher.name, key)
        bound = worst_usage(plan.teacher, task.prompt, len(task.films))
        if answer and (answer.tokens_in > bound.tokens_in or answer.tokens_out > bound.tokens_out):
            return True
    return False


def _write_summary(config: Config, store: Store, counts: list[Counts], ledger: Ledger) -> None:
    teachers = {
        one.name: {
            "asked_for": one.total,
            "statuses": dict(one.statuses),
            "without_answer": one.total - one.done,
            "models_named": {str(name): n for name, n in one.echoes.items()},
            "tokens_in": one.tokens_in,
            "tokens_out": one.tokens_out,
            "answers_without_token_counts": one.untold,
            "stopped": one.stopped,
        }
        for one in counts
    }
    summary = {"teachers": teachers, "spent": ledger.spent, "budget": config.budget}
    write_atomic(store.folder / "summary.json", json.dumps(summary, indent=2) + "\n")


def _say_how_to_go_on(config: Config, counts: list[Counts]) -> None:
    done, total = sum(one.done for one in counts), sum(one.total for one in counts)
    print(f"interrupted: {done} of {total} answers are in {config.store}; {config.out} was not written")
    print("to go on, run the same command: it asks only what has no answer; batches go on at the provider meanwhile")


def _tell_films():
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 5 or (done == total and total > 1000):
            last = time.monotonic()
            print(f"films checked: {done}/{total}", file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    run_cli(main, GOES_ON)
