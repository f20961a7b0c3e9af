"""What a training step costs: this project's shared rows against plain rows and against stock ms-swift.

    python -m apo.bench --json FILE.json                         one measurement of all cases
    python -m apo.bench --table FILE.json [FILE.json ...]        its Markdown tables
    python -m apo.bench --sweep SWEEP.json --vary prompt_tokens=300,600,1200 --vary negatives=1,3,7
    python -m apo.bench --sweep SWEEP.json --figure FILE.svg     speed-up over what was varied

Every case is a process of its own that ms-swift has built up to its first training step (apo/bench_worker.py). They
take turns, one step each, round after round, so that a busy moment of the machine hits all alike. Weights, films and
texts are random and the same for all. docs/performance.md says what the numbers mean.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from apo.bench_cases import (
    CASES,
    CHOICES,
    Settings,
    check,
    free_memory,
    make_rows,
    make_student,
    random_words,
    worker_spec,
)
from apo.bench_ratios import differences, find_limits, ratios
from apo.bench_report import draw_sweep, refuse_figure, results_text
from data.errors import UserError, run_cli
from data.files import out_file, write_atomic
from scripts import machine

PACKAGES = ("torch", "transformers", "ms-swift", "trl", "peft", "accelerate")
BUSY = 0.3
STARTED = time.monotonic()
# What the tables of a result read beside its cases.
SHOWN = ("settings", "environment", "threads", "ratios", "limits", "loading", "difference_by_case")


def progress(text: str) -> None:
    """Say what was reached and when: a run that its time limit ends has then told what it measured until there."""
    print(f"[{time.monotonic() - STARTED:4.0f} s] {text}", file=sys.stderr, flush=True)


class Worker:
    """A case in its own process: `ask(command)` makes it work and waits for its answer."""

    def __init__(self, spec: dict):
        self.name = spec["name"]
        folder = Path(spec["folder"])
        folder.mkdir()
        self.log = folder / "log.txt"
        (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        environ = {key: value for key, value in os.environ.items() if not key.startswith("APO_")}
        environ = machine.importable(environ)
        environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if spec["threads"]:
            environ["OMP_NUM_THREADS"] = str(spec["threads"])
        read, write = os.pipe()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "apo.bench_worker", str(folder / "spec.json"), str(write)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[write],
                env=environ,
                cwd=folder,
                text=True,
            )
        os.close(write)
        self.replies = os.fdopen(read, encoding="utf-8")

    def answer(self) -> dict:
        line = self.replies.readline()
        if not line:
            self.process.wait()
            tail = "\n  ".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise RuntimeError(f"case {self.name} ended with status {self.process.returncode}; its log ends:\n  {tail}")
        return json.loads(line)

    def ask(self, command: str) -> dict:
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.replies.close()


def environment() -> dict:
    load = os.getloadavg()
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "load_average_at_start": load,
        "busy_at_start": load[0] > BUSY * (os.cpu_count() or 1),
        "nice": os.nice(0),
    }


def take_turns(workers: Sequence[Worker], rounds: int, note: Callable[[str], None]) -> dict[str, list[float]]:
    """Seconds of `rounds` steps of each worker; a round begins with another worker each time."""
    seconds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for number in range(rounds):
        at = number % len(workers)
        for worker in [*workers[at:], *workers[:at]]:
            seconds[worker.name].append(worker.ask("step")["seconds"])
        note(f"round {number + 1} of {rounds}: " + ", ".join(f"{n} {s[-1]:.2f} s" for n, s in seconds.items()))
    return seconds


def summarise(check: dict, extra: dict, seconds: list[float]) -> dict:
    quartiles = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return {
        **{key: value for key, value in check.items() if key != "films_of_studies"},
        **extra,
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "quartile_seconds": [quartiles[0], quartiles[2]],
        "range_seconds": [min(seconds), max(seconds)],
    }


def measure(settings: Settings, names: Sequence[str], *, profile: Sequence[str] = (), keep: Path | None = None) -> dict:
    """Measure the cases `names`; everything is built in a temporary folder (or in `keep`, which stays).

    Raises:
        UserError: a setting that cannot be met.
        RuntimeError: a case failed; the end of its log is in the message.
    """
    check(settings)
    result: dict = {"settings": asdict(settings), "environment": environment()}
    if result["environment"]["busy_at_start"]:
        load = result["environment"]["load_average_at_start"][0]
        progress(f"warning: the machine is busy (load {load:.1f} on {os.cpu_count()} CPUs); times will be noisy")
    if result["environment"]["nice"] > 0:
        progress(f"warning: this process has niceness {os.nice(0)}: anything else that runs will take its time")
    with ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="apo-bench-")))
        words = random_words(np.random.default_rng(settings.seed), 6000)
        result["tokenizer"] = make_student(folder / "student", settings, words)
        rows = make_rows(folder, settings, folder / "student", words)
        memory = free_memory(settings, folder / "student", len(names))
        specs = {name: worker_spec(name, settings, folder, folder / "student", rows, memory) for name in names}
        progress(f"student and rows written; starting {len(names)} cases")
        workers = []
        for spec in specs.values():
            workers.append(Worker(spec))
            stack.callback(workers[-1].close)
        for worker in workers:
            ready = worker.answer()
            result["threads"], result["device"] = ready["threads"], ready["device"]
        progress("all cases stand at their first step")
        checks, extra = {}, {}
        for worker in workers:
            checks[worker.name] = {**worker.ask("check"), "films_of_studies": settings.studies}
            # Before the timing: what cannot be counted is found while nothing is lost.
            extra[worker.name] = worker.ask("flops")
            progress(f"{worker.name}: checked")
        seconds = take_turns(workers, settings.warmup + settings.steps, progress)
        for worker in workers:
            memory = worker.ask("memory")
            added = memory["peak_mb"] - memory["loaded_mb"]
            progress(f"{worker.name}: peak {memory['peak_mb']:.0f} MB, {added:.0f} of them by the step")
            extra[worker.name] |= memory
        for worker in workers:
            extra[worker.name] |= worker.ask("load")
        result["profiles"] = {w.name: w.ask("profile")["profile"] for w in workers if w.name in profile}
        result |= differences(folder, checks)
    cases = {}
    for name in names:
        micro = {key: specs[name][key] for key in ("label", "stage", "micro_batch", "accumulation")}
        cases[name] = {**micro, **summarise(checks[name], extra[name], seconds[name][settings.warmup :])}
    result["cases"] = cases
    result["limits"] = find_limits(checks, settings.negatives)
    result["ratios"] = ratios(cases, result["limits"])
    result["loading"] = {
        name: {
            "seconds_a_step": case["encode_seconds"] + case["collate_seconds"],
            "share_of_step": (case["encode_seconds"] + case["collate_seconds"]) / case["median_seconds"],
        }
        for name, case in cases.items()
    }
    return result


def parse_vary(items: Sequence[str]) -> dict[str, list[int]]:
    """`["negatives=1,3"]` -> {"negatives": [1, 3]}; UserError names the item."""
    varied: dict[str, list[int]] = {}
    for item in items:
        name, _, text = item.partition("=")
        name = name.replace("-", "_")
        if name not in ("prompt_tokens", "response_tokens", "negatives"):
            raise UserError(f"--vary {item}: vary prompt_tokens, response_tokens or negatives")
        try:
            varied[name] = [int(value) for value in text.split(",")]
        except ValueError:
            raise UserError(f"--vary {item}: expected numbers with commas, as in {name}=1,2,3") from None
    return varied


def read_json(path: Path, *keys: str) -> dict:
    """A JSON object that has `keys`; UserError names the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); give a file that apo.bench wrote") from None
    for key in keys:
        if not isinstance(found, dict) or key not in found:
            raise UserError(f"{path}: has no {key!r}; give a file that apo.bench wrote")
    return found


def sweep(path: Path, base: Settings, names: Sequence[str], varied: dict[str, list[int]]) -> dict:
    """Measure `base` with one setting changed at a time; each finished point is in `path`, which a restart continues.

    Raises:
        UserError: `path` holds points around another base.
    """
    state = {"base": asdict(base), "cases": list(names), "points": []}
    if path.exists():
        found = read_json(path, "points")
        if found.get("base") != state["base"] or found.get("cases") != state["cases"]:
            raise UserError(f"{path}: was measured with other settings or cases; name another --sweep file")
        state = found
    wanted = [replace(base, **{name: value}) for name, values in varied.items() for value in values]
    for settings in wanted:
        check(settings)
    for settings in wanted:
        if any(point["settings"] == asdict(settings) for point in state["points"]):
            continue
        sizes = f"{settings.prompt_tokens} prompt and {settings.response_tokens} response tokens"
        progress(f"point: {sizes}, N {settings.negatives}")
        state["points"].append(measure(settings, names))
        write_atomic(path, json.dumps(state, indent=1) + "\n")
    return state


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m apo.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in asdict(Settings()).items():
        flag, text = f"--{name.replace('_', '-')}", f"default {value}"
        if name in CHOICES:
            parser.add_argument(flag, default=value, help=f"{', '.join(CHOICES[name])}; {text}")
        else:
            parser.add_argument(flag, type=int, default=value, metavar="N", help=text)
    parser.add_argument("--cases", default=",".join(CASES), help=f"some of {','.join(CASES)}")
    parser.add_argument("--json", type=out_file, metavar="FILE", help="write the result to FILE")
    parser.add_argument("--profile", default="", metavar="CASES", help="print a profile of one step of these cases")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="print the tables of results; no run")
    parser.add_argument("--sweep", type=Path, metavar="FILE", help="result file of a sweep, read and continued")
    parser.add_argument("--vary", action="append", default=[], metavar="NAME=N,N", help="with --sweep: what to vary")
    parser.add_argument("--figure", type=out_file, metavar="FILE", help="draw the --sweep to FILE.png or FILE.svg")
    return parser.parse_args()


def pick_cases(text: str, flag: str, known: Sequence[str]) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in known:
            raise UserError(f"{flag} {name}: unknown case; choose from {','.join(known)}")
    return list(dict.fromkeys(names))


def main() -> None:
    args = parse_arguments()
    settings = Settings(**{name: getattr(args, name) for name in asdict(Settings())})
    if args.json and (args.table or args.sweep):
        raise UserError("--json is for one measurement of all cases; leave it out with --table and --sweep")
    if args.table:
        for path in args.table:
            print(results_text(read_json(path, "cases", *SHOWN)))
        return
    check(settings)
    names = pick_cases(args.cases, "--cases", list(CASES))
    if not names:
        raise UserError("--cases is empty; name at least one")
    varied = parse_vary(args.vary)
    if (varied or args.figure) and not args.sweep:
        raise UserError("--vary and --figure need --sweep FILE.json, where the measured points are kept")
    refuse_figure(args.figure)
    # So that a terminated run, too, ends its workers and removes its folder.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if args.sweep:
        if not varied and not args.figure:
            raise UserError("--sweep needs --vary NAME=N,N to measure or --figure FILE to draw")
        if varied:
            out_file(str(args.sweep))
        found = sweep(args.sweep, settings, names, varied) if varied else read_json(args.sweep, "points")
        if args.figure:
            draw_sweep(found, args.figure)
            progress(f"{args.figure}: written")
        return
    result = measure(settings, names, profile=pick_cases(args.profile, "--profile", names))
    try:
        if args.json:
            write_atomic(args.json, json.dumps(result, indent=1) + "\n")
    finally:  # hours of measuring are not lost with a disk that is full by now
        print(results_text(result))
    for name, table in result["profiles"].items():
        print(f"\n{name}, one step by operation:\n{table}")


if __name__ == "__main__":
    run_cli(main)
