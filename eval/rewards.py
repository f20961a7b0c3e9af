"""Log-probabilities of a critiqued student and its reference for what stands in a study file, and for own samples.

    python -m eval.rewards CHECKPOINT --reference CHECKPOINT --studies COMPARED.jsonl --image-root DIR --out FILE.jsonl

One row a study of the split with a consensus and an ok trajectory:

    {"id", "consensus": SCORE, "teachers": {name: SCORE}, "own": SCORE or null}

with SCORE = {"tokens", "policy", "reference"} in nats, summed over the response with its end of turn. `own` is one
sample of the student at temperature 1: the mean of policy - reference over such samples estimates the divergence
KL(policy || reference) of whole answers. It is null where the sample is empty or was cut off at --max-new-tokens. (The
sample is tokenised again, which can differ from the tokens drawn.)
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data import checkpoints
from data.errors import UserError, refuse_below_one, run_cli
from data.files import atomic_open, dump_line, refuse_input
from data.records import PLACEHOLDER, image_paths
from data.row_checks import turn
from data.rows import ok_trajectories
from eval.predict import select
from scripts.machine import default_device


def ended(samples: Sequence[tuple[str, str]]) -> list[str]:
    """The texts of (text, finish reason); "" for one that was cut off, whose end of turn was never drawn."""
    return ["" if reason == "length" else text for text, reason in samples]


def rows_of(studies: Sequence[dict], own: Sequence[str], root: str) -> list[tuple[list[str], dict]]:
    """(who says each response, the group row) a study: the consensus, every ok trajectory, the own sample if any."""
    found = []
    for study, sample in zip(studies, own, strict=True):
        texts = {one["teacher"]: one["text"] for one in ok_trajectories(study)}
        if sample.strip() and not PLACEHOLDER.search(sample):
            texts[""] = sample
        row = {
            "messages": [turn("user", study["prompt"]), turn("assistant", study["consensus"]["text"])],
            "negative_messages": [[turn("assistant", text)] for text in texts.values()],
            "images": image_paths(study, root),
        }
        found.append((list(texts), row))
    return found


def response_logps(student, rows: Sequence[dict], batch_size: int) -> list[list[tuple[float, int]]]:
    """(log-probability in nats, tokens) of every response of every group row, under an apo.student_engine.Student."""
    import torch

    from apo import group
    from apo.forward import sum_responses
    from apo.head import logps_head

    model, template = student.engine.model, student.engine.template
    mode = template.mode
    template.set_mode("rlhf")
    found: list[list[tuple[float, int]]] = []
    try:
        for at in range(0, len(rows), batch_size):
            groups = [dict(template.encode(row)) for row in rows[at : at + batch_size]]
            inputs, batch = group.collate_rows(template, groups)
            inputs = template._post_encode(model, inputs) | {
                key: inputs[key] for key in ("position_ids", "attention_mask") if key in inputs
            }
            inputs = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
            index, targets = batch.index.to(model.device), batch.targets.to(model.device)
            with torch.no_grad(), logps_head(model, index, targets, 256):
                tokens = model(**inputs, use_cache=False).logits.flatten()
            logps = sum_responses(tokens.cpu(), batch)
            pairs = list(zip(logps.sums.tolist(), logps.counts.tolist(), strict=True))
            for size in batch.group_sizes:
                found.append(pairs[:size])
                pairs = pairs[size:]
    finally:
        template.set_mode(mode)
    return found


def joined(studies, rows, policy, reference) -> list[dict]:
    """The output rows from both models' log-probs, in the order of the studies."""
    out = []
    for study, (who, _), ours, theirs in zip(studies, rows, policy, reference, strict=True):
        scores = [
            {"tokens": count, "policy": round(a, 4), "reference": round(b, 4)}
            for (a, count), (b, _) in zip(ours, theirs, strict=True)
        ]
        named = dict(zip(who, scores[1:], strict=True))
        own = named.pop("", None)
        out.append({"id": study["id"], "consensus": scores[0], "teachers": named, "own": own})
    return out


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.rewards", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="the critiqued student")
    parser.add_argument("--reference", required=True, help="the student that it started from")
    parser.add_argument("--base", help="for adapters: their base model, if not where args.json says")
    parser.add_argument("--studies", required=True, type=Path, help="study records with a consensus")
    parser.add_argument("--image-root", type=Path, help="what image paths are relative to")
    parser.add_argument("--split", default="validate")
    parser.add_argument("--limit", type=int, help="only the first N studies of the split")
    parser.add_argument("--batch-size", type=int, default=4, help="studies a forward pass (default: 4)")
    parser.add_argument("--max-new-tokens", type=int, default=160, help="of a sample (default: 160)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(argv)
    refuse_below_one(args, "limit", "batch_size", "max_new_tokens")
    refuse_input(args.out, args.studies)
    infos = [checkpoints.describe(path, args.base) for path in (args.checkpoint, args.reference)]
    studies, root, _ = select(args.studies, args.split, args.image_root, args.limit)
    usable = [study for study in studies if study.get("consensus") and ok_trajectories(study)]
    if not usable:
        raise UserError(f"{args.studies}: no study of split {args.split} has a consensus and an ok trajectory")
    from apo.student_engine import Student

    device = default_device()
    student = Student(infos[0], device=device, batch_size=32)
    prompts = [(study["prompt"], image_paths(study, root)) for study in usable]
    samples = student.answer(prompts, max_new_tokens=args.max_new_tokens, temperature=1.0, seed=args.seed)
    rows = rows_of(usable, ended(samples), root)
    policy = response_logps(student, [row for _, row in rows], args.batch_size)
    reference = response_logps(Student(infos[1], device=device), [row for _, row in rows], args.batch_size)
    found = joined(usable, rows, policy, reference)
    with atomic_open(args.out) as out:
        out.writelines(map(dump_line, found))
    cut = sum(reason == "length" for _, reason in samples)
    empty = sum(row["own"] is None for row in found) - cut
    print(
        f"{len(found)} studies scored, {len(studies) - len(usable)} without consensus or trajectory left out, "
        f"{cut} samples were cut off and {empty} empty; written: {args.out}"
    )


if __name__ == "__main__":
    run_cli(main)
