"""The stages under test: their commands, when their work has begun, whether their results are the undisturbed ones."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from data import checkpoints, manifest
from data.files import read_jsonl
from tests.faults.processes import ROOT, Ended, Running
from tests.faults.world import World

STEPS = 8
DONE = "studies.jsonl*.partial.jsonl"  # of Compare: what one process, or each of several, has finished
LOSS, WEIGHTS = 1e-6, 1e-6  # absolute; on one machine both are usually equal to the last digit


class Stage(NamedTuple):
    """command(world, trial, root): the words, run in the checkout `root`. working(out): whether work is under way.
    differences(out, wanted): what of the results is lost, doubled or other than in the undisturbed run's folder.
    resumable: what the last words of an interrupted run must match.
    """

    name: str
    command: Callable[[World, Path, Path], list]
    working: Callable[[Path], bool]
    differences: Callable[[Path, Path], Iterator[str]]
    resumable: str = r"to go on, run the same command"

    @property
    def trains(self) -> bool:
        return self.name in ("learn", "critique")


# ---- commands


def _collect(world: World, trial: Path, root: Path) -> list:
    config = world.collect_config(trial)
    return ["bash", root / "scripts/collect.sh", config, "--out", trial / "out/studies.jsonl"]


def _compare(world: World, trial: Path, root: Path) -> list:
    words = ["bash", root / "scripts/compare.sh", world.student, world.studies, "--strategy", "self"]
    words += ["--image-root", world.cohort, "--out", trial / "out/studies.jsonl", "--device", "cpu"]
    return [*words, "--cut-off", "keep", "--allow-failures", "--max-new-tokens", 24, "--batch-size", 2]


def _compare_by_two(world: World, trial: Path, root: Path) -> list:
    return [*_compare(world, trial, root), "--processes", 2]


def _evaluate(world: World, trial: Path, root: Path) -> list:
    words = ["bash", root / "scripts/evaluate.sh", world.student, world.studies, "--split", "train"]
    words += ["--image-root", world.cohort, "--out", trial / "out", "--device", "cpu"]
    return [*words, "--max-new-tokens", 32, "--batch-size", 1]


def _benchmark(world: World, trial: Path, root: Path) -> list:
    words = ["bash", root / "scripts/evaluate.sh", world.student, "--benchmark", "phantom-presence", "--gpus", 2]
    words += ["--data-root", world.cohort, "--set", "split=train", "--out", trial / "out", "--device", "cpu"]
    return [*words, "--max-new-tokens", 32, "--batch-size", 1, "--resamples", 20]


def _train(script: str, config: str, dataset: str) -> Callable[[World, Path, Path], list]:
    def command(world: World, trial: Path, root: Path) -> list:
        words = ["bash", root / script, root / "configs" / config, "--model", world.student]
        words += ["--dataset", getattr(world, dataset), "--image_root", world.cohort, "--output_dir", trial / "out"]
        words += ["--max_steps", STEPS, "--save_strategy", "steps", "--save_steps", 2, "--save_total_limit", 2]
        words += ["--per_device_train_batch_size", 2, "--effective_batch_size", 4]
        words += ["--logging_steps", 1, "--dataloader_num_workers", 0]
        words += ["--eval_strategy", "no"]
        if "APO" in script:
            words += ["--model_kwargs", json.dumps({"apo_cache_dir": str(trial / "out/reference")})]
        return words

    return command


# ---- results


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _comparing(out: Path) -> bool:
    return any(_lines(path) for path in out.glob(DONE))


def _same_bytes(out: Path, wanted: Path, *names: str) -> Iterator[str]:
    for name in names:
        if not (out / name).is_file():
            yield f"{name} is missing"
        elif (out / name).read_bytes() != (wanted / name).read_bytes():
            yield f"{name} differs"


def _each_once(path: Path, wanted: Path, name: Callable[[dict], object]) -> Iterator[str]:
    """Rows lost or doubled in a JSONL file beside that of the undisturbed run."""
    found = Counter(name(row) for _, row in read_jsonl(path))
    expected = Counter(name(row) for _, row in read_jsonl(wanted))
    for what, counts in (("lost", expected - found), ("doubled or strange", found - expected)):
        if counts:
            yield f"{path.name}: {counts.total()} rows {what}"


def _of_collect(out: Path, wanted: Path) -> Iterator[str]:
    yield from _same_bytes(out, wanted, "studies.jsonl")
    for path in sorted(wanted.glob("studies.answers/answers/*.jsonl")):
        yield from _each_once(out / path.relative_to(wanted), path, lambda row: (row["teacher"], row["key"]))
    yield from manifest.stale(out / "studies.jsonl")


def _of_compare(out: Path, wanted: Path) -> Iterator[str]:
    yield from _same_bytes(out, wanted, "studies.jsonl")
    for path in sorted(wanted.glob(DONE)):
        yield from _each_once(out / path.name, path, lambda row: (row["id"], row["key"]))
    yield from manifest.stale(out / "studies.jsonl")


def _of_benchmark(out: Path, wanted: Path) -> Iterator[str]:
    yield from _same_bytes(out, wanted, "phantom-presence/predictions.jsonl", "table.md")
    yield from _same_results(out, wanted)


def _of_evaluate(out: Path, wanted: Path) -> Iterator[str]:
    yield from _same_bytes(out, wanted, "predictions.jsonl")
    yield from _each_once(out / "predictions.jsonl", wanted / "predictions.jsonl", lambda row: row["id"])
    yield from _same_results(out, wanted)


def _same_results(out: Path, wanted: Path) -> Iterator[str]:
    first, second = (json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in (out, wanted))
    yield from (f"results.json: {key} differs" for key in second if key != "environment" and first[key] != second[key])


def losses(out: Path) -> dict[int, list[float]]:
    """{step: its losses in logging.jsonl}, one each unless a step stands there twice."""
    found: dict[int, list[float]] = {}
    for _, row in read_jsonl(out / "logging.jsonl"):
        if "loss" in row:
            found.setdefault(int(row["global_step/max_steps"].split("/")[0]), []).append(row["loss"])
    return found


def _of_training(out: Path, wanted: Path) -> Iterator[str]:
    from safetensors.numpy import load_file

    mine, theirs = losses(out), losses(wanted)
    for step in range(1, STEPS + 1):
        if len(mine.get(step, [])) != 1:
            yield f"logging.jsonl: step {step} stands there {len(mine.get(step, []))} times"
        elif abs(mine[step][0] - theirs[step][0]) > LOSS:
            yield f"step {step}: loss {mine[step][0]}, undisturbed {theirs[step][0]}"
    steps = sorted(int(path.name.split("-")[1]) for path in out.glob("checkpoint-*"))
    if steps != [STEPS - 2, STEPS]:
        yield f"checkpoints {steps} are kept"
    for step in steps:
        problem = checkpoints.cut_off(out / f"checkpoint-{step}")
        if problem:
            yield problem
    if steps[-1:] == [STEPS]:
        first, second = (load_file(folder / f"checkpoint-{STEPS}/model.safetensors") for folder in (out, wanted))
        worst = max(float(abs(first[name] - second[name]).max()) for name in second)
        if first.keys() != second.keys() or worst > WEIGHTS:
            yield f"weights differ by up to {worst:.1e}"


STAGES = {
    stage.name: stage
    for stage in (
        Stage("collect", _collect, lambda out: any(out.glob("studies.answers/answers/*.jsonl")), _of_collect),
        Stage("compare", _compare, _comparing, _of_compare),
        Stage(
            "learn",
            _train("SFT-Qwen2.5.sh", "sft_phantom.yaml", "studies"),
            lambda out: _lines(out / "logging.jsonl") > 0,
            _of_training,
            r"(?s).*error: ms-swift ended with status \d+; (to go on from|no checkpoint was saved)",
        ),
        Stage(
            "critique",
            _train("APO-Qwen2.5.sh", "apo_phantom.yaml", "consensus"),
            lambda out: _lines(out / "logging.jsonl") > 0,
            _of_training,
            r"(?s).*error: ms-swift ended with status \d+; (to go on from|no checkpoint was saved)",
        ),
        Stage("evaluate", _evaluate, lambda out: _lines(out / "predictions.jsonl") > 0, _of_evaluate),
        Stage("compare-by-two", _compare_by_two, _comparing, _of_compare),
        Stage(
            "benchmark",
            _benchmark,
            lambda out: any(_lines(path) for path in out.glob("phantom-presence/predictions*.jsonl")),
            _of_benchmark,
        ),
    )
}


# ---- running


def start(stage: Stage, world: World, trial: Path, *more: object, root: Path = ROOT, **options) -> Running:
    """Start a stage's command in a trial's folder; its output goes to a new log there. options: of `Running`."""
    number = len(list(trial.glob("log-*.txt")))
    words = [*stage.command(world, trial, root), *more]
    return Running(words, trial / f"log-{number}.txt", cwd=root, **options)


def go_on(stage: Stage, world: World, trial: Path, **options) -> tuple[Running, list[str]]:
    """Start the same command again, as a user would: where the launcher asks for a flag to resume, with that flag.

    Returns the running command and the flag.
    """
    if not stage.trains:
        return start(stage, world, trial, **options), []
    newest = checkpoints.latest_whole(trial / "out")
    if newest is None:
        return start(stage, world, trial, **options), []
    refused = start(stage, world, trial, **options).end()
    advice = re.search(r"go on with it \((--resume_from_checkpoint) (\S+)\)", refused.said)
    assert refused.status == 2 and advice, refused.said[-2000:]
    return start(stage, world, trial, *advice.groups(), **options), list(advice.groups())


def finish(stage: Stage, world: World, trial: Path, wanted: Path, **options) -> list[str]:
    """Go on to the end; what is wrong with the results, beside those of the undisturbed run in `wanted`."""
    ended = go_on(stage, world, trial, **options)[0].end()
    return results(stage, trial, wanted, ended)


def results(stage: Stage, trial: Path, wanted: Path, ended: Ended) -> list[str]:
    if ended.status:
        return [f"ended with status {ended.status}: {ended.said.strip().splitlines()[-1][:200]}"]
    return list(stage.differences(trial / "out", wanted / "out"))
