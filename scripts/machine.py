"""What the machine has: packages against the pins, GPUs, memory, free disk, ports. Only `default_device` needs torch.

Every check gives lines "where: what; remedy"; nothing is written.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from scripts.arguments import installed_versions

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
# What only some jobs need; everything else in requirements.txt is needed by training.
ONLY = {
    "deepspeed": "deepspeed",
    "openai": "collect",
    "tenacity": "collect",
    "aiolimiter": "collect",
    "matplotlib": "figures",
    "scipy": "evaluate",
    "scikit-learn": "evaluate",
    "statsmodels": "evaluate",
    "jinja2": "evaluate",
}
LEAST_FREE = 2**28  # bytes that logs and records may take besides what is counted


def pins(path: Path = ROOT / "requirements.txt") -> dict[str, str]:
    """{distribution: version} of the pinned requirements."""
    found = re.findall(r"^([\w.-]+)==([\w.]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(found)


def package_problems(jobs: set[str] | None = None) -> tuple[list[str], list[str]]:
    """(errors, notes): packages that are missing, and versions other than the pinned ones.

    Args:
        jobs: what the packages are for besides training ("deepspeed", "collect", "evaluate"); None: everything.
    """
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        return [
            f"Python {sys.version.split()[0]}: the pinned packages need 3.11 or 3.12; run: bash scripts/setup.sh"
        ], []
    wanted = pins()
    found = installed_versions(tuple(wanted))
    missing = [
        n for n, version in found.items() if version is None and (jobs is None or ONLY.get(n, "") in {"", *jobs})
    ]
    errors = [f"packages: {', '.join(missing)} not installed; run: bash scripts/setup.sh"] if missing else []
    other = [f"{n} {v} (pinned {wanted[n]})" for n, v in found.items() if v is not None and v != wanted[n]]
    notes = (
        [f"packages: {', '.join(other)}; results were checked with the pins: bash scripts/setup.sh"] if other else []
    )
    return errors, notes


def git(*words: str, root: Path = ROOT) -> str | None:
    """What git says of a checkout; None outside one, and where git is not installed."""
    try:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def importable(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with this repository first in PYTHONPATH, for a process that does not begin in it."""
    parts = [str(ROOT), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    return {**environment, "PYTHONPATH": os.pathsep.join(dict.fromkeys(parts))}


def gpus() -> list[dict]:
    """[{"name", "total_gib", "free_gib"}] of the GPUs that CUDA_VISIBLE_DEVICES leaves, as the driver tells them."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 4]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if visible is None else [name.strip() for name in visible.split(",")]
    found = []
    for index, uuid, name, total, free in rows:
        chosen = names is None or index in names or any(one and uuid.startswith(one) for one in names)
        if chosen and total.isdigit() and free.isdigit():
            found.append({"name": name, "total_gib": int(total) / 1024, "free_gib": int(free) / 1024})
    return found


def gpu_problem(option: str, wanted: int, found: int) -> str | None:
    """Why `found` GPUs are too few for what `option` wants. None found is no reason: torch may see some."""
    return f"{option} {wanted}: this machine shows {found} GPUs; use at most as many" if 0 < found < wanted else None


def default_device() -> str:
    """ "cuda" where torch sees a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def memory_gib() -> float:
    """GiB of main memory that are free for a new process."""
    import psutil

    return psutil.virtual_memory().available / GIB


def existing(path: Path) -> Path:
    """The nearest folder or file above `path` that is there, or `path` itself."""
    path = Path(os.path.abspath(path))
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def write_problem(name: str, folder: Path) -> str | None:
    """Why nothing can be written below `folder` (which need not be there yet), or None; `name` is the setting's."""
    above = existing(folder)
    if not above.is_dir():
        return f"{name} {folder}: {above} is not a folder; choose another"
    if not os.access(above, os.W_OK | os.X_OK):
        return f"{name} {folder}: {above} cannot be written to; choose another, or change its permissions"
    return None


def disk_problem(name: str, folder: Path, needed: float, what: str, remedy: str = "") -> str | None:
    """Why `needed` bytes of `what` do not fit where `folder` is or will be, or None; `remedy`: one more to choose."""
    free = shutil.disk_usage(existing(folder)).free
    if free >= needed + LEAST_FREE:
        return None
    return (
        f"{name} {folder}: {free / GIB:.1f} GiB free, about {(needed + LEAST_FREE) / GIB:.1f} GiB needed ({what}); "
        f"make room, {'choose another disk, or ' if remedy else 'or choose another disk'}{remedy}"
    )


def port_problem(port: str) -> str | None:
    """Why torchrun cannot listen on `port` of this machine, or None."""
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        return f"MASTER_PORT {port}: must be a port from 1 to 65535; leave it out to have a free one chosen"
    with socket.socket() as probe:
        # As torchrun's own server does: a port that was left a moment ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            return f"MASTER_PORT {port}: cannot be used ({error.strerror}); choose another, or leave it out"
    return None
