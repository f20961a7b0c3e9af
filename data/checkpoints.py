"""What is a checkpoint, which one is the newest, and what identifies it. Needs no torch.

`python -m data.checkpoints latest DIR` prints the newest `checkpoint-N` of an ms-swift output folder, `best DIR` the
one of the lowest validation loss;
`python -m data.checkpoints describe PATH` prints what a checkpoint is, as JSON. All take `--base DIR`, for an adapter
whose base model has moved.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

from data.errors import UserError, run_cli

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
WEIGHT_FILE = "model.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
# Pickle runs code when it is loaded; named only to be refused.
PICKLES = {WEIGHT_FILE: "pytorch_model.bin", ADAPTER_FILE: "adapter_model.bin"}
# Set to 1 by who has read the Python files of a checkpoint; see SECURITY.md.
TRUST = "AD_TRUST_REMOTE_CODE"
# Files besides the weights that change what a checkpoint answers.
IDENTITY_FILES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)
WHOLE_FILE = 256 * 2**20  # bytes; larger weight files are sampled by fingerprint()
SAMPLES, SAMPLE = 256, 16 * 2**10


def latest(folder) -> Path:
    """The `checkpoint-N` of an ms-swift output folder with the highest N.

    Raises UserError when the folder does not exist or holds no checkpoint.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the --output_dir of a finished training run")
    steps = _steps(folder)
    if not steps:
        raise UserError(f"{folder}: holds no checkpoint-N; the training run did not get as far as saving one")
    return folder / f"checkpoint-{max(steps)}"


def best(folder) -> Path:
    """The `checkpoint-N` of an ms-swift output folder that its training called the best: of the lowest loss on the
    validation rows, unless it was told otherwise.

    Raises UserError as `latest` does, and when the training did not evaluate or the best checkpoint is gone.
    """
    newest = latest(folder)
    named = _json(newest / "trainer_state.json").get("best_model_checkpoint")
    if not named:
        raise UserError(f"{newest}: its training chose no best checkpoint; train with --eval_strategy epoch")
    found = newest.parent / Path(named).name  # the folder may have been moved since
    if not found.is_dir():
        raise UserError(f"{found}: the best checkpoint is gone; train with --save_total_limit 2 or more")
    return found


def cut_off(checkpoint) -> str | None:
    """How one sees that the saving of a `checkpoint-N` was cut off (a kill, a full disk), or None if it was not.

    transformers writes trainer_state.json last. Of several ranks each writes its own random state, some after that.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(checkpoint)
    state = folder / "trainer_state.json"
    if not state.is_file():
        return f"{folder}: no trainer_state.json in it: its saving was cut off, or no training made it"
    try:
        _json(state)
    except UserError as error:
        return str(error)
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "numpy"):
                pass
        except (SafetensorError, OSError):
            return f"{path}: damaged or cut off"
    for path in sorted([*folder.glob("*.pt"), *folder.glob("*.pth")]):
        if not zipfile.is_zipfile(path):
            return f"{path}: damaged or cut off"
    args = _json(folder / "args.json") if (folder / "args.json").is_file() else {}
    ranks = args.get("local_world_size")
    if isinstance(ranks, int) and (folder / "rng_state_0.pth").is_file():
        missing = [rank for rank in range(ranks) if not (folder / f"rng_state_{rank}.pth").is_file()]
        if missing:
            return f"{folder}: the random state of rank {missing[0]} is missing: its saving was cut off"
    return None


def has_optimizer(checkpoint) -> bool:
    """Whether training can go on from a `checkpoint-N` as if it had not ended: not with `save_only_model`.

    Plain training and FSDP have optimizer.* beside the weights, DeepSpeed a folder global_stepN.
    """
    folder = Path(checkpoint)
    return any(any(folder.glob(name)) for name in ("optimizer*", "global_step*", "rank*optimizer*"))


def latest_whole(folder) -> Path | None:
    """The newest `checkpoint-N` of an output folder that training can go on from, or None."""
    folder = Path(folder)
    found = [folder / f"checkpoint-{step}" for step in sorted(_steps(folder), reverse=True)] if folder.is_dir() else []
    return next((path for path in found if cut_off(path) is None), None)


def set_aside_incomplete(folder) -> list[Path]:
    """Rename each `checkpoint-N` whose saving was cut off to `incomplete-checkpoint-N`; the new paths.

    Under its old name it would count as the newest one: for people, for `latest`, and for transformers, which deletes
    old checkpoints to keep the newest. Only for a folder that no run is writing.
    """
    folder, moved = Path(folder), []
    for step in _steps(folder) if folder.is_dir() else []:
        path = folder / f"checkpoint-{step}"
        if cut_off(path) is None:
            continue
        target = folder / f"incomplete-{path.name}"
        shutil.rmtree(target, ignore_errors=True)
        path.rename(target)
        moved.append(target)
    return moved


def set_aside_later(checkpoint) -> list[Path]:
    """Rename each later sibling of a `checkpoint-N` to `abandoned-checkpoint-M`, or -M.2 where that is taken; the new
    paths.

    For a run that goes on from N: what is later belongs to the course that was given up, and would be taken for this
    one's by `latest`. Only for a folder that no run is writing.
    """
    checkpoint, moved = Path(checkpoint), []
    named = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    later = [step for step in _steps(checkpoint.parent) if step > int(named[1])] if named else []
    for step in sorted(later):
        path = checkpoint.parent / f"checkpoint-{step}"
        target, number = path.with_name(f"abandoned-{path.name}"), 1
        while target.exists():
            number += 1
            target = path.with_name(f"abandoned-{path.name}.{number}")
        path.rename(target)
        moved.append(target)
    return moved


def describe(path, base=None) -> dict:
    """Check that `path` is a usable vision-language checkpoint and say what it is.

    Args:
        path: a folder with full weights, or a LoRA adapter folder.
        base: for an adapter, the base model to use instead of the one that the adapter names.

    Returns {"path": str, "kind": "full" | "adapter", "model": str, "model_type": str | None, "template": str | None,
    "stage": "learn" | "critique" | None}: `model` is the folder to load weights from (for an adapter its base, which
    may be a hub id); the last three come from ms-swift's args.json, None where there is none.

    Raises UserError for a path that is no checkpoint, one without weights, tokenizer or image processor, weights that
    are cut off or pickled, or a folder that brings Python code of its own.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; give the path of a checkpoint-N folder or of a model folder")
    if not path.is_dir():
        raise UserError(f"{path}: a file, not a checkpoint folder; give the folder that holds config.json")
    adapter = (path / "adapter_config.json").is_file()
    if not adapter and not (path / "config.json").is_file():
        steps = _steps(path)
        hint = f"; did you mean {path / f'checkpoint-{max(steps)}'}?" if steps else "; give a checkpoint-N folder"
        raise UserError(f"{path}: not a checkpoint (neither config.json nor adapter_config.json in it){hint}")
    args = _json(path / "args.json") if (path / "args.json").is_file() else {}
    model = str(path)
    if adapter:
        _check_weights(path, [ADAPTER_FILE], "adapter weights")
        _refuse_code(path)
        model = str(
            base or args.get("model") or _json(path / "adapter_config.json").get("base_model_name_or_path") or ""
        )
        if not model:
            raise UserError(f"{path}: the adapter names no base model; pass it (--base DIR)")
    if Path(model).is_dir():
        _check_model(Path(model))
    elif not adapter or not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise UserError(
            f"{path}: its base model {model} is not there; put it back, or pass its folder (--base DIR) to a command "
            "that takes it"
        )
    config = _json(Path(model) / "config.json") if Path(model).is_dir() else {}
    stage = None if not args else "critique" if args.get("rlhf_type") else "learn"
    model_type = args.get("model_type") or config.get("model_type")
    template = args.get("template") or (model_type if model_type in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl") else None)
    return {
        "path": str(path),
        "kind": "adapter" if adapter else "full",
        "model": model,
        "model_type": model_type,
        "template": template,
        "stage": stage,
    }


def fingerprint(path, base=None) -> str:
    """Hex digest of what a checkpoint would answer with: weights, tokenizer, configuration, and an adapter's base.

    Weight files above 256 MiB are identified by size and 256 evenly spaced blocks of 16 KiB, so that a 7B model takes
    a moment and a changed training run still shows. Paths and times do not enter: a copy has the same fingerprint.
    """
    info = describe(path, base)
    digest = hashlib.sha256()
    folders = [Path(info["path"])]
    if info["kind"] == "adapter":
        folders.append(Path(info["model"]))
    for folder in folders:
        if not folder.is_dir():
            digest.update(str(folder).encode())  # a hub id
            continue
        weights = sorted(p.name for pattern in ("*.safetensors", "*.bin") for p in folder.glob(pattern))
        weights = [name for name in weights if name.startswith(("model", "pytorch_model", "adapter_model"))]
        for name in [*(n for n in IDENTITY_FILES if (folder / n).is_file()), *weights]:
            digest.update(name.encode() + b"\0" + _file_digest(folder / name))
    return digest.hexdigest()


def step_of(checkpoint) -> int:
    """The step at which a checkpoint was saved, as its trainer_state.json says; UserError if that is damaged."""
    step = _json(Path(checkpoint) / "trainer_state.json").get("global_step")
    return step if isinstance(step, int) else 0


def _steps(folder: Path) -> list[int]:
    return [int(m[1]) for p in folder.iterdir() if p.is_dir() and (m := re.fullmatch(r"checkpoint-(\d+)", p.name))]


def _check_model(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: not a model folder (no config.json)")
    index = folder / f"{WEIGHT_FILE}.index.json"
    shards = [WEIGHT_FILE]
    if index.is_file():
        shards = sorted(set(_json(index).get("weight_map", {}).values()))
        if not shards or any(not isinstance(name, str) or Path(name).name != name for name in shards):
            raise UserError(f"{index}: names no weight files beside itself; the checkpoint is damaged")
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"{folder}: weight file {missing[0]} is missing ({len(missing)} in all); copy it completely"
            )
    _check_weights(folder, shards, "weights")
    _refuse_code(folder)
    _need_any(folder, TOKENIZER_FILES, "tokenizer")
    _need_any(folder, ("preprocessor_config.json", "processor_config.json"), "image processor")


def _check_weights(folder: Path, names: list[str], what: str) -> None:
    """Refuse pickled and cut-off weights by names and headers alone, whatever their size."""
    from safetensors import SafetensorError, safe_open

    for name in names:
        if name in PICKLES and not (folder / name).is_file():
            pickled = [PICKLES[name], f"{PICKLES[name]}.index.json"]
            if any((folder / other).is_file() for other in pickled):
                raise UserError(
                    f"{folder}: its {what} are a pickle ({PICKLES[name]}), which may run code when loaded; "
                    f"save them as {name} (safe_serialization=True)"
                )
            _need_any(folder, (name,), what)
        try:
            with safe_open(folder / name, "numpy"):
                pass
        except (SafetensorError, OSError) as error:
            why = str(error).splitlines()[0]
            raise UserError(
                f"{folder / name}: damaged or cut off ({why}); copy or download it again, or train anew"
            ) from None


def _refuse_code(folder: Path) -> None:
    """Refuse `auto_map`: ms-swift loads every model so that the Python file named there would run."""
    if os.environ.get(TRUST) == "1":
        return
    for path in sorted(folder.glob("*config.json")):
        if "auto_map" in _json(path):
            raise UserError(
                f"{path}: auto_map names Python code that loading would run; take auto_map out, or, having read that "
                f"code, set {TRUST}=1"
            )


def _need_any(folder: Path, names, what: str) -> None:
    if not any((folder / name).is_file() for name in names):
        raise UserError(
            f"{folder}: checkpoint without {what} (looked for {', '.join(names)}); save or copy it completely"
        )


def _json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); the checkpoint is damaged") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; the checkpoint is damaged")
    return value


def _file_digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    size = path.stat().st_size
    digest.update(str(size).encode())
    with open(path, "rb") as file:
        if size <= WHOLE_FILE:
            while block := file.read(2**20):
                digest.update(block)
        else:
            for i in range(SAMPLES):
                file.seek((size - SAMPLE) * i // (SAMPLES - 1))
                digest.update(file.read(SAMPLE))
    return digest.digest()


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.checkpoints", description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("latest", "best", "describe"))
    parser.add_argument("path")
    parser.add_argument("--base", help="for an adapter: its base model, if not where args.json says")
    args = parser.parse_args(argv)
    if args.command in ("latest", "best"):
        found = latest(args.path) if args.command == "latest" else best(args.path)
        describe(found, args.base)
        print(found)
    else:
        json.dump(describe(args.path, args.base), sys.stdout, indent=2)
        print()


if __name__ == "__main__":
    run_cli(main)
