"""The faults: each function disturbs one stage once and returns what is wrong afterwards, [] for nothing."""

import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from scripts.machine import LEAST_FREE
from tests.faults.processes import ROOT, Running
from tests.faults.stages import Stage, finish, go_on, results, start
from tests.faults.world import World

PROMPTLY = 60  # seconds from the death of a rank, or a signal, to the end of the run
RESUME_LINE = r"to go on"


class Skipped(Exception):
    """This machine cannot make the fault; says why."""


class Undisturbed(NamedTuple):
    """A stage's run that nothing disturbed: its trial folder; seconds until work began, and until the end."""

    folder: Path
    working: float
    end: float


def undisturbed(stage: Stage, world: World, **options) -> Undisturbed:
    trial = world.trial(f"{stage.name}-undisturbed")
    run = start(stage, world, trial, **options)
    assert run.until(lambda: stage.working(trial / "out")), run.log.read_text()[-3000:]
    working = time.monotonic() - run.begun
    ended = run.end()
    assert ended.status == 0, ended.said[-3000:]
    return Undisturbed(trial, working, ended.seconds)


def wait_for_a_moment(
    run: Running, stage: Stage, trial: Path, calm: Undisturbed, draw: random.Random, *, early: float, until: float = 1.0
) -> None:
    """A random moment: in a part `early` of all cases before the work has begun, else while it is under way.

    until: the part of the undisturbed run's working time in which it lies.
    """
    before, part = draw.random() < early, draw.random()
    if before:
        run.sleep(part * calm.working)
    elif run.until(lambda: stage.working(trial / "out")):
        run.sleep(part * until * (calm.end - calm.working))


def hit(stage: Stage, world: World, name: str, disturb: Callable[[Running, Path, float], object]) -> Path:
    """The trial folder of a run that `disturb(run, trial, until)` met alive, as its answer says.

    Times of the undisturbed run are only a guide: a run that had ended before is done again, in half of the time.
    """
    for tries in range(6):
        trial = world.trial(f"{stage.name}-{name}")
        run = start(stage, world, trial)
        if disturb(run, trial, 0.5**tries):
            return trial
        run.end()
    raise AssertionError("it had always ended before the fault")


def killed(stage: Stage, world: World, calm: Undisturbed, draw: random.Random) -> list[str]:
    """SIGKILL of the whole tree at a random moment, the run that goes on killed too in one case of three."""

    def kill(run: Running, trial: Path, until: float) -> bool:
        wait_for_a_moment(run, stage, trial, calm, draw, early=0.25, until=until)
        return run.kill()

    trial = hit(stage, world, "kill", kill)
    if draw.random() < 1 / 3:
        run, _ = go_on(stage, world, trial)
        run.sleep(draw.random() * calm.end)
        run.kill()
    return finish(stage, world, trial, calm.folder)


def signalled(number: signal.Signals) -> Callable[[Stage, World, Undisturbed, random.Random], list[str]]:
    """SIGINT to the whole group, as Ctrl-C sends it, or SIGTERM to the first process only, as `kill` does."""

    def fault(stage: Stage, world: World, calm: Undisturbed, draw: random.Random) -> list[str]:
        found: list[str] = []

        def send(run: Running, trial: Path, until: float) -> bool:
            wait_for_a_moment(run, stage, trial, calm, draw, early=0, until=0.5 * until)
            tree = run.tree()
            sent = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGINT:
                    os.killpg(run.process.pid, number)
                else:
                    run.process.send_signal(number)
            ended = run.end()
            if ended.status == 0:
                return False
            # Python gives its signal handlers back before it exits: whole results and no word then.
            if ended.status == -number and not list(stage.differences(trial / "out", calm.folder / "out")):
                return False
            if ended.status not in (130, 143):
                found.append(f"status {ended.status}")
            if not re.search(stage.resumable, ended.said):
                found.append("does not say how to resume")
            if not stage.trains and "Traceback" in ended.said:
                found.append("ends with a traceback")
            if time.monotonic() - sent > PROMPTLY:
                found.append(f"took {time.monotonic() - sent:.0f} s to end")
            _, left = psutil.wait_procs(tree, timeout=5)
            if left:
                found.append(f"{len(left)} processes are left")
            return True

        trial = hit(stage, world, number.name, send)
        return found + finish(stage, world, trial, calm.folder)

    return fault


# ---- disk full


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes at `folder`; Skipped where this user may not mount one."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        raise Skipped("no right to mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def disk_full(stage: Stage, world: World, calm: Undisturbed, draw: random.Random) -> list[str]:
    """The output's disk is filled by something else while work is under way, but for a random part of what is needed.

    A run that ends well before it meets the full disk was not disturbed: another is tried, with less room.
    """
    needed = sum(path.stat().st_size for path in (calm.folder / "out").rglob("*") if path.is_file())
    rooms = [int(draw.random() * 0.3 * needed), 0, 0]
    for room in rooms:
        trial = world.trial(f"{stage.name}-disk")
        try:
            with small_disk(trial / "out", LEAST_FREE + 2**27):
                found = _filled(stage, world, calm, trial, room)
        except Skipped:
            if stage.trains:
                raise
            return files_limited(stage, world, calm, draw)
        if found is not None:
            return found
    return [f"{len(rooms)} runs ended before they met the full disk"]


def _filled(stage: Stage, world: World, calm: Undisturbed, trial: Path, room: int) -> list[str] | None:
    """One run whose disk is filled but for `room` bytes; None when it did not need them."""
    run = start(stage, world, trial)
    run.until(lambda: stage.working(trial / "out"))
    free = shutil.disk_usage(trial / "out").free
    filler = trial / "out/filler"
    with contextlib.suppress(OSError), open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(4096, free - room))
    ended = run.end()
    filler.unlink(missing_ok=True)
    if ended.status == 0:
        return results(stage, trial, calm.folder, ended) or None
    found = []
    if not re.search(r"No space left on device|make room", ended.said):
        found.append(f"does not say that the disk is full: {ended.said.strip()[-200:]}")
    if not stage.trains and "Traceback" in ended.said:
        found.append("ends with a traceback")
    return found + finish(stage, world, trial, calm.folder)


def files_limited(stage: Stage, world: World, calm: Undisturbed, draw: random.Random) -> list[str]:
    """No file may grow past a random size: a full disk for users who may not mount a small one."""
    trial = world.trial(f"{stage.name}-limit")
    sizes = [path.stat().st_size for path in (calm.folder / "out").rglob("*.jsonl")]
    limit = int(max(sizes) * (0.2 + 0.6 * draw.random()))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))  # inherited; the log is small
    try:
        run = start(stage, world, trial)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    ended = run.end()
    found = []
    if ended.status == 0:
        found.append("did not notice that a file could not be written")
    if "make room" not in ended.said or "Traceback" in ended.said:
        found.append(f"no clear error: {ended.said.strip()[-200:]}")
    return found + finish(stage, world, trial, calm.folder)


# ---- ranks


def rank_killed(stage: Stage, world: World, draw: random.Random) -> list[str]:
    """One of two ranks is killed; what goes on is compared with an undisturbed run of two ranks."""
    two = {"environment": {"NPROC_PER_NODE": "2"}}
    calm = undisturbed(stage, world, **two)
    trial = world.trial(f"{stage.name}-rank")
    run = start(stage, world, trial, **two)
    assert run.until(lambda: stage.working(trial / "out"))
    run.sleep(draw.random() * 0.5 * (calm.end - calm.working))
    victim = draw.randrange(2)
    (rank,) = [one for one in run.tree() if _rank(one) == str(victim)]
    rank.kill()
    at = time.monotonic()
    ended = run.end()
    seconds = time.monotonic() - at
    found = []
    if ended.status == 0:
        found.append("ended with status 0")
    if seconds > PROMPTLY:
        found.append(f"took {seconds:.0f} s to end")
    # torchrun's report, the last before the launcher's line.
    if not re.search(rf"Root Cause[^=]*rank +: {victim} \(.*\n.*exitcode +: -9 .*SIGKILL", ended.said):
        found.append(f"does not name rank {victim}")
    if not re.search(stage.resumable, ended.said):
        found.append("does not say how to resume")
    return found + finish(stage, world, trial, calm.folder, **two)


def _rank(process: psutil.Process) -> str | None:
    try:
        # torchrun's children have it, and so has whatever a rank starts: only the rank's own parent lacks it.
        mine = process.environ().get("RANK")
        return None if process.parent().environ().get("RANK") == mine else mine
    except (psutil.Error, AttributeError):
        return None


# ---- surroundings


def clock_wrong(stage: Stage, world: World, calm: Undisturbed, draw: random.Random) -> list[str]:
    """The clock ten years ahead until a kill, then ten years back."""
    if not shutil.which("faketime"):
        raise Skipped("faketime is not installed")
    ahead, back = ({"FAKETIME": when, "LD_PRELOAD": _faketime()} for when in ("+3650d", "-3650d"))
    still = {"DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_RESET": "1"}
    trial = world.trial(f"{stage.name}-clock")
    run = start(stage, world, trial, environment=ahead | still)
    assert run.until(lambda: stage.working(trial / "out")), run.log.read_text()[-2000:]
    run.sleep(0.5 * (calm.end - calm.working))
    run.kill()
    return finish(stage, world, trial, calm.folder, environment=back | still)


def _faketime() -> str:
    said = subprocess.run(
        ["faketime", "now", "sh", "-c", "echo $LD_PRELOAD"], capture_output=True, text=True, check=True
    )
    return said.stdout.strip()


def locale_c(stage: Stage, world: World, calm: Undisturbed, draw: random.Random) -> list[str]:
    """A locale without UTF-8, under which Python reads and prints ASCII unless told otherwise."""
    trial = world.trial(f"{stage.name}-locale")
    plain = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    return results(stage, trial, calm.folder, start(stage, world, trial, environment=plain).end())


@contextlib.contextmanager
def read_only_checkout(folder: Path) -> Iterator[Path]:
    """A copy of the checkout below `folder` that nobody can write to, root included."""
    copy, bound = folder / "copy", folder / "checkout"
    skip = shutil.ignore_patterns(".git", "runs", ".venv*", "__pycache__", ".pytest_cache", ".hypothesis", "shared")
    shutil.copytree(ROOT, copy, ignore=skip, symlinks=True)
    if os.geteuid():
        for path in [copy, *copy.rglob("*")]:
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)
        yield copy
        for path in [copy, *(one for one in copy.rglob("*") if one.is_dir())]:
            path.chmod(path.stat().st_mode | 0o200)
        return
    bound.mkdir()
    if subprocess.run(["mount", "--bind", str(copy), str(bound)], capture_output=True).returncode:
        raise Skipped("root without the right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(bound)], check=True)
        yield bound
    finally:
        subprocess.run(["umount", "-l", str(bound)], check=True)


def read_only(stage: Stage, world: World, calm: Undisturbed, draw: random.Random) -> list[str]:
    """The checkout cannot be written to, and is the working directory."""
    trial = world.trial(f"{stage.name}-read-only")
    with read_only_checkout(trial) as root:
        there = {"PYTHONPATH": str(root)}
        return results(stage, trial, calm.folder, start(stage, world, trial, root=root, environment=there).end())


# ---- two at once


def two_at_once(stage: Stage, world: World, calm: Undisturbed, draw: random.Random) -> list[str]:
    """A second run into the same folder while the first is at work."""
    trial = world.trial(f"{stage.name}-two")
    first = start(stage, world, trial)
    assert first.until(lambda: stage.working(trial / "out"))
    with contextlib.suppress(psutil.NoSuchProcess):
        stopped = first.tree()
        for one in stopped:  # so that it is still at work when the second one looks
            one.suspend()
    second = start(stage, world, trial)
    said = second.end()
    for one in stopped:
        one.resume()
    found = []
    if said.status != 2 or not re.search(r"error: .*(another run|trains into it)", said.said):
        found.append(f"the second was not refused: status {said.status}, {said.said.strip()[-200:]}")
    return found + results(stage, trial, calm.folder, first.end())
