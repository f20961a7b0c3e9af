"""A checkpoint's greedy answers to the films of a study file, one JSONL row a study.

    python -m eval.predict CHECKPOINT --studies STUDIES.jsonl --image-root DIR --out predictions.jsonl

CHECKPOINT is a folder with full weights or a LoRA adapter folder as ms-swift saves it. The student sees the films and
the prompt, nothing else. Rows are {"id", "text", "finish_reason"} ("stop", or "length" for an answer that was cut off).
--prompt asks the same of every film in other words than its own: what the student learnt may hang on them.

An interrupted run goes on where it stopped, with as many --processes as then are wanted. What the answers depend on
(weights, prompts, films, decoding) is written to FILE.meta.json; answers made from anything else are refused, never
continued. --processes N runs N of them, one a GPU, on one machine. Over several machines, --shard i/n answers every
n-th batch (`cat` the shards together).
"""

import argparse
import glob
import hashlib
import json
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from data import checkpoints, manifest
from data.errors import GOES_ON, UserError, refuse_below_one, run_cli
from data.files import (
    append_jsonl,
    claimed,
    dump_line,
    half_character,
    read_jsonl,
    refuse_input,
    sha256_file,
    write_atomic,
)
from data.records import ALLOW_OUTSIDE, SPLITS, check_study, image_paths, read_studies, require_images, root_of
from scripts import doctor, machine, side_by_side

Answer = dict  # the row without its id: {"text", "finish_reason"}, or {"p_yes", "mass"}


def select(
    studies: Path,
    split: str,
    image_root: Path | None,
    limit: int | None,
    *,
    allow_outside: bool = False,
    prompt: str | None = None,
) -> tuple[list[dict], str, str]:
    """The studies of a split (or of all), the absolute image root, and a digest of all that they show to the student.

    The digest covers ids, prompts and the bytes of the films of the whole split, whatever `limit` says, so that a first
    look at ten films can be continued to all of them. `prompt` takes the place of each study's own. Raises UserError
    for an empty split, a missing film, or a prompt that has not one <image> for each film.
    """
    root = root_of(studies, image_root)
    chosen = [s for s in read_studies(studies, image_root=root) if split in ("all", s["split"])]
    if not chosen:
        raise UserError(f'{studies}: no study of split "{split}"; check --split')
    if prompt is not None:
        chosen = [check_study(study | {"prompt": prompt}, where="--prompt") for study in chosen]
    digest = hashlib.sha256()
    require_images(studies, chosen, root, allow_outside=allow_outside)
    for study in chosen:
        films = [sha256_file(path) for path in image_paths(study, root)]
        digest.update(json.dumps([study["id"], study["prompt"], films]).encode())
    return chosen[:limit], root, digest.hexdigest()


def is_text(row: dict) -> bool:
    """Whether a row holds a text answer."""
    return isinstance(row.get("text"), str)


def is_score(row: dict) -> bool:
    """Whether a row holds a yes/no answer: p_yes and the mass of yes and no together, both from 0 to 1."""
    values = [row.get("p_yes"), row.get("mass")]
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= 1 for v in values)


def open_predictions(
    out: Path,
    meta: dict,
    studies: Sequence[dict],
    overwrite: bool = False,
    fits: Callable[[dict], bool] = is_text,
) -> set[str]:
    """Ids already answered in `out` under the same settings; starts a new file when there is none.

    Args:
        meta: what the answers depend on (a JSON object of scalars); kept beside `out` as FILE.meta.json.
        fits: whether a row holds an answer of the right kind.

    Raises UserError when `out` was made under other settings (names them) or holds answers to other studies.
    """
    sidecar = manifest.sidecar(out)
    if overwrite or not out.exists() or (out.stat().st_size == 0 and not sidecar.exists()):
        out.unlink(missing_ok=True)
        write_atomic(sidecar, json.dumps(meta, indent=2) + "\n")
        return set()
    try:
        before = dict(json.loads(sidecar.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise UserError(
            f"{out}: exists, but {sidecar.name} is missing or damaged, so what made it is unknown; pass --overwrite "
            "or another --out"
        ) from None
    changed = [key for key in sorted({*meta, *before} - {manifest.KEY}) if before.get(key) != meta.get(key)]
    if changed:
        raise UserError(
            f"{out}: was made with other {', '.join(changed)}; answers are never mixed: "
            "pass --overwrite or another --out"
        )
    done: set[str] = set()
    known = {s["id"] for s in studies}
    for line, row in read_jsonl(out, torn="drop"):
        if not isinstance(row, dict) or row.get("id") not in known or not fits(row):
            raise UserError(f"{out}:{line}: not an answer to one of these studies; pass --overwrite or another --out")
        done.add(row["id"])
    return done


def gathered(out: Path, meta: dict, studies: Sequence[dict], overwrite: bool = False) -> set[str]:
    """`open_predictions` of `out` after what processes side by side left in its parts was put into it, in order.

    With `overwrite` the parts are removed like `out`.
    """
    done = open_predictions(out, meta, studies, overwrite)
    parts = sorted(out.parent.glob(f"{glob.escape(out.name)}.part-*.jsonl"))
    if parts and not overwrite:
        rows = {row["id"]: row for _, row in read_jsonl(out, torn="drop")} if out.exists() else {}
        for part in parts:
            open_predictions(part, meta, studies)
            rows |= {row["id"]: row for _, row in read_jsonl(part, torn="drop")} if part.exists() else {}
        write_atomic(out, b"".join(dump_line(rows[s["id"]]) for s in studies if s["id"] in rows))
        done = set(rows)
    for part in parts:
        part.unlink()
        manifest.sidecar(part).unlink(missing_ok=True)
    return done


def answer_batches(
    grid: Sequence[Sequence[dict]],
    answer: Callable[[Sequence[dict]], Sequence[Answer]],
    out: Path,
    meta: dict,
    *,
    fits: Callable[[dict], bool] = is_text,
    answered: Collection[str] = (),
) -> int:
    """Answer every study that `out` does not answer yet, batch by batch; rows are flushed as each batch ends.

    `answer` maps a batch of studies to one dict each. A run that was interrupted inside a batch asks for that whole
    batch again and keeps what is missing: what shares a batch never depends on interruptions, nor do the answers.
    `answered`: ids that another file answers. Returns the number of new answers.
    """
    studies = [study for batch in grid for study in batch]
    done = open_predictions(out, meta, studies, fits=fits) | {s["id"] for s in studies if s["id"] in answered}
    left = sum(s["id"] not in done for s in studies)
    if done and left:
        print(f"{len(studies) - left} of {len(studies)} answers are there already", flush=True)
    start = time.monotonic()
    new = 0
    for batch in grid:
        missing = [s["id"] not in done for s in batch]
        if not any(missing):
            continue
        answers = answer(batch)
        if len(answers) != len(batch):
            raise RuntimeError(f"{len(answers)} answers to {len(batch)} studies")
        rows = [{"id": study["id"], **one} for study, one in zip(batch, answers, strict=True)]
        append_jsonl(out, *(row for row, wanted in zip(rows, missing, strict=True) if wanted))
        new += sum(missing)
        seconds = time.monotonic() - start
        rest = seconds / new * (left - new)
        print(f"{len(done) + new}/{len(studies)} answers, {seconds:.0f} s, about {rest:.0f} s left", flush=True)
    return new


def read_answers(
    path,
    ids: Sequence[str],
    *,
    fits: Callable[[dict], bool] = is_text,
    needs: str = 'a string "text"',
    what: str = "studies",
    check: str = "check --split and --studies",
) -> list[dict]:
    """The rows of a predictions file in the order of `ids`.

    Args:
        fits, needs: whether a row holds an answer of the right kind, and the words for that kind.
        what, check: what the ids stand for, and what to look at when they do not match.

    Raises UserError for a file without rows, a row without id or answer, an id twice, an id that is not among `ids`, or
    one of `ids` without an answer.
    """
    wanted = set(ids)
    found: dict[str, dict] = {}
    for line, row in read_jsonl(path):
        if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not fits(row):
            raise UserError(f'{path}:{line}: a prediction needs a string "id" and {needs}; make the file again')
        if is_text(row) and half_character(row["text"]):
            raise UserError(
                f"{path}:{line}: the text holds half a character (a lone surrogate, \\ud800 to \\udfff); take it out"
            )
        if row["id"] in found:
            raise UserError(f"{path}:{line}: id {row['id']} stands here twice; keep one answer each")
        if row["id"] not in wanted:
            raise UserError(f"{path}:{line}: id {row['id']} is not among the scored {what}; {check}")
        found[row["id"]] = row
    if not found:
        raise UserError(f"{path}: no prediction in it; make the file again")
    missing = [one for one in ids if one not in found]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(ids)} {what} have no answer (first: {missing[0]}); "
            "run the command that made it again, it goes on where it stopped"
        )
    return [found[one] for one in ids]


def batches(items: Sequence[dict], size: int) -> Iterator[Sequence[dict]]:
    for i in range(0, len(items), size):
        yield items[i : i + size]


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.predict", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="a checkpoint-N folder (full or LoRA) or a model folder")
    parser.add_argument("--studies", required=True, type=Path)
    parser.add_argument("--split", choices=("all", *SPLITS), default="test")
    parser.add_argument(
        "--image-root", type=Path, help="what image paths are relative to (default: folder of --studies)"
    )
    parser.add_argument("--prompt", help="asked of every film, in place of its own prompt; <image> stands for a film")
    parser.add_argument("--out", required=True, type=Path, help="predictions JSONL to write or to go on with")
    parser.add_argument("--base", help="for an adapter: its base model, if not where args.json says")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="answers are cut off here (default: 512)")
    parser.add_argument("--batch-size", type=int, default=32, help="films a forward pass (default: 32)")
    parser.add_argument("--backend", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--processes", type=int, default=1, help="processes side by side, one a GPU (default: 1)")
    parser.add_argument("--shard", default="1/1", metavar="i/n", help="answer every n-th batch from the i-th on")
    parser.add_argument(
        "--answered", type=Path, help=argparse.SUPPRESS
    )  # of a process: where the command's answers lie
    parser.add_argument("--limit", type=int, help="only the first N studies of the split")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    parser.add_argument("--allow-outside", action="store_true", help=ALLOW_OUTSIDE)
    parser.add_argument("--overwrite", action="store_true", help="begin again even if --out holds answers")
    args = parser.parse_args(argv)
    refuse_input(args.out, args.studies)
    refuse_below_one(args, "max_new_tokens", "batch_size", "limit", "processes")
    args.shard = side_by_side.parse_shard(args.shard)
    doctor.before("evaluate", args.out)
    info = checkpoints.describe(args.checkpoint, args.base)
    chosen = select(
        args.studies,
        args.split,
        args.image_root,
        args.limit,
        allow_outside=args.allow_outside,
        prompt=args.prompt,
    )
    with claimed(args.out):
        run(args, sys.argv[1:] if argv is None else argv, info, *chosen)


def run(
    args: argparse.Namespace, argv: Sequence[str], info: dict, studies: Sequence[dict], image_root: str, shown: str
) -> None:
    """The command with its input read and its output claimed; `info` of `describe`, the rest of `select`."""
    device = args.device or machine.default_device()
    meta = {
        "checkpoint": checkpoints.fingerprint(args.checkpoint, args.base),
        "studies": shown,
        "split": args.split,
        "decoding": "greedy",
        "max_new_tokens": args.max_new_tokens,
        "dtype": "bfloat16" if device == "cuda" else "float32",
        manifest.KEY: manifest.make({"studies": args.studies}, {}),
    }
    meta |= {"backend": args.backend} if args.backend != "transformers" else {}  # older files do not name the default
    i, n = args.shard
    grid = list(batches(studies, args.batch_size))[i - 1 :: n]
    mine = [study for batch in grid for study in batch]
    done = gathered(args.out, meta, mine, args.overwrite)
    answered: set[str] = set()
    if args.answered and args.answered.exists():
        answered = {row["id"] for _, row in read_jsonl(args.answered, torn="drop")}
    if all(s["id"] in done | answered for s in mine):
        args.out.touch()  # a shard can be without a batch
        print(f"all {len(mine)} answers are there already: {args.out}")
        return
    if args.processes > 1:
        words = [*argv, "--answered", str(args.out)]
        side_by_side.run("eval.predict", words, args.out, args.shard, args.processes, args.device)
        done = gathered(args.out, meta, mine)
        if left := sum(s["id"] not in done for s in mine):  # an error of Python's own ends a process with status 1, too
            raise UserError(
                f"{args.out}: {left} of {len(mine)} answers are missing, a process failed (see above); mend it and "
                "give the same command again, it goes on where it stopped"
            )
    else:
        ask(args, info, grid, image_root, meta, device, answered)
    cut = sum(row["finish_reason"] == "length" for _, row in read_jsonl(args.out))
    if cut:
        print(f"note: {cut} answers were cut off at --max-new-tokens {args.max_new_tokens}", file=sys.stderr)
    print(f"written: {args.out}")


def ask(
    args: argparse.Namespace,
    info: dict,
    grid: Sequence[Sequence[dict]],
    image_root: str,
    meta: dict,
    device: str,
    answered: Collection[str],
) -> None:
    """Load the student and ask it, in this process, what neither `args.out` nor `answered` holds."""
    from apo.student_engine import Student  # here, so that everything above is refused before torch is loaded

    student = Student(info, backend=args.backend, device=device, batch_size=args.batch_size)

    def answer(batch: Sequence[dict]) -> list[Answer]:
        prompts = [(study["prompt"], image_paths(study, image_root)) for study in batch]
        return greedy(student, prompts, args.max_new_tokens)

    answer_batches(grid, answer, args.out, meta, answered=answered)


def greedy(student, prompts: Sequence[tuple[str, Sequence[str]]], max_new_tokens: int) -> list[Answer]:
    """Greedy answers of an `apo.student_engine.Student` to (prompt, image paths) each, as rows without id."""
    texts = student.answer(prompts, max_new_tokens=max_new_tokens, temperature=0.0, seed=0)
    return [{"text": text, "finish_reason": finish} for text, finish in texts]


if __name__ == "__main__":
    run_cli(main, GOES_ON)
