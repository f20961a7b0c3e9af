"""The stages of one row in one world and seed, as commands for scripts/stages.py.

What rows share comes first and is made once: cohort, student, learn, compare-STRATEGY. A row's own stages are
NAME.variant, NAME.train, NAME.answer and NAME.score, with their files in rows/NAME.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from data import checkpoints
from data.files import write_atomic
from scripts.ablation_flops import equal_epochs
from scripts.ablation_rows import (
    ANSWER,
    EQUAL_FLOPS,
    LESSONS,
    Row,
    Sizes,
    base_config,
    before,
    find_row,
    merged,
    words,
)
from scripts.plan import PHANTOM_CONFIGS, ROOT, STAGES
from scripts.second_round import compare_commands, voice_commands
from scripts.settings import Value, read_config
from scripts.stages import Command, module

CALIBRATED = 100  # films; twenty texts each
VOICE = "student"  # the critiqued student among the teachers of a second round


SHARED_RANKS, SHARED_THREADS = 2, 1  # as in scripts/quickstart.sh on two cores


class Place(NamedTuple):
    """Where a world and seed are made, and on what: `ranks` training processes of `threads` each for a row's own.

    What rows share is trained by `shared_ranks` of SHARED_THREADS whatever a row is given: all rows of a seed start
    from the same student, on any machine: a sum in another order gives another Learn, and with it two or three points.
    """

    out: Path
    world: str
    seed: int
    sizes: Sizes
    ranks: int
    threads: int
    shared_ranks: int = SHARED_RANKS

    def row(self, name: str) -> Path:
        return self.out / "rows" / name


class Stage(NamedTuple):
    """One stage; `commands` is called when the stages before it are finished, since it names what they made."""

    name: str
    commands: Callable[[], list[Command]]
    outputs: list[str]
    keep: bool = False


def shared_stages(place: Place, row: Row) -> list[Stage]:
    """Cohort, student and Learn, up to the row's consensus."""
    place = place._replace(ranks=place.shared_ranks, threads=SHARED_THREADS)
    out, sizes, seed = place.out, place.sizes, ("--seed", place.seed)
    films = ("--train", sizes.train, "--validate", sizes.validate, "--test", sizes.test)
    studies = out / "cohort" / "studies.jsonl"
    taught, plain, seeing = (row.student == kind for kind in ("taught", "plain", "seeing"))
    base = out / "student"
    stages = [
        Stage(
            "cohort",
            lambda: [module("data.phantom", "--out", out / "cohort", "--world", place.world, *films, *seed)],
            ["cohort"],
        ),
        Stage(
            "student",
            lambda: [module("data.phantom.student", "--out", out / "student", "--texts", studies, *seed)],
            ["student"],
        ),
    ]
    if taught:
        lessons = out / "lessons"
        rows = lessons / "rows.jsonl"
        stages += [
            Stage("lessons", lambda: [module("scripts.aggregation", studies, "--out", rows, *seed)], ["lessons"]),
            Stage(
                "teach",
                lambda: [launch(place, "sft", base, [rows], out / "teach", LESSONS["taught"])],
                ["teach"],
                keep=True,
            ),
        ]
    if seeing:
        rows = out / "sight" / "rows.jsonl"
        stages += [
            Stage("sight", lambda: [module("scripts.sight", studies, "--out", rows)], ["sight"]),
            Stage(
                "see", lambda: [launch(place, "sft", base, [rows], out / "see", LESSONS["seeing"])], ["see"], keep=True
            ),
        ]
    learn = learn_name(row)
    read = out / "plain" / "studies.jsonl" if plain else studies
    if plain:
        words = (studies, "--out", read, "--negatives", "consensus-style")
        stages.append(Stage("plain", lambda: [module("data.variants", *words)], ["plain"]))

    def learn_command() -> list[Command]:
        if not taught:
            start = checkpoints.latest(out / "see") if seeing else base
            return [launch(place, "sft", start, [read], out / learn, {})]
        # Lessons once more among the films, so that the student keeps the ability that it was taught.
        rows = out / "lessons" / "rows.jsonl"
        start = checkpoints.latest(out / "teach")
        return [launch(place, "sft", start, [studies, rows], out / learn, LESSONS["taught"])]

    stages.append(Stage(learn, learn_command, [learn], keep=True))
    compare = compare_name(row)
    extra = ("--max-new-tokens", 160, "--batch-size", 32, "--allow-failures") if row.consensus == "self" else ()
    if extra and sizes.steps:
        extra += ("--cut-off", "keep")  # a student of a few steps never ends a text
    extra += label_words(place, row)
    stages.append(
        Stage(
            compare,
            lambda: [
                module(
                    *("apo.compare", checkpoints.latest(out / learn), studies, "--strategy", row.consensus),
                    *("--out", out / compare / "studies.jsonl", "--image-root", out / "cohort", *extra),
                )
            ],
            [compare],
            keep=True,
        )
    )
    return stages


def learn_name(row: Row) -> str:
    return f"learn-{row.student}" if row.student else "learn"


def compare_name(row: Row) -> str:
    told = f"-labels-{row.labels}" if row.labels else ""
    return f"compare-{row.consensus}{told}" + (f"-{row.student}" if row.student else "")


def label_words(place: Place, row: Row) -> tuple[object, ...]:
    """Words of scripts/compare.sh for a row whose consensus is told some labels."""
    studies = place.out / "cohort" / "studies.jsonl"
    return ("--labels", studies, "--label-limit", row.labels) if row.labels else ()


def asks(row: Row, option: str) -> bool:
    """Whether a row turns an option of the APO trainer on."""
    return bool(row.settings.get("model_kwargs", {}).get(option))


def launch(
    place: Place,
    launcher: str,
    model: Path,
    datasets: list[Path],
    output: Path,
    settings: dict[str, Any],
    config: Path | None = None,
) -> Command:
    """One training by the launchers, with a row's settings as flags over the phantom config.

    Given again after an interruption, it goes on from the newest checkpoint.
    """
    script = {"sft": "SFT-Qwen2.5.sh", "apo": "APO-Qwen2.5.sh"}[launcher]
    config = config or Path(PHANTOM_CONFIGS["learn"])
    flags: dict[str, Value] = words(settings)
    if place.sizes.steps:
        flags |= {"max_steps": str(place.sizes.steps), "logging_steps": "1"}
    command = ["env", f"NPROC_PER_NODE={place.ranks}", f"OMP_NUM_THREADS={place.threads}", "bash", str(ROOT / script)]
    command += [str(ROOT / config), "--model", str(model), "--dataset", *map(str, datasets)]
    command += ["--image_root", str(place.out / "cohort"), "--output_dir", str(output)]
    command += ["--seed", str(place.seed), "--data_seed", str(place.seed), "--resume_from_checkpoint", "last"]
    for name, value in flags.items():
        command += [f"--{name}", *(value if isinstance(value, list) else [value])]
    return command


def train_settings(place: Place, row: Row, studies: Path, own: Path, start: Path) -> dict[str, Any]:
    """The settings that a row passes to its launcher, `equal_flops` turned into a number of epochs.

    Args:
        studies: the study file with the row's consensus and all trajectories.
        own: the one that the row trains on, `studies` or a variant of it.
        start: the checkpoint that it starts from, which is also its reference.
    """
    settings = dict(row.settings)
    if row.launcher == "apo" and not asks(row, "apo_reference_free"):
        # One folder for each reference, shared by the rows that start from it.
        cache = place.out / "reference" / checkpoints.fingerprint(start)[:16]
        settings["model_kwargs"] = {"apo_cache_dir": str(cache), **settings.get("model_kwargs", {})}
    if settings.get("num_train_epochs") == EQUAL_FLOPS:
        critique = read_config("critique", ROOT / PHANTOM_CONFIGS["critique"])
        whole = (studies, float(critique["num_train_epochs"]), int(critique["max_pixels"]))
        epochs, numbers = equal_epochs(place.out / "student", *whole, own if row.launcher == "apo" else None)
        write_atomic(place.row(row.name) / "equal_flops.json", json.dumps(numbers, indent=2) + "\n")
        settings["num_train_epochs"] = epochs
    return settings


def trained(place: Place, row: Row) -> Path:
    """The row's student: its trained checkpoint, or the learnt one where the row trains nothing and takes none."""
    if row.best_of:
        return checkpoints.best(place.row(row.best_of) / "train")
    folder = place.out / learn_name(row) if row.launcher == "none" else place.row(row.name) / "train"
    return checkpoints.latest(folder)


def start_of(place: Place, row: Row, rows: dict[str, Row]) -> Path:
    """The checkpoint that a row's training starts from, which is also its reference."""
    earlier = before(row, rows)
    return trained(place, earlier[-1]) if earlier else checkpoints.latest(place.out / learn_name(row))


def compared(place: Place, row: Row, rows: dict[str, Row]) -> Path:
    """The study file with the row's consensus; that of its `best_of` where it has one."""
    if row.best_of:
        row = find_row(row.best_of, rows)
    folder = place.row(row.name) / "compare" if row.after else place.out / compare_name(row)
    return folder / "studies.jsonl"


def training_stages(place: Place, row: Row, rows: dict[str, Row]) -> list[Stage]:
    """The row's study file and training; [] where it trains nothing."""
    if row.launcher not in STAGES:
        return []
    folder, name = place.row(row.name), row.name
    stages = []
    if row.after:
        voice = folder / "voice"

        def second_round() -> list[Command]:
            start, first = start_of(place, row, rows), place.out / compare_name(row) / "studies.jsonl"
            return voice_commands(start, first, place.out / "cohort", voice, VOICE, ANSWER)

        def compare_again() -> list[Command]:
            made = (folder / "compare" / "with-voice.jsonl", compared(place, row, rows))
            heard = voice / "studies.jsonl"
            told = label_words(place, row)
            return compare_commands("-", heard, place.out / "cohort", *made, VOICE, row.consensus, told)

        stages.append(Stage(f"{name}.voice", second_round, [f"rows/{name}/voice"], keep=True))
        stages.append(Stage(f"{name}.compare", compare_again, [f"rows/{name}/compare"]))
    studies = compared(place, row, rows)
    if row.variant:
        made = folder / "variant" / "studies.jsonl"
        options: list[object] = ["--seed", place.seed]
        options += ["--negatives", row.variant["negatives"]] if "negatives" in row.variant else []
        options += ["--weights", row.variant["weights"]] if "weights" in row.variant else []
        options += ["--learn-consensus"] if row.variant.get("learn_consensus") else []
        if "films" in row.variant:
            options += ["--films", min(row.variant["films"], place.sizes.train)]
        source = studies
        stages.append(
            Stage(
                f"{name}.variant",
                lambda: [module("data.variants", source, "--out", made, *options)],
                [f"rows/{name}/variant"],
            )
        )
        studies = made

    def train() -> list[Command]:
        start = start_of(place, row, rows)
        settings = train_settings(place, row, compared(place, row, rows), studies, start)
        return [launch(place, row.launcher, start, [studies], folder / "train", settings, base_config(row))]

    stages.append(Stage(f"{name}.train", train, [f"rows/{name}/train"], keep=True))
    return stages


def scoring_stages(place: Place, row: Row, rows: dict[str, Row]) -> list[Stage]:
    """The trained student's answers to the held-out films, its rewards on the validation films, and all metrics."""
    folder, name = place.row(row.name), row.name
    studies = compared(place, row, rows)
    films = ("--image-root", place.out / "cohort")
    answers, sure = (folder / "answer" / file for file in ("test.jsonl", "sure.jsonl"))

    def answer() -> list[Command]:
        student = trained(place, row)
        test = ("--studies", studies, "--split", "test", *films, *ANSWER)
        asked = ("--studies", studies, "--answers", answers, *films, "--limit", CALIBRATED)
        commands = [
            module("eval.predict", student, *test, "--out", answers),
            module("eval.calibration", student, *asked, "--out", sure),
        ]
        if row.launcher != "none":
            reference, made = start_of(place, row, rows), folder / "answer" / "rewards.jsonl"
            own = ("--reference", reference, "--studies", studies, "--split", "validate", *films)
            commands.append(module("eval.rewards", student, *own, "--seed", place.seed, "--out", made))
        return commands

    def score() -> list[Command]:
        results, made = folder / "score" / "results.json", folder / "score" / "metrics.json"
        words = ["--studies", studies, "--answers", answers, "--results", results, "--calibration", sure]
        if row.launcher != "none":
            words += ["--rewards", folder / "answer" / "rewards.jsonl", "--log", folder / "train" / "logging.jsonl"]
            # Rewards without a reference, or by token, say nothing of how far a whole text moved from it.
            if not asks(row, "apo_reference_free") and not asks(row, "apo_length_normalised"):
                words += ["--beta", merged(row).get("beta", "1")]
            words += ["--trained-on", folder / "variant" / "studies.jsonl" if row.variant else studies]
        return [
            module(
                *("eval.phantom", "--studies", studies, "--split", "test", "--predictions", f"student={answers}"),
                *("--seed", place.seed, "--out", results),
            ),
            module("eval.ablation_metrics", *words, "--out", made),
        ]

    return [
        Stage(f"{name}.answer", answer, [f"rows/{name}/answer"], keep=True),
        Stage(f"{name}.score", score, [f"rows/{name}/score"]),
    ]


def consensus_stages(place: Place, row: Row) -> list[Stage]:
    """The consensus of a row without a student, and its metrics where other rows have their student's."""
    films, name = place.out / "cohort", row.name
    studies, score = place.row(name) / "compare" / "studies.jsonl", place.row(name) / "score"
    read = ("--strategy", row.consensus, "--image-root", films, *label_words(place, row))
    results = ("--studies", studies, "--split", "test", "--seed", place.seed, "--out", score / "results.json")
    made = ("--studies", studies, "--results", score / "results.json", "--out", score / "metrics.json")
    return [
        Stage(
            f"{name}.compare",
            lambda: [module("apo.compare", "-", films / "studies.jsonl", *read, "--out", studies)],
            [f"rows/{name}/compare"],
            keep=True,
        ),
        Stage(
            f"{name}.score",
            lambda: [module("eval.phantom", *results), module("eval.ablation_metrics", *made)],
            [f"rows/{name}/score"],
        ),
    ]


def row_stages(place: Place, row: Row, rows: dict[str, Row]) -> tuple[list[Stage], list[Stage]]:
    """(stages that other rows share, the row's own), in the order in which they run."""
    shared = shared_stages(place, row)
    if row.launcher == "compare":
        return [stage for stage in shared if stage.name == "cohort"], consensus_stages(place, row)
    for earlier in before(row, rows):
        shared += [stage for stage in shared_stages(place, earlier) if stage.name not in {s.name for s in shared}]
        shared += training_stages(place, earlier, rows)
    return shared, [*training_stages(place, row, rows), *scoring_stages(place, row, rows)]
