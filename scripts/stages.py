"""Run one stage of a chain, once: recognise a finished stage, rerun what has changed and everything after it.

    python scripts/stages.py --out DIR --chain "cohort student learn" --stage learn [--outputs "learn"] [--keep] \\
        -- COMMAND ... [--then COMMAND ...]

A stage is finished when DIR/.stages/NAME.json says so, its outputs are there, and its fingerprint is unchanged: the
command, the contents of every file outside DIR that the command names, and the marker of the stage before it in the
chain (so whatever reruns makes all that follows rerun). DIR and the checkout may be moved: what lies in them is named
from there. Program code is not part of it: after editing it, choose another --out or delete what the stage made.

Outputs (default: DIR/NAME) are cleared before a run, and only if an earlier run of this stage made them; anything else
that stands in their place is left alone and reported. With --keep, an interrupted stage with the same fingerprint goes
on with what is there, for commands that resume by themselves.

The command's output goes to DIR/logs/NAME.log; DIR/stages.json keeps the seconds of every finished stage, those before
an interruption included (not those before a kill -9).
`python scripts/stages.py --out DIR --seconds-into FILE.json` copies them into that file's "seconds".
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.errors import GOES_ON, UserError, run_cli  # noqa: E402
from data.files import exclusive, sha256_file, write_atomic  # noqa: E402
from scripts.machine import write_problem  # noqa: E402

CONFIGS = (".yaml", ".yml", ".json")  # the files that markers knew before they knew all
PROGRAMS = (".py", ".sh")
THEN = "--then"
Command = list[str]
REPORT_EVERY = 30  # seconds between progress lines where there is no terminal to redraw


def module(name: str, *rest: object) -> Command:
    """The command that runs a module of this project with the Python that runs this one."""
    return [sys.executable, "-P", "-m", name, *map(str, rest)]


def split_commands(words: list[str]) -> list[list[str]]:
    """["a", "b", "--then", "c"] -> [["a", "b"], ["c"]]."""
    commands: list[list[str]] = [[]]
    for word in words:
        if word == THEN:
            commands.append([])
        else:
            commands[-1].append(word)
    if not all(commands):
        raise UserError(f"a stage needs a command (and one after every {THEN})")
    return commands


def fingerprints(commands: list[list[str]], upstream: dict | None, out: Path, reads: str | None = None) -> list[str]:
    """Hex digests of the commands, the contents of the files they name, and the marker of the stage before.

    The first is what markers get: `out` and the checkout may be moved. The others are those of older markers: of config
    files alone, then also with paths as they stand. Files below `out` are what stages make: the chain of markers stands
    for them. `reads` stands for folders that the commands read, as a checkpoint, of which the names alone would count.
    """
    before = json.dumps(upstream, sort_keys=True).encode() + (reads or "").encode()
    moved = [[_from_folders(word, out) for word in command] for command in commands]
    read = _files(commands, out)
    digests = "".join(sha256_file(path) for path in read).encode()
    configs = b"".join(path.read_bytes() for path in read if path.suffix in CONFIGS)
    return [
        hashlib.sha256(json.dumps(words).encode() + files + before).hexdigest()
        for words, files in ((moved, digests), (moved, configs), (commands, configs))
    ]


def _from_folders(word: str, out: Path) -> str:
    for name, folder in (("$OUT", out), ("$ROOT", ROOT)):
        word = re.sub(rf"(?<![\w./-]){re.escape(str(folder))}(?![\w.-])", name, word)
    return word


def _files(commands: list[list[str]], out: Path) -> list[Path]:
    """What the commands name outside `out`, their programs apart."""
    paths = [Path(word) for _, *words in commands for word in words if os.path.isfile(word)]
    return [path for path in paths if path.suffix not in PROGRAMS and not path.resolve().is_relative_to(out.resolve())]


def run_stage(
    out: Path,
    chain: list[str],
    name: str,
    commands: list[list[str]],
    *,
    outputs: list[str] | None = None,
    keep: bool = False,
    careful: bool = False,
    reads: str | None = None,
    repeat: bool = False,
    made_by: dict | None = None,
) -> bool:
    """Run a stage unless it is finished; returns whether it ran.

    Args:
        keep: the commands go on by themselves after an interruption.
        careful: and they refuse what other settings made: an earlier run's outputs are left to them in any case.
        reads: what identifies the folders that the commands read; a change of it makes the stage run again.
        repeat: run a finished stage again.
        made_by: what to note of the code in the stage's marker; a stage that goes on has one entry for each start that
            differs from the one before.

    Raises UserError when nothing can be written to `out`, when the stage before is not finished, when foreign files
    stand where the outputs go, when another run uses `out`, or when a command fails (with the log to read and how to go
    on).
    """
    if name not in chain:
        raise UserError(f"stage {name} is not in the chain: {', '.join(chain)}")
    number = chain.index(name)
    title = f"[{number + 1}/{len(chain)}] {name}"
    outputs = outputs or [name]
    if problem := write_problem("--out", out):
        raise UserError(problem)
    marker_file = out / ".stages" / f"{name}.json"
    marker_file.parent.mkdir(parents=True, exist_ok=True)
    busy = f"{out}: another run is at work there; wait for it or choose another --out"
    with exclusive(marker_file.parent / "lock", busy):
        upstream = None
        if number:
            upstream = read_marker(out, chain[number - 1])
            if not upstream or upstream["state"] != "done":
                raise UserError(f"stage {name}: {chain[number - 1]} before it is not finished; run the stages in order")
        marker = read_marker(out, name)
        now = fingerprints(commands, upstream, out, reads)
        same = bool(marker and marker["fingerprint"] in now)
        missing = [o for o in outputs if not (out / o).exists()]
        if marker and marker["state"] == "done" and same and not missing and not repeat:
            print(f"{title}: finished before, {marker['seconds']:.0f} s; not repeated", flush=True)
            return False
        resume = bool(keep and marker and marker["state"] == "running" and same)
        if resume:
            print(f"{title}: was interrupted, goes on", flush=True)
        elif marker:
            print(f"{title}: runs again, {reason(marker, same, missing)}", flush=True)
        if not resume and not (careful and marker):
            clear(out, name, outputs, owned=marker["outputs"] if marker else [])
        later = [stage for stage in chain[number + 1 :] if read_marker(out, stage)]
        if later:
            print(f"{title}: {', '.join(later)} will follow anew", flush=True)
        record = {"state": "running", "stage": name, "fingerprint": now[0], "outputs": outputs, "commands": commands}
        if made_by is not None:
            before = makers(marker) if resume and marker else []
            record["made_by"] = before if before[-1:] == [made_by] else [*before, made_by]
        write_atomic(marker_file, json.dumps(record, indent=2) + "\n")
        log = out / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        start = time.monotonic() - (marker.get("seconds", 0) if resume and marker else 0)
        print(f"{title}: {readable(commands, out)}\n{' ' * len(title)}  log: {log}", flush=True)
        try:
            for i, command in enumerate(commands):
                status = execute(command, log, title, start, append=i > 0 or resume)
                if status:
                    seconds = time.monotonic() - start
                    raise UserError(
                        f"stage {name} failed with status {status} after {seconds:.0f} s. Its last lines:\n"
                        f"{tail(log)}\nRead {log}, mend the cause, and run the same command again: "
                        "finished stages are not repeated"
                    )
        except BaseException:  # an interruption, too: what was spent counts when the stage goes on
            record["seconds"] = round(time.monotonic() - start, 1)
            write_atomic(marker_file, json.dumps(record, indent=2) + "\n")
            raise
        seconds = round(time.monotonic() - start, 1)
        absent = [o for o in outputs if not (out / o).exists()]
        if absent:
            raise UserError(f"stage {name} ended well but made no {out / absent[0]}; read {log}")
        record |= {"state": "done", "seconds": seconds, "finished": time.time_ns()}
        write_atomic(marker_file, json.dumps(record, indent=2) + "\n")
        write_seconds(out, chain[: number + 1])
    print(f"{title} ... {seconds:.0f} s", flush=True)
    return True


def makers(marker: dict) -> list[dict | None]:
    """The notes of the code that a stage ran with; [None] where none was taken."""
    return marker.get("made_by") or [None]


def reason(marker: dict, same: bool, missing: list[str]) -> str:
    """Why a stage with this marker is not finished and does not go on; `same`: its fingerprint is unchanged."""
    if not same:
        return "its settings, a file that it reads or an earlier stage changed"
    if marker["state"] != "done":
        return "it was interrupted"
    return f"{missing[0]} is missing" if missing else "as it was told to"


def clear(out: Path, name: str, outputs: list[str], owned: list[str]) -> None:
    """Remove what an earlier run of this stage made; raise UserError for anything that it did not make."""
    for output in outputs:
        path = out / output
        if not path.exists() and not path.is_symlink():
            continue
        if output not in owned or path.is_symlink():
            raise UserError(
                f"{path}: exists and was not made by stage {name}; move it away or choose another --out "
                "(nothing was deleted)"
            )
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def execute(command: list[str], log: Path, title: str, start: float, *, append: bool) -> int:
    """Run a command with its output in `log`; show the seconds while it runs. Returns its exit status."""
    live = sys.stdout.isatty()
    with open(log, "ab" if append else "wb") as file:
        file.write(f"$ {shlex.join(command)}\n".encode())
        file.flush()
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        except OSError as error:
            file.write(f"{command[0]}: {error.strerror}\n".encode())
            return 127
        shown = start
        try:
            while True:
                try:
                    return process.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    now = time.monotonic()
                    if live:
                        print(f"\r\033[K{title} ... {now - start:.0f} s  {last_line(log)}", end="", flush=True)
                    elif now - shown >= REPORT_EVERY:
                        print(f"{title} ... {now - start:.0f} s  {last_line(log)}", flush=True)
                        shown = now
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            if live:
                print("\r\033[K", end="", flush=True)


def readable(commands: list[list[str]], out: Path) -> str:
    """The first command of a stage for a reader: the folder of the run as $OUT, the interpreter as python. The log has
    every command in full."""
    words = ["python" if word == sys.executable else word.replace(str(out), "$OUT") for word in commands[0]]
    more = f"   (and {len(commands) - 1} more)" if len(commands) > 1 else ""
    return " ".join(words).replace("python -P -m", "python -m") + more


def last_line(log: Path, width: int = 80) -> str:
    lines = tail(log, 1).replace("\r", "\n").strip().split("\n")
    return "".join(c for c in lines[-1] if c.isprintable())[:width]


def tail(log: Path, lines: int = 15) -> str:
    with open(log, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 8192))
        text = file.read().decode("utf-8", "replace")
    return "\n".join(text.rstrip().split("\n")[-lines:])


def read_marker(out: Path, name: str) -> dict | None:
    path = out / ".stages" / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(f"{path}: damaged; delete it and run again, the stage is then repeated") from None


def write_seconds(out: Path, chain: list[str]) -> None:
    """stages.json: {"stages": {name: {"seconds": ...}}} of the finished stages, in the order of the chain."""
    markers = {name: read_marker(out, name) for name in chain}
    stages = {name: {"seconds": m["seconds"]} for name, m in markers.items() if m and m["state"] == "done"}
    write_atomic(out / "stages.json", json.dumps({"stages": stages}, indent=2) + "\n")


def seconds_into(out: Path, target: Path) -> None:
    """Copy the seconds by stage into the "seconds" of a results file."""
    stages = json.loads((out / "stages.json").read_text(encoding="utf-8"))["stages"]
    results = json.loads(target.read_text(encoding="utf-8"))
    results["seconds"] = {name: entry["seconds"] for name, entry in stages.items()}
    write_atomic(target, json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="scripts/stages.py", description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, type=Path, help="folder of the whole run")
    parser.add_argument("--chain", default="", help="all stages in order, separated by blanks")
    parser.add_argument("--stage", help="the stage to run")
    parser.add_argument(
        "--outputs", default="", help="what it makes under --out, separated by blanks (default: its name)"
    )
    parser.add_argument("--keep", action="store_true", help="the command resumes by itself after an interruption")
    parser.add_argument("--seconds-into", type=Path, help="write the seconds by stage into this results.json")
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:cut])
    if args.seconds_into:
        return seconds_into(args.out, args.seconds_into)
    if not args.stage:
        raise UserError("--stage is missing: name the stage to run")
    commands = split_commands(argv[cut + 1 :])
    run_stage(args.out, args.chain.split(), args.stage, commands, outputs=args.outputs.split(), keep=args.keep)
    return None


if __name__ == "__main__":
    run_cli(main, GOES_ON)
