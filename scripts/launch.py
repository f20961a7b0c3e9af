"""Resolve one training stage into a stock ms-swift command, check everything that can be checked first, and run it.

    python -m scripts.launch sft|apo [CONFIG.yaml] [--flag value ...] [--dry-run]

SFT-Qwen2.5.sh (Learn) and APO-Qwen2.5.sh (Critique) are thin shells around this. What it adds to `swift sft|rlhf`: the
accumulation that keeps the effective batch whatever the number of GPUs, study records turned into ms-swift rows, this
project's plugin, clear errors before any model is loaded, a lock on the output folder and a record of the run in
OUTPUT_DIR/launch.json.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from data import checkpoints, manifest
from data.errors import UserError, run_cli
from data.files import NO_LOCK, write_atomic
from scripts import doctor, machine, run_log
from scripts.arguments import installed_versions
from scripts.plan import (
    ROOT,
    STAGES,
    WORLD_VARIABLES,
    Plan,
    check_model,
    refuse_used_folder,
    resolve,
    resume_weights,
)
from scripts.settings import SCRIPTS, as_bool, as_list, parse_command
from scripts.training_data import add_data


def to_argv(plan: Plan) -> list[str]:
    """The words after `swift`: the method, then one flag a setting, in the order of the config file."""
    words = ["sft" if plan.stage == "learn" else "rlhf"]
    for name, value in plan.settings.items():
        words += [f"--{name}", *as_list(value)]
    return words


def show(plan: Plan) -> str:
    """The command for a shell: variables first, one flag a line, notes as comments."""
    lines = [f"# {note}" for note in plan.notes]
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in sorted(plan.environment.items()))
    groups: list[list[str]] = []
    for word in plan.argv[1:]:
        if word.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(shlex.quote(word))
    head = f"{variables} {shlex.quote(sys.executable)} -m swift.cli.main {plan.argv[0]}".strip()
    return "\n".join([*lines, " \\\n    ".join([head, *(" ".join(group) for group in groups)])])


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold FOLDER/.launch.lock; yields its descriptor. UserError when another run holds it.

    The training process inherits the descriptor, so that the folder stays locked should this process be killed alone.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".launch.lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"output_dir {folder}: cannot be written to ({error.strerror}); choose another") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
            raise UserError(
                f"output_dir {folder}: process {holder} trains into it; wait for it or choose another --output_dir"
            ) from None
        except OSError as error:
            print(f"note: output_dir {folder}: {NO_LOCK.format(error.strerror)}", file=sys.stderr)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield handle
    finally:
        os.close(handle)


def datasets_of(plan: Plan) -> list[dict[str, str]]:
    return [manifest.entry(path) for path in plan.datasets]


def record(plan: Plan) -> None:
    """Write OUTPUT_DIR/launch.json: everything needed to tell later what was run on what."""
    note = {
        "stage": plan.stage,
        "command": [sys.executable, "-m", "swift.cli.main", *plan.argv],
        "environment": plan.environment,
        "config": manifest.entry(plan.config),
        "code": manifest.code(),
        "settings": plan.settings,
        "settings_sha256": hashlib.sha256(json.dumps(plan.settings, sort_keys=True).encode()).hexdigest(),
        "datasets": datasets_of(plan),
        "image_root": plan.image_root and str(plan.image_root),
        "versions": installed_versions(("ms-swift", "torch", "transformers", "trl", "peft", "deepspeed", "datasets")),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_atomic(plan.output_dir / manifest.LAUNCH, json.dumps(note, indent=2, ensure_ascii=False) + "\n")


def tidy(plan: Plan) -> None:
    """Put right what a killed run left in the output folder: cut-off checkpoints, and rows of steps to be repeated."""
    for path in checkpoints.set_aside_incomplete(plan.output_dir):
        print(f"note: {path}: the saving of this checkpoint was cut off; renamed, may be removed", flush=True)
    resumed = plan.settings.get("resume_from_checkpoint")
    origin = Path(str(resumed)) if resumed else None
    step = checkpoints.step_of(origin) if origin else 0
    if origin and origin.resolve().parent == plan.output_dir.resolve():
        for path in checkpoints.set_aside_later(origin):
            print(f"note: {path}: later than {origin.name}, from which this run goes on; renamed", flush=True)
    dropped = run_log.keep_until(plan.output_dir / run_log.NAME, step)
    if dropped:
        print(f"note: {plan.output_dir / run_log.NAME}: {dropped} rows after step {step} taken out", flush=True)


def execute(plan: Plan, lock: int) -> int:
    """Run ms-swift and return its exit status, 128 + N after signal N.

    The whole tree of processes (ms-swift, torchrun, ranks) is one group of its own, and gets the signals that reach
    this process: a Ctrl-C or `kill` leaves no rank behind.
    """
    environment = machine.importable({**os.environ, **plan.environment})
    command = [sys.executable, "-m", "swift.cli.main", *plan.argv]
    for name in set(WORLD_VARIABLES) - plan.environment.keys():
        environment.pop(name, None)
    received: list[int] = []
    process = None

    def pass_on(number, _frame):
        received.append(number)
        # A third Ctrl-C means now.
        with contextlib.suppress(ProcessLookupError):
            if process is not None:
                os.killpg(process.pid, signal.SIGKILL if len(received) > 2 else number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup: the training shall outlive the terminal
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        process = subprocess.Popen(command, env=environment, pass_fds=(lock,), start_new_session=True)
        if received:  # a signal that came before there was a process
            os.killpg(process.pid, signal.SIGTERM)
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        # Ranks whose parent died before them.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if process is not None:
                os.killpg(process.pid, signal.SIGTERM)
    if received and status:
        return 128 + received[0]
    return 128 - status if status < 0 else status


def after(plan: Plan, command: list[str], status: int) -> str:
    """The last line for the user: what to do next, or how to go on after a failure."""
    newest = checkpoints.latest_whole(plan.output_dir)
    script = f"bash {SCRIPTS[plan.stage]}"
    if status:
        kept = [*_without_resume(command), "--resume_from_checkpoint", str(newest)] if newest else command
        how = f"to go on from {newest.name}" if newest else "no checkpoint was saved; after mending, start again"
        return f"error: ms-swift ended with status {status}; {how}: {script} {shlex.join(kept)}".rstrip()
    if newest is None:
        return f"done: {plan.output_dir} (no checkpoint was saved)"
    where = shlex.quote(str(newest))
    if plan.stage == "critique":
        return f"next: bash scripts/evaluate.sh {where} STUDIES.jsonl"
    if (newest / "adapter_config.json").is_file():
        # Compare and Critique start from the merged model: the published way.
        merged = shlex.quote(str(plan.output_dir / "merged"))
        python = shlex.quote(sys.executable)
        hub = "USE_HF=1 " if as_bool(plan.settings, "use_hf") else ""  # the adapter names its student as the hub does
        return (
            f"next: {hub}{python} -m swift.cli.main export --adapters {where} --merge_lora true --output_dir {merged}"
        )
    return f"next: bash scripts/compare.sh {where} STUDIES.jsonl --out CONSENSUS.jsonl"


def _without_resume(words: list[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if word.startswith("--"):
            skip = word.replace("-", "_").startswith("__resume_from_checkpoint")
        if not skip:
            kept.append(word)
    return kept


def _header(script: Path) -> str:
    """The opening comment of a shell script, which is its help."""
    lines = script.read_text(encoding="utf-8").split("\n")[1:]
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[: lines.index("")])


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] not in STAGES:
        raise UserError("write: python -m scripts.launch sft|apo [CONFIG.yaml] [--flag value ...] [--dry-run]")
    stage, typed = STAGES[argv[0]], argv[1:]
    if any(word in ("-h", "--help") for word in typed):
        print(_header(ROOT / SCRIPTS[stage]))
        return 0
    command = parse_command(stage, typed)
    plan = resolve(stage, command)
    if command.dry_run:
        check_model(plan, dry_run=True)
        resume_weights(plan)
        add_data(plan, dry_run=True)
        plan.argv = to_argv(plan)
        print(show(plan))
        return 0
    doctor.refuse(plan.config, doctor.examine(plan))
    resume_weights(plan)
    # The first node keeps the folder and the record; the others only need the rows, the same bytes on a shared disk.
    first = plan.environment.get("NODE_RANK", "0") == "0"
    with locked(plan.output_dir) if first else contextlib.nullcontext(os.open(os.devnull, os.O_RDONLY)) as lock:
        if first:
            refuse_used_folder(plan)
            tidy(plan)
        add_data(plan, dry_run=False)
        plan.argv = to_argv(plan)
        if first:
            if resumed := plan.settings.get("resume_from_checkpoint"):
                manifest.refuse_other_data(Path(str(resumed)).parent, datasets_of(plan))
            record(plan)
        print(show(plan), flush=True)
        status = execute(plan, lock)
        if status and shutil.disk_usage(plan.output_dir).free < machine.LEAST_FREE:
            # What a full disk makes a library say is not always clear.
            print(f"output_dir {plan.output_dir}: the disk is full, or nearly; make room first", file=sys.stderr)
        print(after(plan, typed, status), file=sys.stderr if status else sys.stdout, flush=True)
    return status


if __name__ == "__main__":
    run_cli(main)
