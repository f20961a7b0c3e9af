"""Learn, compare, critique and generate on real films and real trajectories; see scripts/trial.sh.

Films get trajectories by a stated rule, not by content: the seven published trajectories of one film are rotated by the
film's number k, and the first 3 + k mod 5 of them are taken, so that N differs by study. Teachers that refused
stay in the record with status "refused". From a patient's second film on, the study shows the preceding film as well.
"""

import argparse
import csv
import math
import os
import shlex
import subprocess
import time
from pathlib import Path

from data import checkpoints
from data.errors import UserError, run_cli
from data.files import read_jsonl
from data.findings import is_refusal
from data.records import write_studies
from scripts.machine import write_problem
from scripts.stages import module

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "This is a patient's chest DR image {films}. Please help me determine the patient's disease."
CASE, FILMS = "cxr_max_case/trajectories.jsonl", "hannover/data.csv"
# Equal within float32 noise after a few steps; bfloat16 has 8 bits of mantissa.
SAME_LOSS = 1e-4


def trial_studies(data_root: Path, films: int | None) -> list[dict]:
    """Study records over the real films, trajectories by the rule above. Every sixth patient is held out as test."""
    for name in (CASE, FILMS):
        if not (data_root / name).is_file():
            raise UserError(f"{data_root / name}: not there; --data-root must hold {CASE} and {FILMS}")
    teachers = [
        {
            "teacher": row["teacher"],
            "text": row["trajectory"],
            "status": "refused" if is_refusal(row["trajectory"]) else "ok",
        }
        for _, row in read_jsonl(data_root / CASE)
    ]
    with (data_root / FILMS).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:films]
    patients = list(dict.fromkeys(row["patient_id"] for row in rows))
    studies = []
    for patient in patients:
        # "Event relative to this image": the more negative offset is the later film.
        own = sorted((r for r in rows if r["patient_id"] == patient), key=lambda r: -float(r["admission_offset"] or 0))
        for place, row in enumerate(own):
            number = len(studies)
            shown = [own[place - 1]["image_id"]] if place else []
            shown.append(row["image_id"])
            turned = teachers[number % 7 :] + teachers[: number % 7]
            studies.append(
                {
                    "id": row["image_id"],
                    "patient": patient,
                    "source": "hannover",
                    "split": "test" if patients.index(patient) % 6 == 5 else "train",
                    "images": [f"{name}.png" for name in shown],
                    "prompt": PROMPT.format(films="<image>" * len(shown)),
                    "trajectories": turned[: 3 + number % 5],
                    "view": row["projection"].upper(),
                }
            )
    return studies


class Trial:
    """Runs the project's own commands into one output folder, and collects what they showed."""

    def __init__(self, out: Path, image_root: Path, steps: int):
        self.out, self.image_root, self.steps = out, image_root, steps
        self.rows: list[dict] = []

    def command(self, name: str, words: list, **environment: str) -> float:
        """Run a command with its output in OUT/NAME.log; returns the memory of its largest process in MB.

        UserError with the end of the log when it fails.
        """
        words = [str(word) for word in words]
        print(f"[{name}] {shlex.join(words)}", flush=True)
        log = self.out / f"{name}.log"
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                words, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}, cwd=ROOT
            )
            # Covers the processes that this one has started and waited for.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = code = os.waitstatus_to_exitcode(status)
        if code:
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            raise UserError(f"{name} ended with code {code}; the end of {log}:\n" + "\n".join(tail))
        return usage.ru_maxrss / 1024

    def train(self, name: str, script: str, ranks: int, dataset: Path, flags: list, *, bfloat16: bool = False) -> Path:
        """One training run of a launcher on `ranks` processes; returns its checkpoint."""
        config = "configs/sft_trial.yaml" if script.startswith("SFT") else "configs/apo_trial.yaml"
        words = ["bash", script, config, "--dataset", dataset, "--image_root", self.image_root]
        words += ["--output_dir", self.out / name, "--max_steps", self.steps]
        words += ["--per_device_train_batch_size", 2 // ranks, *flags]
        if bfloat16:
            # Few CPUs multiply in bfloat16 (without it a step at full size takes minutes): one step, films scaled down.
            words += ["--torch_dtype", "bfloat16", "--deepspeed", "zero2", "--max_steps", 1, "--max_pixels", 50176]
        started = time.monotonic()
        threads = {} if ranks == 1 else {"NPROC_PER_NODE": str(ranks), "OMP_NUM_THREADS": "1"}
        peak = self.command(name, words, **threads)
        logged = [row for _, row in read_jsonl(self.out / name / "logging.jsonl", finite=False)]
        steps = [row for row in logged if "loss" in row]
        self.rows.append(
            {
                "run": name,
                "ranks": ranks,
                "losses": [row["loss"] for row in steps],
                "seconds_a_step": next(row for row in logged if "train_runtime" in row)["train_runtime"] / len(steps),
                "seconds": time.monotonic() - started,
                "peak_mb": peak,
            }
        )
        return checkpoints.latest(self.out / name)

    def same(self, one: str, two: str) -> None:
        """Fail unless two runs logged equal losses."""
        losses = {row["run"]: row["losses"] for row in self.rows}
        worst = max(abs(a - b) for a, b in zip(losses[one], losses[two], strict=True))
        print(f"  {one} and {two}: largest difference of losses {worst:.1e}", flush=True)
        if worst > SAME_LOSS:
            raise UserError(f"{two} did not train like {one}: losses {losses[two]} and {losses[one]}")


def describe_rows(path: Path) -> float:
    """Print N by row; returns the loss expected at the first step of two studies, the mean of log(N+1)."""
    sizes = [len(row["negative_messages"]) for _, row in read_jsonl(path)]
    print("negatives by row:", " ".join(map(str, sizes)))
    return sum(math.log(n + 1) for n in sizes[:2]) / 2


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bash scripts/trial.sh", description=__doc__.split("\n")[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "trial")
    parser.add_argument("--films", type=int)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args(argv)
    if args.steps < 1 or (args.films is not None and args.films < 8):
        raise UserError("--steps must be at least 1 and --films at least 8")
    out = args.out.resolve()
    if problem := write_problem("--out", out):
        raise UserError(problem)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty; remove it or choose another --out")
    studies = trial_studies(args.data_root, args.films)
    out.mkdir(parents=True, exist_ok=True)
    films = args.data_root.resolve() / "hannover" / "png"
    write_studies(out / "studies.jsonl", studies)
    refused = sum(t["status"] == "refused" for study in studies for t in study["trajectories"])
    two = sum(len(study["images"]) == 2 for study in studies)
    print(f"{len(studies)} studies, {two} of them with a prior film, {refused} refusals set aside")

    trial = Trial(out, films, args.steps)
    student = out / "student"
    trial.command("student", module("data.phantom.student", "--out", student, "--tokenizer", "qwen", "--seed", 0))

    full, lora = ["--tuner_type", "full"], ["--tuner_type", "lora"]
    model = ["--model", student]
    learnt = trial.train("learn-full", "SFT-Qwen2.5.sh", 1, out / "studies.jsonl", [*model, *full])
    trial.train("learn-lora", "SFT-Qwen2.5.sh", 1, out / "studies.jsonl", [*model, *lora])
    trial.train("learn-lora-2", "SFT-Qwen2.5.sh", 2, out / "studies.jsonl", [*model, *lora])
    trial.same("learn-lora", "learn-lora-2")

    # A random student cannot aggregate: `self` shows that the stage runs, the critique takes the label-free consensus.
    compare = ["bash", "scripts/compare.sh", learnt]
    write_studies(out / "few.jsonl", studies[:2])
    few = ["--strategy", "self"]
    few += ["--max-new-tokens", 16, "--cut-off", "keep", "--allow-failures", "--out", out / "self.jsonl"]
    trial.command("compare-self", [*compare, out / "few.jsonl", "--image-root", films, *few])
    consensus = out / "consensus.jsonl"
    label_free = ["--strategy", "dawid_skene", "--out", consensus]
    trial.command("compare", [*compare, out / "studies.jsonl", "--image-root", films, *label_free])

    model = ["--model", learnt]
    critique = trial.train("critique-lora", "APO-Qwen2.5.sh", 1, consensus, [*model, *lora])
    expected = describe_rows(out / "critique-lora" / "rows" / "train.jsonl")
    trial.train("critique-lora-2", "APO-Qwen2.5.sh", 2, consensus, [*model, *lora])
    trial.same("critique-lora", "critique-lora-2")
    trial.train("critique-full", "APO-Qwen2.5.sh", 1, consensus, [*model, *full])
    trial.train("critique-full-2", "APO-Qwen2.5.sh", 2, consensus, [*model, *full])
    trial.same("critique-full", "critique-full-2")
    trial.train("critique-zero2", "APO-Qwen2.5.sh", 2, consensus, [*model, *lora], bfloat16=True)

    answers = ["--split", "test", "--limit", 2, "--max-new-tokens", 8, "--out", out / "answers.jsonl"]
    generate = module("eval.predict", critique, "--studies", consensus, "--image-root", films, *answers)
    trial.command("generate", generate)
    print(f"generated {sum(1 for _ in read_jsonl(out / 'answers.jsonl'))} answers (random student: nothing to read)")

    print(f"\n{'run':<18}{'ranks':>6}{'first loss':>12}{'s/step':>9}{'s in all':>10}{'peak MB':>9}")
    for row in trial.rows:
        print(
            f"{row['run']:<18}{row['ranks']:>6}{row['losses'][0]:>12.5f}{row['seconds_a_step']:>9.2f}"
            f"{row['seconds']:>10.0f}{row['peak_mb']:>9.0f}"
        )
    print(f"expected first loss of critique: mean log(N+1) of the first two rows = {expected:.5f}")
    for row in trial.rows:
        if row["run"].startswith("critique") and abs(row["losses"][0] - expected) > 1e-3:
            raise UserError(f"{row['run']}: first loss {row['losses'][0]:.5f}, not log(N+1) = {expected:.5f}")
    print(f"all runs did what they must; logs and checkpoints in {out}")


if __name__ == "__main__":
    run_cli(main)
