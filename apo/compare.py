"""Compare: adds a consensus to every study of a file.

    bash scripts/compare.sh CHECKPOINT STUDIES.jsonl --out FILE                           # self: the student writes it
    bash scripts/compare.sh - STUDIES.jsonl --out FILE --strategy dawid_skene             # label-free, no model

Every study is written, whatever its split: evaluation scores the consensus on the test films too, and no strategy looks
at a study's label or report. (`oracle` states the truth of phantom films, as an upper bound, and refuses any other.) A
study for which there is no consensus is written without one and counted.

Where most teachers are wrong on one finding, agreement cannot show it. `--labels FILE` tells `dawid_skene` what is
known of a few training films: they decide which way round each finding is, and nothing else (docs/compare.md).

`self` keeps finished rows in FILE.partial.jsonl, so that an interrupted run goes on where it stopped; a row is used
again only if checkpoint, prompt, films and decoding settings are the same. --processes N runs N of them, one a GPU, on
one machine and writes one FILE; an interrupted run goes on with any other N. Over several machines, --shard i/n does
and writes only every n-th study (`cat` the shards together). The label-free strategies are fitted on all studies
together, without a model: they take neither.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from apo import consensus
from apo.compare_files import gather_rows, put_together, remove_parts, store_of
from apo.compare_self import run_self
from apo.compare_summary import label_summary, summary
from apo.consensus import COMPOSES, NEEDS_MODEL, STRATEGIES
from apo.labels import read_labels, refuse_labels
from data import checkpoints, manifest
from data.errors import GOES_ON, UserError, refuse_below_one, run_cli
from data.files import claimed, out_file, refuse_input
from data.records import ALLOW_OUTSIDE, read_studies, require_images, root_of, write_studies
from scripts import doctor, side_by_side

WHOLE = (1, 1)  # the shard that is all of the file
# No other strategy than `self` looks at these.
SELF = ("seed", "max_new_tokens", "max_length", "temperature", "cut_off")
SELF += ("base", "backend", "device", "batch_size", "allow_failures")
NOT_ONE = "{}: not one consensus could be made; nothing was written"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/compare.sh", description=__doc__.split("\n\n")[0], epilog=consensus.__doc__.split("\n\n")[2]
    )
    parser.add_argument("checkpoint", help='the stage-one student (full or LoRA); "-" where the strategy needs none')
    parser.add_argument("studies", type=Path, metavar="STUDIES.jsonl")
    parser.add_argument("--out", type=out_file, required=True, help="study file to write")
    parser.add_argument("--strategy", choices=tuple(STRATEGIES), default="self")
    parser.add_argument("--image-root", type=Path, help="what image paths are relative to (default: folder of STUDIES)")
    parser.add_argument("--allow-outside", action="store_true", help=ALLOW_OUTSIDE)
    parser.add_argument(
        "--split",
        choices=("all", "train", "validate", "test"),
        default="all",
        help="which studies get a consensus; the others are written as they are (default: all)",
    )
    parser.add_argument("--compose", choices=("plain", "quote"), default="plain", help="form of a composed consensus")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="LABELS.jsonl",
        help='dawid_skene: known findings of some training films, {"id", "findings"} a line, to turn findings round on '
        "which most teachers are wrong (default: label-free)",
    )
    parser.add_argument("--label-limit", type=int, metavar="N", help="only the first N of --labels (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="self: order of the trajectories (and sampling, if any)")
    parser.add_argument("--base", help="for a LoRA checkpoint: its base model, if not where args.json says")
    parser.add_argument("--backend", choices=("transformers", "vllm"), default="transformers", help="self: engine")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="self: default cuda where there is one")
    parser.add_argument("--max-new-tokens", type=int, default=1024, help="self: longer answers fail (default: 1024)")
    parser.add_argument("--max-length", type=int, help="self: prompt and answer, in tokens (default: the model's)")
    parser.add_argument("--temperature", type=float, default=0.0, help="self: 0 is greedy (default)")
    parser.add_argument("--batch-size", type=int, default=8, help="self: studies a forward pass (default: 8)")
    parser.add_argument("--shard", default="1/1", metavar="i/n", help="self: do every n-th study from the i-th on")
    parser.add_argument("--processes", type=int, default=1, help="self: processes side by side, one a GPU (default: 1)")
    parser.add_argument(
        "--cut-off",
        choices=("fail", "keep"),
        default="fail",
        help="self: texts that reach --max-new-tokens: no consensus (default), or keep them (trials)",
    )
    parser.add_argument("--made", type=Path, help=argparse.SUPPRESS)  # of a process: the command's finished rows
    parser.add_argument("--allow-failures", action="store_true", help="self: exit 0 even if some generations failed")
    args = parser.parse_args(argv)
    refuse_below_one(args, "max_new_tokens", "batch_size", "max_length", "processes", "label_limit")
    if not 0 <= args.temperature < math.inf:
        raise UserError(f"--temperature {args.temperature}: must be a number and must not be negative")
    args.shard = side_by_side.parse_shard(args.shard)
    if args.strategy in NEEDS_MODEL and args.checkpoint == "-":
        raise UserError(f"--strategy {args.strategy} needs a checkpoint; give the Learn stage's checkpoint-N folder")
    if args.strategy not in NEEDS_MODEL and args.shard != WHOLE:
        raise UserError(f"--shard: {args.strategy} is fitted on all studies together, without a model; leave it out")
    if args.strategy not in NEEDS_MODEL and args.processes > 1:
        raise UserError(
            f"--processes: {args.strategy} is fitted on all studies together, without a model; leave it out"
        )
    if args.compose != "plain" and args.strategy not in COMPOSES:
        raise UserError(f"--compose {args.compose}: {args.strategy} does not compose its text; leave it out")
    refuse_labels(args)
    refuse_input(args.out, args.studies, *filter(None, [args.labels]))
    args.unused = [] if args.checkpoint == "-" else [args.checkpoint]
    args.unused += [f"--{name.replace('_', '-')}" for name in SELF if getattr(args, name) != parser.get_default(name)]
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    doctor.before("evaluate", args.out)
    if args.strategy in NEEDS_MODEL:
        info = checkpoints.describe(args.checkpoint, args.base)
    elif args.unused:
        print(f"note: {args.strategy} needs no model and draws nothing; not used: {', '.join(args.unused)}")
    root = root_of(args.studies, args.image_root)
    studies, chosen = selected(args, root)
    if args.strategy in NEEDS_MODEL:
        require_images(args.studies, [studies[k] for k in chosen], root, allow_outside=args.allow_outside)
    with claimed(args.out):
        gather_rows(args.out)
        remove_parts(args.out)
        if args.processes > 1:
            return run_side_by_side(args, sys.argv[1:] if argv is None else argv, root)
        return run_here(args, info if args.strategy in NEEDS_MODEL else None, root, studies, chosen)


def selected(args: argparse.Namespace, root: str) -> tuple[list[dict], list[int]]:
    """(the studies of the shard, indices of those of the split); UserError for a file without any."""
    studies = list(read_studies(args.studies, image_root=root))
    if not studies:
        raise UserError(f"{args.studies}: holds no study")
    i, n = args.shard
    if not any(args.split in ("all", s["split"]) for s in studies):
        raise UserError(f'{args.studies}: no study of split "{args.split}"; check --split')
    studies = studies[i - 1 :: n]
    return studies, [k for k, s in enumerate(studies) if args.split in ("all", s["split"])]


def run_here(args: argparse.Namespace, info: dict | None, root: str, studies: list[dict], chosen: list[int]) -> int:
    """Any strategy in this process; info: what `describe` says of the checkpoint. The exit status."""
    failed: Counter = Counter()
    if args.strategy in NEEDS_MODEL:
        results = run_self(args, info, [studies[k] for k in chosen], root, failed)
    else:
        # Fitted on all studies: estimates of reliability get better, and no held-out label is looked at.
        options = {"compose": args.compose} if args.strategy in COMPOSES else {}
        labels = read_labels(args.labels, studies, args.label_limit) if args.labels else None
        options |= {"labels": labels.known} if labels else {}
        everything = STRATEGIES[args.strategy](studies, **options)
        results = [everything[k] for k in chosen]
        if labels:
            print(label_summary(labels, everything))
    if chosen and not any(results) and args.shard == WHOLE:  # a shard without any may be a small one
        print(summary(args.strategy, [studies[k] for k in chosen], results, failed))
        raise UserError(NOT_ONE.format(args.studies))
    replaced = sum(studies[k].get("consensus") is not None for k in chosen)
    for k, result in zip(chosen, results, strict=True):
        studies[k].pop("consensus", None)
        if result is not None:
            studies[k]["consensus"] = result
    write_studies(args.out, studies)
    manifest.write(args.out, read_by(args), made_with(args))
    print(summary(args.strategy, [studies[k] for k in chosen], results, failed))
    if args.strategy == "medoid":
        print(
            "note: each consensus is one of its study's trajectories; launch Critique with --on_identical drop-negative"
        )
    if args.strategy == "oracle":
        print(f"note: oracle is {consensus.UPPER_BOUND}")
    if replaced:
        print(f"note: {replaced} studies had a consensus before; it is not in the output")
    print(f"written: {args.out} ({len(studies)} studies, image paths relative to {root})")
    if failed and not args.allow_failures:
        print(
            f"error: {sum(failed.values())} generations failed; the output is written, without a consensus for these "
            "studies, which Critique sets aside with --on_missing_consensus drop; --allow-failures takes that for "
            "success (exit status 0), other settings ask them again",
            file=sys.stderr,
        )
        return 1
    return 0


def run_side_by_side(args: argparse.Namespace, argv: Sequence[str], root: str) -> int:
    """`self` with args.processes processes; their exit status (0, or 1 if generations failed)."""
    words = [*argv, "--made", str(store_of(args.out))]
    status = side_by_side.run("apo.compare", words, args.out, args.shard, args.processes, args.device)
    gather_rows(args.out)
    parts = [side_by_side.part_of(args.out, number) for number in range(1, args.processes + 1)]
    made = (one for part in parts for one in read_studies(part) if args.split in ("all", one["split"]))
    if args.shard == WHOLE and not any(one.get("consensus") for one in made):
        remove_parts(args.out)
        raise UserError(NOT_ONE.format(args.studies))
    count = put_together(args.out, parts)
    manifest.write(args.out, {"studies": args.studies}, made_with(args))
    print(f"written: {args.out} ({count} studies, image paths relative to {root})")
    return status


def read_by(args: argparse.Namespace) -> dict[str, Path]:
    """The input files, for the manifest of the output."""
    return {"studies": args.studies} | ({"labels": args.labels} if args.labels else {})


def made_with(args: argparse.Namespace) -> dict:
    """What besides the studies the consensus depends on, for the manifest of the output."""
    names = ["strategy", "split", "shard"]
    names += ["compose"] if args.strategy in COMPOSES else []
    names += ["label_limit"] if args.labels else []
    if args.strategy not in NEEDS_MODEL:
        return {name: getattr(args, name) for name in names}
    names += ["seed", "temperature", "max_new_tokens", "max_length", "cut_off", "backend"]
    return {name: getattr(args, name) for name in names} | {
        "checkpoint": checkpoints.fingerprint(args.checkpoint, args.base)
    }


if __name__ == "__main__":
    run_cli(main, GOES_ON)
