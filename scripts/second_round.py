"""Compare again with the critiqued student as one more voice. Help: scripts/second_round.sh.

The student answers every film; its answers join the trajectories, the consensus is made anew, and they are taken out
again, so that Critique has the teachers' trajectories as negatives and no word of its own student.
"""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from apo.consensus import NEEDS_MODEL, STRATEGIES
from apo.heard import hear
from apo.labels import read_labels, refuse_labels
from data import checkpoints
from data.errors import GOES_ON, UserError, refuse_below_one, run_cli
from data.records import did_you_mean, read_studies
from scripts import stages
from scripts.stages import Command, module

CHAIN = ["voice", "compare"]


def voice_commands(
    student: Path, studies: Path, root: Path, folder: Path, name: str, options: Sequence[object]
) -> list[Command]:
    """The student's answers, FOLDER/answers.jsonl, and the studies with them as trajectories of `name`,
    FOLDER/studies.jsonl.

    Args:
        root: the folder that image paths are relative to.
        options: further words of eval.predict.
    """
    read, answers = ("--studies", studies, "--split", "all", "--image-root", root, *options), folder / "answers.jsonl"
    heard = ("--add-voice", f"{name}={answers}")
    return [
        module("eval.predict", student, *read, "--out", answers),
        module("data.variants", studies, "--out", folder / "studies.jsonl", *heard),
    ]


def compare_commands(
    student: Path | str,
    heard: Path,
    root: Path,
    again: Path,
    out: Path,
    name: str,
    strategy: str,
    options: Sequence[object] = (),
) -> list[Command]:
    """The consensus of all voices, in AGAIN, and the same studies without the trajectories of `name`, in OUT.

    Args:
        root: the folder that image paths are relative to.
        options: further words of apo.compare.
    """
    read = ("--strategy", strategy, "--out", again, "--image-root", root, *options)
    return [
        module("apo.compare", student, heard, *read),
        module("data.variants", again, "--out", out, "--drop-voice", name),
    ]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bash scripts/second_round.sh", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("studies", type=Path, metavar="STUDIES.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--strategy", default="dawid_skene")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--label-limit", type=int)
    parser.add_argument("--image-root", type=Path)
    parser.add_argument("--name", default="student")
    parser.add_argument("--base")
    parser.add_argument("--max-new-tokens")
    parser.add_argument("--batch-size")
    parser.add_argument("--device")
    parser.add_argument("--backend")
    parser.add_argument("--processes")
    parser.add_argument("--allow-outside", action="store_true")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--allow-unheard", action="store_true")
    args = parser.parse_args(argv)
    if args.strategy not in STRATEGIES:
        raise UserError(f"--strategy {args.strategy}: {did_you_mean(args.strategy, STRATEGIES)}")
    if not args.name.strip() or "=" in args.name:
        raise UserError(f"--name {args.name}: must not hold =, nor be empty")
    refuse_below_one(args, "label_limit")
    refuse_labels(args)
    args.studies, args.out = args.studies.absolute(), args.out.absolute()
    args.image_root = (args.image_root or args.studies.parent).absolute()
    return args


def refuse_unfit(studies: Path, name: str) -> None:
    """Raises UserError for a study file without a study, or where `name` speaks in it already."""
    study = None
    for study in read_studies(studies):
        if any(one["teacher"] == name for one in study["trajectories"]):
            raise UserError(f"{studies}: study {study['id']!r} has a trajectory of {name!r}; choose another --name")
    if study is None:
        raise UserError(f"{studies}: holds no study")


def passed_on(args: argparse.Namespace) -> list[str]:
    """The words that eval.predict and apo.compare both take."""
    options = ["--allow-outside"] if args.allow_outside else []
    for name in ("base", "max_new_tokens", "batch_size", "device", "backend"):
        if getattr(args, name):
            options += [f"--{name.replace('_', '-')}", getattr(args, name)]
    return options


def told(args: argparse.Namespace) -> list[object]:
    """The words of apo.compare for labels."""
    words = ["--labels", args.labels.absolute()] if args.labels else []
    return words + (["--label-limit", args.label_limit] if args.label_limit else [])


def hearing(studies: Iterable[dict], name: str) -> Counter[str]:
    """In how many studies `name` is "heard", or why it is not: its status, "refused" by its text, "says nothing" of a
    finding, or "not answered"."""
    counts: Counter[str] = Counter()
    for study in studies:
        one = hear(study | {"trajectories": [one for one in study["trajectories"] if one["teacher"] == name]})
        why = one.unheard.get(name) or ("not answered" if name not in one.says else "says nothing")
        counts["heard" if one.says.get(name) else why] += 1
    return counts


def refuse_unheard(heard: Path, answers: Path, name: str) -> None:
    """Raises UserError where no answer of `name` in the studies `heard` has a vote: the round would be the first again.

    Args:
        answers: the file that the message names.
    """
    counts = hearing(read_studies(heard), name)
    if not counts["heard"]:
        why = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        raise UserError(
            f"{answers}: no answer of {name} is heard ({why}); truncated ones need a higher "
            "--max-new-tokens (and --overwrite), others a student that was trained longer"
        )


def next_commands(
    kind: str, student: Path, out: Path, made: Path, root: Path, allow_outside: bool, base: str | None = None
) -> str:
    """What to type for the second Critique, after merging an adapter; into a folder of its own beside the answers."""
    merge, model = [], student
    if kind == "adapter":
        model = out / "merged"
        merge = [sys.executable, "-m", "swift.cli.main", "export", "--adapters", student, "--merge_lora", "true"]
        merge += ["--output_dir", model, *(["--model", base] if base else [])]
    words = ["bash", "APO-Qwen2.5.sh", "--model", model, "--dataset", made, "--image_root", root]
    words += ["--output_dir", out / "critique", "--on_missing_consensus", "drop", "--on_missing_negative", "drop"]
    # A consensus in a teacher's own words, as a medoid, would be an error.
    words += ["--on_identical", "drop-negative", *(["--allow_outside", "true"] if allow_outside else [])]
    shown = [shlex.join(map(str, command)) for command in (merge, words) if command]
    return "next: " + "\nthen: ".join(shown)


def summary(again: Path, name: str) -> str:
    """In how many studies `name` was heard, in which not and why, and how many have no consensus."""
    answers, missing = Counter(), 0
    for study in read_studies(again):
        answers.update(hearing([study], name))
        missing += study.get("consensus") is None
    heard = answers.pop("heard", 0)
    others = "".join(f", {count} {why} and not heard" for why, count in sorted(answers.items()))
    return f"answers of {name}: {heard} heard{others}; studies without a consensus: {missing}"


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    kind = checkpoints.describe(args.checkpoint, args.base)["kind"]
    student = args.checkpoint.absolute()
    refuse_unfit(args.studies, args.name)
    if args.labels:  # read before the student is asked
        read_labels(args.labels, list(read_studies(args.studies)), args.label_limit)
    voice, made = args.out / "voice", args.out / "compare" / "studies.jsonl"
    heard, again = voice / "studies.jsonl", made.parent / "with-voice.jsonl"
    options, root = passed_on(args), args.image_root
    processes = ["--processes", args.processes] if args.processes else []
    overwrite = ["--overwrite"] if args.overwrite else []
    speak = voice_commands(student, args.studies, root, voice, args.name, [*options, *processes, *overwrite])
    # A text that fails must not hold up all others: such studies are counted below and set aside by Critique.
    compare = [*options, *processes, "--allow-failures"] if args.strategy in NEEDS_MODEL else [*options, *told(args)]
    listen = compare_commands(student, heard, root, again, made, args.name, args.strategy, compare)
    # The folders of a checkpoint and its base keep their names when they are trained again.
    asked = checkpoints.fingerprint(args.checkpoint, args.base)
    stages.run_stage(args.out, CHAIN, "voice", speak, keep=True, careful=True, reads=asked, repeat=args.overwrite)
    if not args.allow_unheard:
        refuse_unheard(heard, voice / "answers.jsonl", args.name)
    stages.run_stage(args.out, CHAIN, "compare", listen, keep=True, careful=True)
    print(f"\n{summary(again, args.name)}\nwritten: {made}")
    print(next_commands(kind, student, args.out, made, root, args.allow_outside, args.base))


if __name__ == "__main__":
    run_cli(main, GOES_ON)
