"""Datasets of a training stage: study records become rows in the output folder, rows files are checked."""

from pathlib import Path

from data import rows
from data.errors import UserError
from data.files import read_jsonl
from scripts.lengths import check_lengths
from scripts.plan import Plan
from scripts.settings import PROJECT_KEYS, as_bool, as_count, as_list


def add_data(plan: Plan, dry_run: bool) -> None:
    """Check the datasets; turn study records into rows under OUTPUT_DIR/rows and point ms-swift at those.

    A rows file is checked and passed on; a name that is no file and looks like one of a hub passes. `NAME#N`,
    ms-swift's way of taking N rows, is kept. Study records bring their split "validate" as validation set, if they have
    such a split and no `val_dataset` is given. In a dry run nothing is read beyond what tells the two kinds apart.
    """
    settings = plan.settings
    kind = "sft" if plan.stage == "learn" else "apo"
    options = {name: settings.pop(name) for name in PROJECT_KEYS["critique"] if name in settings and "on_" in name}
    for name, value in options.items():
        allowed = ("error", "drop-negative" if name == "on_identical" else "drop")
        if value not in allowed:
            raise UserError(f"{name} {value}: must be {' or '.join(allowed)}")
    options["image_root"] = settings.pop("image_root", None)
    options["check_images"] = as_bool(settings, "check_images")
    settings.pop("check_images", None)
    if plan.stage == "learn":
        options["share_prefix"] = as_bool(settings, "share_prefix")
        settings.pop("share_prefix", None)

    val_given = as_list(settings.get("val_dataset"))
    train, validate = [], []
    for number, entry in enumerate(as_list(settings["dataset"]), 1):
        train.append(_one_dataset(plan, entry, kind, "train", number, options, dry_run))
        if not val_given and (has_split := _has_validation(entry, dry_run)):
            validate.append(_one_dataset(plan, entry.partition("#")[0], kind, "validate", number, options, dry_run))
            if has_split == "unknown":
                plan.notes.append(f"{entry}: not there; taken for study records with a split validate")
    for number, entry in enumerate(val_given, 1):
        validate.append(_one_dataset(plan, entry, kind, "validate", number, options, dry_run))
    if not dry_run:
        _check_lengths(plan, [*train, *validate])
    settings["dataset"] = train
    if validate:
        settings["val_dataset"] = validate


def _check_lengths(plan: Plan, entries: list[str]) -> None:
    if "max_length" not in plan.settings:
        return
    tokenizer = Path(str(plan.settings["model"])) / "tokenizer.json"
    if plan.settings.get("template") != "qwen2_5_vl" or not tokenizer.is_file():
        print(
            "lengths: not checked before training, only with a local qwen2_5_vl model; --strict stops at a row too long"
        )
        return
    limit = as_count(plan.settings, "max_length", 1)
    pixels = as_count(plan.settings, "max_pixels", 1) if "max_pixels" in plan.settings else None
    for entry in entries:
        path = Path(entry.partition("#")[0])
        if path.is_file():
            longest = check_lengths(path, tokenizer, limit, pixels)
            print(f"{path}: longest row {longest} tokens (max_length {limit})", flush=True)


def _one_dataset(plan: Plan, entry: str, kind, split: str, number: int, options: dict, dry_run: bool) -> str:
    name, sharp, sample = entry.partition("#")
    path = Path(name).expanduser()
    target = plan.output_dir.absolute() / "rows" / (f"{split}.jsonl" if number == 1 else f"{split}-{number}.jsonl")
    if not path.exists():
        if path.suffix not in (".jsonl", ".json", ".csv") and name.count("/") == 1:
            return entry
        if dry_run:
            return f"{target}{sharp}{sample}"
        raise UserError(
            f"dataset {name}: no such file; pass study records or ms-swift rows with --dataset (data/README.md), "
            "or make a phantom cohort: python -m data.phantom --out DIR --seed 0"
        )
    if dry_run:
        return f"{target}{sharp}{sample}" if rows.file_kind(path) == "studies" else entry
    if rows.file_kind(path) == "rows":
        counts = rows.check_rows(path, kind, check_images=options["check_images"])
        print(f"{path}: {counts['rows']} rows, checked", flush=True)
        if counts["unused_columns"]:
            print(f"  columns that ms-swift leaves unused: {', '.join(counts['unused_columns'])}", flush=True)
        plan.datasets.append(path)
        return f"{path.absolute()}{sharp}{sample}"
    print(rows.describe(rows.write_rows(kind, path, target, split=split, **options)), flush=True)
    if path not in plan.datasets:
        plan.datasets.append(path)
    return f"{target}{sharp}{sample}"


def _has_validation(entry: str, dry_run: bool) -> bool | str:
    """Whether an entry is a file of study records with studies of the split "validate"; "unknown" in a dry run."""
    path = Path(entry.partition("#")[0]).expanduser()
    if not path.exists():
        return "unknown" if dry_run and path.suffix == ".jsonl" else False
    if rows.file_kind(path) != "studies":
        return False
    return any(isinstance(row, dict) and row.get("split") == "validate" for _, row in read_jsonl(path))
