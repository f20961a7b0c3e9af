"""What it costs to turn study records into rows: seconds and memory, from one to many times the size of CXR-MAX.

    python -m data.bench                                  # 170,982 trajectories: 24,426 studies of seven teachers
    python -m data.bench --times 1,10,60 --characters 100 # memory against the number of studies, with short texts
    python -m data.bench --json FILE.json                 # the same numbers for programs

Records, texts and films are made here; a film is only looked for, as `python -m data.rows` does by default. Each stage
is the command itself in a process of its own, one after the other; peak memory is the kernel's high-water mark (VmHWM).
"""

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from data.errors import UserError, refuse_below_one, run_cli
from data.files import atomic_open, dump, out_file, write_atomic

STUDIES = 24_426  # of CXR-MAX, each with the trajectories of seven teachers: 170,982
TEACHERS = ("sonnet-4", "gpt-5-nano", "glm-4.5v", "gemini-2.5-flash-lite", "moonshot-v1", "qwen-vl-max", "grok-4")
CHARACTERS = 830  # mean of the seven trajectories that were published
STAGES = ("sft", "apo")
TEXTS = 997  # different texts; no two teachers of a study get the same one
PHRASES = (
    "the left lung base shows increased opacity",
    "with blunting of the right costophrenic angle.",
    "**Pleural effusion:** suggests fluid – layering,",
    "no pneumothorax is seen.\n",
)
PROMPT = "<image>\nWhich findings of this chest film support the diagnoses of atelectasis and pleural effusion?"


def texts(characters: int, seed: int) -> list[str]:
    """TEXTS random texts of about so many characters, each another."""
    rng = random.Random(seed)
    made = []
    for number in range(TEXTS):
        text = f"{number}."
        while len(text) < characters:
            text += " " + rng.choice(PHRASES)
        made.append(text.strip())
    return made


def audit() -> dict:
    """An audit of the size that `vote` writes for six findings."""
    labels = ("Consolidation", "Pleural Effusion", "Pneumonia", "Pneumothorax", "Edema", "Atelectasis")
    said = {teacher: ["present", "left"] for teacher in TEACHERS}
    votes = {"present": 4, "absent": 2, "uncertain": 0, "silent": 1}
    finding = {"state": "present", "side": "left", "stated": True, "said": said, "corrected": [], "votes": votes}
    spans = [[100 * place, 100 * place + 80, label, "consistent"] for place, label in enumerate(labels)]
    return {"findings": dict.fromkeys(labels, finding), "spans": dict.fromkeys(TEACHERS, spans), "unheard": {}}


def lines(studies: int, films: int, characters: int, seed: int) -> Iterator[bytes]:
    """So many study records with a consensus, as lines; study i shows film i modulo `films`."""
    pool = [dump(text) for text in texts(characters, seed)]
    consensus = dump({"text": texts(characters // 3 + 8, seed)[0], "strategy": "vote", "audit": audit()})
    for number in range(studies):
        at = number * len(TEACHERS)
        trajectories = ", ".join(
            f'{{"teacher": "{teacher}", "text": {pool[(at + place) % TEXTS]}, "status": "ok"}}'
            for place, teacher in enumerate(TEACHERS)
        )
        study = {
            "id": f"s{number:08d}",
            "patient": f"p{number // 2:08d}",
            "source": "bench",
            "split": "train",
            "images": [film_name(number % films)],
            "prompt": PROMPT,
        }
        yield f'{dump(study)[:-1]}, "trajectories": [{trajectories}], "consensus": {consensus}}}\n'.encode()


def film_name(number: int) -> str:
    return f"films/{number // 1000:03d}/{number:08d}.png"


def make_films(folder: Path, films: int) -> None:
    for number in range(films):
        path = folder / film_name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"only looked for")


# The command as it is, and then its status into a file. Not by wait4: its peak memory begins with that of the
# process that started it.
MEASURED = """
import atexit, sys
from pathlib import Path
from data import rows
from data.errors import run_cli
report = Path(sys.argv.pop(1))
atexit.register(lambda: report.write_text(Path("/proc/self/status").read_text()))
run_cli(rows.main)
"""


def measure(stage: str, studies: Path, out: Path) -> dict[str, float]:
    """Run one stage's command on `studies`; {"seconds", "cpu_seconds", "peak_mb"} of its process.

    Raises:
        UserError: the command failed.
    """
    report = out.with_name("status.txt")
    command = [sys.executable, "-c", MEASURED, str(report), stage, str(studies), "--split", "train", "--out", str(out)]
    root = Path(__file__).parents[1]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise UserError(f"python -m data.rows {stage}: ended with status {done.returncode}; see its message above")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", report.read_text())[1])
    report.unlink()
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak * 1024 / 1e6}


def run(folder: Path, *, studies: int, times: list[int], characters: int, seed: int) -> list[dict]:
    """A result for each of `times`: {"times", "studies", "trajectories", "input_mb"}, and `measure` by stage."""
    make_films(folder, studies)
    results = []
    for factor in times:
        source, rows = folder / "studies.jsonl", folder / "rows.jsonl"
        with atomic_open(source) as out:
            out.writelines(lines(studies * factor, studies, characters, seed))
        one = {"times": factor, "studies": studies * factor, "trajectories": studies * factor * len(TEACHERS)}
        one["input_mb"] = source.stat().st_size / 1e6
        for stage in STAGES:
            one[stage] = measure(stage, source, rows)
            rows.unlink()
        results.append(one)
        print(line(one), flush=True)
    return results


def header() -> str:
    names = ("times", "trajectories", "input, MB", "sft, s", "apo, s", "both, s", "a second", "sft, MB", "apo, MB")
    return "| " + " | ".join(names) + " |\n|" + " ---: |" * len(names)


def line(one: dict) -> str:
    """A result as a row of the table; "a second" is trajectories through both stages, MB is peak memory."""
    both = sum(one[stage]["seconds"] for stage in STAGES)
    cells = [f"{one['times']}", f"{one['trajectories']:,}", f"{one['input_mb']:,.0f}"]
    cells += [f"{one[stage]['seconds']:.1f}" for stage in STAGES]
    cells += [f"{both:.1f}", f"{one['trajectories'] / both:,.0f}"]
    cells += [f"{one[stage]['peak_mb']:.0f}" for stage in STAGES]
    return "| " + " | ".join(cells) + " |"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=STUDIES, help=f"studies at once the size (default: {STUDIES})")
    parser.add_argument("--times", default="1", help="sizes, separated by commas (default: 1)")
    parser.add_argument("--characters", type=int, default=CHARACTERS, help=f"of a text (default: {CHARACTERS})")
    parser.add_argument("--folder", type=Path, help="where to make a temporary folder (default: the system's)")
    parser.add_argument("--seed", type=int, default=0, help="of the texts (default: 0)")
    parser.add_argument("--json", type=out_file, metavar="FILE", help="write the results there too")
    args = parser.parse_args(argv)
    refuse_below_one(args, "studies", "characters")
    words = args.times.split(",")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UserError(f"--times {args.times}: write whole numbers from 1 up, separated by commas, e.g. 1,10,60")
    args.times = [int(word) for word in words]
    if args.folder is not None and not args.folder.is_dir():
        raise UserError(f"--folder {args.folder}: is no folder; make it first")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    machine = {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0], "python": sys.version.split()[0]}
    print(f"{machine['cores']} cores, load {machine['load']:.1f}, Python {machine['python']}\n\n{header()}", flush=True)
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="data-bench.") as folder:
        results = run(Path(folder), studies=args.studies, times=args.times, characters=args.characters, seed=args.seed)
    if args.json is not None:
        settings = {"studies": args.studies, "characters": args.characters, "seed": args.seed}
        whole = {"machine": machine, "settings": settings, "results": results}
        write_atomic(args.json, json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    run_cli(main)
