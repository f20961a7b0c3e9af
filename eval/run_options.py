"""The command line of eval.run: its flags, what belongs to which benchmark, and what must not stand together."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data.errors import UserError, refuse_below_one, refuse_negative
from eval import benchmarks
from scripts import machine
from scripts.side_by_side import parse_shard

TITLE = "Evaluate a checkpoint, or the answers of any model, on benchmarks."


def split_settings(pairs: Sequence[str], names: Sequence[str], flag: str) -> dict[str, dict[str, str]]:
    """--set KEY=VALUE (for every benchmark) and NAME:KEY=VALUE (for one) -> {benchmark: {key: value}}."""
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        scope, colon, inner = key.partition(":")
        if not equals or not key or (colon and not inner):
            raise UserError(f"{flag} {pair}: write KEY=VALUE, or BENCHMARK:KEY=VALUE for one of several benchmarks")
        if colon and scope not in found:
            raise UserError(f"{flag} {pair}: {scope} is not among the benchmarks of this run ({', '.join(names)})")
        for name in [scope] if colon else names:
            if (inner if colon else key) in found[name]:
                raise UserError(f"{flag} {pair}: {inner if colon else key} is given twice; keep one")
            found[name][inner if colon else key] = value
    return found


def data_roots(values: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    """--data-root DIR (for every benchmark without its own) and NAME=DIR (for one) -> {benchmark: folder}."""
    roots: dict[str, Path] = {}
    common = None
    for value in values:
        name, equals, folder = value.partition("=")
        if equals and name in names:
            roots[name] = Path(folder)
        elif common is not None:
            raise UserError(f"--data-root {value}: two folders for all benchmarks; write BENCHMARK=DIR for each")
        else:
            common = Path(value)
    for name in names:
        if name not in roots and common is None:
            raise UserError(f"{name}: no --data-root; name the folder with its tables and films")
        roots.setdefault(name, common)
    return roots


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m eval.run", description=TITLE)
    add = parser.add_argument
    add("checkpoint", nargs="?", help="a checkpoint-N folder (full or LoRA) or a model folder")
    add("--benchmark", action="append", required=True, metavar="NAME", help="one of the benchmarks; may be repeated")
    add(
        "--data-root",
        action="append",
        default=[],
        metavar="DIR",
        help="folder of the data, for all benchmarks; BENCHMARK=DIR for one of several",
    )
    add("--out", type=Path, default=Path("runs/evaluate"), help="folder to write or go on with (default: %(default)s)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the benchmark (or BENCHMARK:KEY)")
    add("--limit", type=int, help="only the first N units of each benchmark, for a trial")
    add("--predictions", type=Path, metavar="FILE", help="score these answers; no checkpoint and no films are needed")
    add("--no-image-predictions", type=Path, metavar="FILE", help="with --predictions: the answers without films")
    add("--list-items", action="store_true", help="print the questions instead of asking them; no model, no films")
    add("--skip-no-image", action="store_true", help="leave out the no-image row")
    add(
        "--missing-films", choices=("error", "drop"), default="error", help="drop: leave their items out and count them"
    )
    add("--train", type=Path, metavar="STUDIES", help="training studies (default: those that launch.json names)")
    add("--train-images", type=Path, metavar="DIR", help="their image root (default: the folder of --train)")
    add("--exclude-overlap", action="store_true", help="leave out the items that overlap with the training studies")
    add("--name", default="checkpoint", help="name of the row (default: checkpoint)")
    add("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    add("--resamples", type=int, default=1000, help="bootstrap resamples by patient (default: 1000)")
    add("--shard", default="1/1", metavar="i/n", help="ask every n-th item; the last shard to finish joins and scores")
    add("--base", help="for an adapter: its base model, if not where args.json says")
    add("--backend", choices=("transformers", "vllm"), default="transformers")
    add("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    add("--max-new-tokens", type=int, default=512, help="answers are cut off here (default: 512)")
    add("--batch-size", type=int, default=8, help="questions a forward pass (default: 8)")
    add(
        "--overwrite",
        action="store_true",
        help="remove the answers that are there, of other settings too, and ask again; also to replace the scores of "
        "other answers, where one of the two is of --predictions",
    )
    add("--check-gpus", type=int, metavar="N", help=argparse.SUPPRESS)  # of evaluate.sh --gpus: asks nothing
    args = parser.parse_args(argv)
    refuse_below_one(args, "limit", "resamples", "max_new_tokens", "batch_size", "check_gpus")
    refuse_negative(args, "seed")
    args.shard = parse_shard(args.shard)
    args.benchmark = list(dict.fromkeys(args.benchmark))
    for name in args.benchmark:
        benchmarks.module_of(name)
    if [args.checkpoint is None, args.predictions is None, not args.list_items].count(False) != 1:
        raise UserError("give either a checkpoint to ask or --predictions FILE to score (or --list-items alone)")
    if not args.name.strip() or not args.name.isprintable():
        raise UserError(f"--name {args.name!r}: must be one line and not empty")
    if args.predictions and len(args.benchmark) > 1:
        raise UserError("--predictions: holds the answers to one benchmark; give one --benchmark")
    if args.train_images and not args.train:
        raise UserError("--train-images: only with --train STUDIES.jsonl; launch.json names its own image root")
    if args.no_image_predictions and not args.predictions:
        raise UserError("--no-image-predictions: only with --predictions; a checkpoint is asked without films anyway")
    if args.predictions and args.shard != (1, 1):
        raise UserError("--shard: existing predictions are scored as a whole; leave it out")
    return args


def check_gpus(wanted: int, device: str | None) -> None:
    """Refuse a process a GPU where there are fewer: the others would go on, without a word, on the CPU."""
    found = len(machine.gpus())
    if device == "cpu":
        return
    if problem := machine.gpu_problem("--gpus", wanted, found):
        raise UserError(problem)
    # Else torch sees what the driver does not list, such as MIG devices.
    if not found and machine.default_device() == "cpu":
        raise UserError(
            f"--gpus {wanted}: this machine shows no GPU; leave it out, or add --device cpu (as many processes there)"
        )
