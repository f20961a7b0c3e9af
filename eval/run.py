"""Evaluate a checkpoint, or the answers of any model, on benchmarks: one results file, one Markdown table, one page.

    python -m eval.run CHECKPOINT --benchmark NAME [--benchmark NAME ...] --data-root DIR --out DIR
    python -m eval.run --predictions FILE --benchmark NAME --data-root DIR --out DIR      # scores without a GPU
    python -m eval.run --list-items --benchmark NAME --data-root DIR                      # the questions, as JSONL

Writes OUT/results.json, OUT/table.md, OUT/report.html, and for each benchmark OUT/NAME/predictions.jsonl (one row an
item, resumable) and OUT/NAME/per_item.jsonl (what was counted for each). docs/evaluation.md describes them.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from data import checkpoints, manifest
from data.errors import GOES_ON, UserError, run_cli
from data.files import claimed, dump, sha256_file, write_atomic
from eval import (
    asking,
    benchmarks,
    phantom,
    predict,
    run_options,
    run_page,
    run_scores,
    statistics,
    table,
    training_set,
)
from eval.items import Benchmark
from scripts import machine

SCHEMA = 2
PACKAGES = (*phantom.PACKAGES, "scipy", "statsmodels", "vllm", "pycocoevalcap", "sacrebleu", "rouge-score")


def check_items(benchmark: Benchmark) -> None:
    """Refuse a benchmark without items, with an id twice, or with an item without a patient."""
    if not benchmark.items:
        raise UserError(f"{benchmark.name}: no item to score; check --data-root, --set and --limit")
    seen = set()
    for item in benchmark.items:
        if item.id in seen:
            raise UserError(f"{benchmark.name}: id {item.id} comes twice; mend the tables")
        if not item.patient:
            raise UserError(f"{benchmark.name}: item {item.id} has no patient; mend the tables")
        seen.add(item.id)


class Checkpoint:
    """The checkpoint, described at once and loaded at the first question."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.info = checkpoints.describe(args.checkpoint, args.base)
        self.fingerprint = checkpoints.fingerprint(args.checkpoint, args.base)
        self.device = args.device or machine.default_device()
        self.loaded = None

    def record(self) -> dict:
        """What results.json says of the checkpoint."""
        told = {key: self.info[key] for key in ("kind", "stage")}
        return {"folder": Path(self.args.checkpoint).name, "fingerprint": self.fingerprint, **told}

    def decoding(self, kind: str) -> dict:
        engine = {"backend": self.args.backend, "dtype": "bfloat16" if self.device == "cuda" else "float32"}
        if kind == "yesno":
            return {"method": "P(yes) / (P(yes) + P(no)) at the first answer token", **engine}
        return {"method": "greedy", "max_new_tokens": self.args.max_new_tokens, **engine}

    def ask(self, kind: str, prefix: str, prompts: Sequence[tuple[str, Sequence[str]]]) -> list[dict]:
        if self.loaded is None:
            from apo.student_engine import Student as Engine

            one = {"backend": self.args.backend, "device": self.device, "batch_size": self.args.batch_size}
            self.loaded = Engine(self.info, **one)
        if kind == "yesno":
            from eval.yesno import p_yes

            return p_yes(self.loaded, prompts, prefix=prefix)
        return predict.greedy(self.loaded, prompts, self.args.max_new_tokens)


def ask_benchmark(
    checkpoint: Checkpoint, benchmark: Benchmark, folder: Path, args: argparse.Namespace
) -> tuple[dict | None, list[str]]:
    """{"answers", "no_image" (None where it is not asked for)}, or None while other shards are not finished.

    With it comes why answers of other shards that are there do not count.
    """
    problems: list[str] = []
    kind, decoding = benchmark.kind, checkpoint.decoding(benchmark.kind)
    meta = {"checkpoint": checkpoint.fingerprint, "benchmark": benchmark.name, **decoding}
    rows = asking.rows_of(benchmark)
    meta["items"] = asking.digest_of(benchmark)
    prefix = benchmark.protocol.get("answer_prefix", "")
    if prefix:
        meta["answer_prefix"] = prefix
    common = {"kind": kind, "batch_size": args.batch_size, "problems": problems}
    ask = partial(checkpoint.ask, kind, prefix)
    without = questions = None
    if not args.skip_no_image and any(item.images for item in benchmark.items):
        questions = asking.rows_of(benchmark, image=False)
        path = asking.file_of(folder, asking.NO_IMAGE)
        if args.shard[0] == 1:
            given = asking.ask_all(questions, ask, folder, asking.NO_IMAGE, meta, **common)
        elif asking.finished(path, questions, meta, kind, problems):
            given = asking.read(path, questions, kind)
        else:
            given = None
        without = given and asking.of_items(benchmark, given)
    answers = asking.ask_all(rows, ask, folder, asking.PREDICTIONS, meta, shard=args.shard, **common)
    missing = answers is None or (questions and not without)
    return None if missing else {"answers": answers, "no_image": without}, problems


def clear(folder: Path, args: argparse.Namespace) -> None:
    """Remove the answers of one benchmark that this shard is going to ask for."""
    asking.clear(folder, asking.PREDICTIONS, args.shard)
    if args.shard[0] == 1 and not args.skip_no_image:
        asking.clear(folder, asking.NO_IMAGE)


def read_given(args: argparse.Namespace, benchmark: Benchmark) -> tuple[dict, dict]:
    """(answers as `ask_benchmark` returns them, decoding) of --predictions and --no-image-predictions."""
    path, blind = args.predictions, args.no_image_predictions
    decoding = {"predictions": path.name, "sha256": sha256_file(path)}
    asked = {"answers": asking.read_given(path, benchmark), "no_image": None}
    if blind:
        decoding |= {"no_image_predictions": blind.name, "no_image_sha256": sha256_file(blind)}
        asked["no_image"] = asking.read_given_without_films(blind, benchmark)
    return asked, decoding


def main(argv: list[str] | None = None) -> int:
    args = run_options.parse_args(argv)
    if args.check_gpus:
        run_options.check_gpus(args.check_gpus, args.device)
        return 0
    if args.list_items:
        for name, benchmark in built(args):
            for one in listed(name, benchmark):
                print(dump(one))
        return 0
    refuse_loss(args)
    checkpoint, loaded = load(args)
    i, n = args.shard
    with claimed(args.out / f"shard-{i}-of-{n}"):
        return run(args, checkpoint, loaded)


def built(args: argparse.Namespace) -> Iterator[tuple[str, Benchmark]]:
    """Each benchmark of the command line, from its tables."""
    options = run_options.split_settings(args.set, args.benchmark, "--set")
    roots = run_options.data_roots(args.data_root, args.benchmark)
    for name in args.benchmark:
        module = benchmarks.module_of(name)
        one = module.load(name, roots[name], seed=args.seed, limit=args.limit, options=options[name])
        check_items(one)
        yield name, one


def listed(name: str, benchmark: Benchmark) -> Iterator[dict]:
    """{"benchmark", "id", "prompt", "answer": what a row of --predictions needs, "images": how many} by item."""
    for item in benchmark.items:
        row = {"benchmark": name, "id": item.id, "prompt": item.prompt}
        yield row | {"answer": asking.NEEDS[benchmark.kind], "images": len(item.images)}


def refuse_loss(args: argparse.Namespace) -> None:
    """Refuse an --out whose results.json holds what this run would not write again, or scores of other answers."""
    path = args.out / "results.json"
    if not path.exists():
        return
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        scored = {name: one.get("decoding", {}) for name, one in results["benchmarks"].items()}
        checkpoint = (results.get("checkpoint") or {}).get("folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: is not of eval.run and would be replaced; choose another --out") from None
    if others := [name for name in scored if name not in args.benchmark]:
        raise UserError(
            f"{path}: holds {', '.join(others)}, which this run would not; choose another --out or, with a checkpoint, "
            "name every --benchmark (answers that are there are not asked again)"
        )
    if args.overwrite:
        return
    files = {"sha256": args.predictions, "no_image_sha256": args.no_image_predictions}
    now = {key: sha256_file(file) for key, file in files.items() if file}
    for name, before in scored.items():
        if not args.predictions:
            # Other answers of a checkpoint are refused by their settings; some beside scores of --predictions say that
            # --overwrite was given before an interruption.
            if "sha256" not in before or asking.begun(args.out / name):
                continue
        elif "sha256" in before and all(before[key] == now.get(key) for key in files if key in before):
            continue
        of = f"{before['predictions']}, sha256 {before['sha256'][:16]}" if "sha256" in before else f"of {checkpoint}"
        raise UserError(
            f"{path}: holds the scores of other answers ({of}); choose another --out, or replace them with --overwrite"
        )


Loaded = dict[str, tuple[Benchmark, Benchmark]]  # name -> (what is asked, what of it is scored)


def load(args: argparse.Namespace) -> tuple[Checkpoint | None, Loaded]:
    """The checkpoint and the benchmarks, all checked; nothing is written."""
    checkpoint = Checkpoint(args) if args.checkpoint else None
    if args.train:
        files, unknown = [(args.train, args.train_images)], []
    else:
        files, unknown = training_set.studies_of(args.checkpoint or args.predictions)
    loaded = {}
    for name, one in built(args):
        phantom.refuse_taken([args.name], one.others)
        one = asking.with_films(one, args.missing_films == "drop") if checkpoint else one
        # Overlapping items are asked too and left out of the scores: the answers then serve both.
        kept = training_set.checked(one, files, unknown, excluded=args.exclude_overlap)
        loaded[name] = one, kept
    return checkpoint, loaded


def run(args: argparse.Namespace, checkpoint: Checkpoint | None, loaded: Loaded) -> int:
    """Ask and score, the output folder claimed; the exit status."""
    found, waiting, problems = {}, [], []
    if checkpoint:
        if args.overwrite:
            # Of every benchmark before the first question: without --overwrite the run then goes on from any point.
            for name in loaded:
                clear(args.out / name, args)
            print("note: to go on after an interruption leave out --overwrite, which begins again", file=sys.stderr)
        for name, (benchmark, _) in loaded.items():
            print(f"{name}: {len(benchmark.items)} items", flush=True)
            ask_benchmark(checkpoint, benchmark, args.out / name, args)
    # Collected only now: another shard may have finished an earlier benchmark while this one asked a later one.
    for name, (benchmark, kept) in loaded.items():
        if checkpoint:
            decoding = checkpoint.decoding(benchmark.kind)
            asked, more = ask_benchmark(checkpoint, benchmark, args.out / name, args)
            problems += more
        else:
            asked, decoding = read_given(args, benchmark)
        if asked is None:
            waiting.append(name)
        else:
            found[name] = {key: run_scores.answers_to(kept, benchmark, rows) for key, rows in asked.items()}, decoding
    if waiting:
        i, n = args.shard
        print(f"shard {i}/{n} is finished; the other shards are not yet, of: {', '.join(waiting)}")
        print("the shard that finishes last scores; run any shard again to score later")
        for problem in problems:
            print(f"note: answers of another shard that do not count: {problem}", file=sys.stderr)
        return 0
    draw = {"name": args.name, "seed": args.seed, "resamples": args.resamples}
    scored = {
        name: run_scores.score_benchmark(loaded[name][1], asked, args.out / name, decoding, **draw)
        for name, (asked, decoding) in found.items()
    }
    environment = phantom.environment()
    del environment["made"]  # the same answers give the same bytes
    environment["code"] = manifest.code()
    results = {
        "schema": SCHEMA,
        "name": args.name,
        "checkpoint": checkpoint and checkpoint.record(),
        "seed": args.seed,
        "limit": args.limit,
        "bootstrap": {"unit": "patient", "resamples": args.resamples, "seed": args.seed, "level": statistics.LEVEL},
        "benchmarks": scored,
        "versions": phantom.versions(PACKAGES),
        "environment": environment,
    }
    write_atomic(args.out / "results.json", json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    text = table.markdown(results)
    write_atomic(args.out / "table.md", text)
    write_atomic(args.out / "report.html", run_page.render(results))
    print(text)
    if args.limit:
        print(f"note: --limit {args.limit}: a trial, not the benchmark", file=sys.stderr)
    print(f"written: {args.out / 'results.json'}, table.md, report.html")
    return 0


if __name__ == "__main__":
    run_cli(main, GOES_ON)
