"""What an output was made from: hashes of inputs, settings and code, in FILE.meta.json beside it.

    python -m data.manifest PATH ...    # is each still what was written, and are its inputs still the same?

PATH is a file with such a sidecar (Collect, Compare, predictions) or the output folder of a training run, whose
launch.json says the same. Exit status 2 with a line for each file that has changed since.
"""

import argparse
import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from data.errors import Problems, UserError, run_cli
from data.files import StrPath, sha256_file, write_atomic

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("apo", "data", "eval", "scripts")
KEY = "manifest"  # its place in a sidecar, beside what else the sidecar keeps
LAUNCH = "launch.json"


@cache
def code() -> dict[str, str]:
    """Version of this project and SHA-256 over every Python file of it, as they were when this process first asked."""
    return code_now()


def code_now() -> dict[str, str]:
    """The same as it is on the disk now: what a process that is started now would run."""
    digest = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0{sha256_file(path)}\n".encode())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return {"version": version, "sha256": digest.hexdigest()}


def entry(path: StrPath) -> dict[str, str]:
    """A file as manifests name it: absolute path and SHA-256."""
    return {"path": os.path.abspath(path), "sha256": sha256_file(path)}


def make(inputs: Mapping[str, StrPath], settings: Mapping[str, Any]) -> dict[str, Any]:
    """{"inputs": {name: {"path", "sha256"}}, "settings", "settings_sha256", "code"}; settings: JSON, no secrets."""
    return {
        "inputs": {name: entry(path) for name, path in inputs.items()},
        "settings": dict(settings),
        "settings_sha256": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "code": code(),
    }


def sidecar(out: StrPath) -> Path:
    return Path(f"{os.fspath(out)}.meta.json")


def write(out: StrPath, inputs: Mapping[str, StrPath], settings: Mapping[str, Any]) -> None:
    """Write the sidecar of a finished output file."""
    whole = {KEY: make(inputs, settings) | {"output": sha256_file(out)}}
    write_atomic(sidecar(out), json.dumps(whole, indent=2, ensure_ascii=False) + "\n")


def stale(path: StrPath) -> list[str]:
    """One line for each file that is not what the manifest of `path` says; [] when all are, or without a sidecar.

    Raises UserError for a manifest that cannot be read, and for a sidecar that holds none.
    """
    folder = os.path.isdir(path)
    note = Path(path) / LAUNCH if folder else sidecar(path)
    if not note.is_file():
        return []
    try:
        whole = json.loads(note.read_text(encoding="utf-8"))
        if folder:
            output, named = None, [whole["config"], *whole["datasets"]]
        else:
            found = whole[KEY]
            output, named = found.get("output"), list(found["inputs"].values())
        inputs = [(one["path"], one["sha256"]) for one in named]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{note}: damaged, or without a manifest ({type(error).__name__}); what made {path} is unknown; "
            "make it anew"
        ) from None
    lines = []
    if output and sha256_file(path) != output:
        lines.append(f"{path}: is not the file that {note.name} describes (edited, mixed or replaced); make it anew")
    for name, digest in inputs:
        if not os.path.isfile(name):
            lines.append(f"{path}: its input {name} is not there any more; put it back or make {path} anew")
        elif sha256_file(name) != digest:
            lines.append(f"{path}: its input {name} has changed since; make {path} anew")
    return lines


def refuse_other_data(previous: StrPath, datasets: list[dict]) -> None:
    """Refuse to go on with the run of folder `previous` on other data than it was begun with; ignores a folder without
    a record. `datasets` are entries of the run to come."""
    note = Path(previous) / LAUNCH
    if not note.is_file():
        return
    try:
        before = sorted(one["sha256"] for one in json.loads(note.read_text(encoding="utf-8"))["datasets"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{note}: damaged ({type(error).__name__}); begin anew in another --output_dir") from None
    if before != sorted(one["sha256"] for one in datasets):
        raise UserError(
            f"{previous}: its run was begun on other data ({note.name} has other hashes of the datasets); "
            "put the old data back, or begin anew in another --output_dir"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.manifest", description=__doc__.split("\n")[0])
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="an output file, or the output folder of a training run"
    )
    problems = Problems("manifests")
    for path in parser.parse_args().paths:
        note = Path(path) / LAUNCH if os.path.isdir(path) else sidecar(path)
        if not note.is_file():
            raise UserError(f"{path}: has no manifest ({note} is not there)")
        lines = stale(path)
        for line in lines:
            problems.add(line)
        if not lines:
            print(f"{path}: as its manifest says")
    problems.refuse()


if __name__ == "__main__":
    run_cli(main)
