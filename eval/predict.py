"""A checkpoint's greedy answers to the films of a study file, one JSONL row a study.

    python -m eval.predict CHECKPOINT --studies STUDIES.jsonl --image-root DIR --out predictions.jsonl

CHECKPOINT is a folder with full weights or a LoRA adapter folder as ms-swift saves it. The student sees the films and
the prompt, nothing else. Rows are {"id", "text", "finish_reason"} ("stop", or "length" for an answer that was cut off).

An interrupted run goes on where it stopped. What the answers depend on (weights, prompts, films, decoding) is written
to FILE.meta.json; answers made from anything else are refused, never continued.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data import checkpoints
from data.errors import UserError, refuse_below_one, run_cli
from data.files import append_jsonl, read_jsonl, sha256_file, write_atomic
from data.records import image_paths, image_problems, read_studies, root_of

Answer = tuple[str, str]  # text, finish_reason


def select(studies: Path, split: str, image_root: Path | None, limit: int | None) -> tuple[list[dict], str, str]:
    """The studies of a split, the absolute image root, and a digest of all that the split shows to the student.

    The digest covers ids, prompts and the bytes of the films of the whole split, whatever `limit` says, so that a first
    look at ten films can be continued to all of them. Raises UserError for an empty split or a missing film.
    """
    root = root_of(studies, image_root)
    chosen = [s for s in read_studies(studies, image_root=root) if s["split"] == split]
    if not chosen:
        raise UserError(f'{studies}: no study of split "{split}"; check --split')
    digest = hashlib.sha256()
    for study in chosen:
        for problem in image_problems(study, root):
            raise UserError(f"{studies}: {problem}")
        films = [sha256_file(path) for path in image_paths(study, root)]
        digest.update(json.dumps([study["id"], study["prompt"], films]).encode())
    return chosen[:limit], root, digest.hexdigest()


def open_predictions(out: Path, meta: dict, studies: Sequence[dict], overwrite: bool = False) -> set[str]:
    """Ids already answered in `out` under the same settings; starts a new file when there is none.

    Args:
        meta: what the answers depend on (a JSON object of scalars); kept beside `out` as FILE.meta.json.

    Raises UserError when `out` was made under other settings (names them) or holds answers to other studies.
    """
    sidecar = out.with_name(out.name + ".meta.json")
    if overwrite or not out.exists() or (out.stat().st_size == 0 and not sidecar.exists()):
        out.unlink(missing_ok=True)
        write_atomic(sidecar, json.dumps(meta, indent=2) + "\n")
        return set()
    try:
        before = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{out}: exists, but {sidecar.name} is missing or damaged, so what made it is unknown; pass --overwrite "
            "or another --out"
        ) from None
    changed = [key for key in sorted({*meta, *before}) if before.get(key) != meta.get(key)]
    if changed:
        raise UserError(
            f"{out}: was made with other {', '.join(changed)}; answers are never mixed: "
            "pass --overwrite or another --out"
        )
    done: set[str] = set()
    known = {s["id"] for s in studies}
    for line, row in read_jsonl(out, torn="drop"):
        if not isinstance(row, dict) or row.get("id") not in known or not isinstance(row.get("text"), str):
            raise UserError(f"{out}:{line}: not an answer to one of these studies; pass --overwrite or another --out")
        done.add(row["id"])
    return done


def predict(
    studies: Sequence[dict],
    answer: Callable[[Sequence[dict]], Sequence[Answer]],
    out: Path,
    meta: dict,
    *,
    batch_size: int = 32,
    overwrite: bool = False,
) -> int:
    """Answer every study that `out` does not answer yet, in batches; rows are flushed as each batch ends.

    `answer` maps a batch of studies to (text, finish_reason) each. Returns the number of new answers.
    """
    done = open_predictions(out, meta, studies, overwrite)
    todo = [s for s in studies if s["id"] not in done]
    if done:
        print(f"{len(studies) - len(todo)} of {len(studies)} answers are there already", flush=True)
    start = time.monotonic()
    new = 0
    for batch in batches(todo, batch_size):
        answers = answer(batch)
        if len(answers) != len(batch):
            raise RuntimeError(f"{len(answers)} answers to {len(batch)} studies")
        for study, (text, finish_reason) in zip(batch, answers, strict=True):
            append_jsonl(out, {"id": study["id"], "text": text, "finish_reason": finish_reason})
        new += len(batch)
        seconds = time.monotonic() - start
        left = seconds / new * (len(todo) - new)
        print(f"{len(done) + new}/{len(studies)} answers, {seconds:.0f} s, about {left:.0f} s left", flush=True)
    return new


def batches(items: Sequence[dict], size: int) -> Iterator[Sequence[dict]]:
    for i in range(0, len(items), size):
        yield items[i : i + size]


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.predict", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="a checkpoint-N folder (full or LoRA) or a model folder")
    parser.add_argument("--studies", required=True, type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument(
        "--image-root", type=Path, help="what image paths are relative to (default: folder of --studies)"
    )
    parser.add_argument("--out", required=True, type=Path, help="predictions JSONL to write or to go on with")
    parser.add_argument("--base", help="for an adapter: its base model, if not where args.json says")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="answers are cut off here (default: 512)")
    parser.add_argument("--batch-size", type=int, default=32, help="films a forward pass (default: 32)")
    parser.add_argument("--limit", type=int, help="only the first N studies of the split")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    parser.add_argument("--overwrite", action="store_true", help="begin again even if --out holds answers")
    args = parser.parse_args(argv)
    refuse_below_one(args, "max_new_tokens", "batch_size", "limit")
    info = checkpoints.describe(args.checkpoint, args.base)
    studies, image_root, shown = select(args.studies, args.split, args.image_root, args.limit)
    device = args.device or best_device()
    meta = {
        "checkpoint": checkpoints.fingerprint(args.checkpoint, args.base),
        "studies": shown,
        "split": args.split,
        "decoding": "greedy",
        "max_new_tokens": args.max_new_tokens,
        "dtype": "bfloat16" if device == "cuda" else "float32",
    }
    done = open_predictions(args.out, meta, studies, args.overwrite)
    if all(s["id"] in done for s in studies):
        print(f"all {len(studies)} answers are there already: {args.out}")
        return
    from apo.student_engine import Student  # here, so that everything above is refused before torch is loaded

    student = Student(info, device=device, batch_size=args.batch_size)

    def answer(batch: Sequence[dict]) -> list[Answer]:
        prompts = [(study["prompt"], image_paths(study, image_root)) for study in batch]
        return student.answer(prompts, max_new_tokens=args.max_new_tokens, temperature=0.0, seed=0)

    predict(studies, answer, args.out, meta, batch_size=args.batch_size)
    cut = sum(row["finish_reason"] == "length" for _, row in read_jsonl(args.out))
    if cut:
        print(f"note: {cut} answers were cut off at --max-new-tokens {args.max_new_tokens}", file=sys.stderr)
    print(f"written: {args.out}")


def best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    run_cli(main)
