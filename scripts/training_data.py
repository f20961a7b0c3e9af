"""Datasets of a training stage: study records become rows in the output folder, rows files are checked."""

from pathlib import Path
from typing import Any

from apo.refusals import STUDY_LOSSES
from data import rows
from data.errors import UserError
from data.files import read_jsonl
from data.records import did_you_mean
from scripts.lengths import FilmLimits, Kept, check_lengths, film_limits, keep_fitting
from scripts.plan import Plan, like_a_hub_name, refuse_options
from scripts.settings import PROJECT_KEYS, as_bool, as_count, as_list, model_kwargs

KIND = {"learn": "sft", "critique": "apo"}
# What --loss_type may be beside our own: ms-swift's DPO, by the list in its trainer.
STOCK_LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "discopop",
    "apo_zero",
    "apo_down",
    "sft",
)


def split_sample(entry: str) -> tuple[str, str]:
    """(name or path, "" or "#N") of a dataset as ms-swift takes it: whole if there is such a path, else cut at its last
    "#"."""
    if Path(entry).exists():
        return entry, ""
    name, sharp, sample = entry.rpartition("#")
    return (name, sharp + sample) if sharp else (entry, "")


def add_data(plan: Plan, dry_run: bool) -> None:
    """Check the datasets; turn study records into rows under OUTPUT_DIR/rows and point ms-swift at those.

    A rows file is checked and passed on; a name that is no file and looks like one of a hub passes. `NAME#N`,
    ms-swift's way of taking N rows, is kept. Study records bring their split "validate" as validation set, if they have
    such a split and no `val_dataset` is given. In a dry run nothing is read beyond what tells the two kinds apart and
    whether rows have the negatives that the loss knows.
    """
    settings = plan.settings
    kind = KIND[plan.stage]
    check_loss(plan)
    options = row_options(plan)
    overlong = overlong_of(plan, dry_run)
    plan.image_root = Path(str(options["image_root"])).absolute() if options["image_root"] else None
    for name in PROJECT_KEYS[plan.stage]:
        settings.pop(name, None)

    val_given = as_list(settings.get("val_dataset"))
    train, validate = [], []
    for number, entry in enumerate(as_list(settings["dataset"]), 1):
        train.append(_one_dataset(plan, entry, kind, "train", number, options, dry_run))
        if not val_given and (has_split := _has_validation(entry, dry_run)):
            validate.append(
                _one_dataset(plan, split_sample(entry)[0], kind, "validate", number, options, dry_run, optional=True)
            )
            if has_split == "unknown":
                plan.notes.append(f"{entry}: not there; taken for study records with a split validate")
    for number, entry in enumerate(val_given, 1):
        validate.append(_one_dataset(plan, entry, kind, "validate", number, options, dry_run))
    validate = [one for one in validate if one is not None]
    if not dry_run:
        train = _check_lengths(plan, "train", train, overlong)
        validate = _check_lengths(plan, "validate", validate, overlong)
    settings["dataset"] = train
    if validate:
        settings["val_dataset"] = validate


def check_loss(plan: Plan) -> None:
    """Refuse a loss of Critique that nobody knows, one of ours among others, and options of ours under a stock one; the
    trainer would at its first step.

    Another `rlhf_type` than dpo has other losses, which are left to ms-swift.
    """
    if plan.stage != "critique":
        return
    names = as_list(plan.settings["loss_type"]) if plan.settings.get("rlhf_type") == "dpo" else []
    for name in names:
        if name not in (*STUDY_LOSSES, *STOCK_LOSSES):
            raise UserError(f"loss_type {name}: {did_you_mean(name, (*STUDY_LOSSES, *STOCK_LOSSES))}")
    ours = [name for name in names if name in STUDY_LOSSES]
    if ours and not plan.groups:  # several, or a list of one
        raise UserError(
            f"loss_type {' '.join(names)}: {ours[0]} stands alone; write loss_type {ours[0]} and no list (a likelihood "
            "term on the consensus is --rpo_alpha)"
        )
    if not plan.groups:
        refuse_options(plan)


def refuse_other_negatives(plan: Plan, path: Path) -> None:
    """Refuse study records and rows with `negative_messages` where the loss is stock DPO, which knows pairs alone, and
    rows with `rejected_response` where it is one of ours.

    Stops at the first such row. Nothing is said under a loss that `check_loss` refuses.
    """
    if plan.stage != "critique":
        return
    names = as_list(plan.settings["loss_type"])
    stock = set(names) <= set(STOCK_LOSSES)
    if not stock and not plan.groups:
        return
    loss, kind = f"--loss_type {' '.join(names)}", rows.file_kind(path)
    if stock:
        column, verb = "negative_messages", "are"
        remedy = (
            f"{loss} takes only ms-swift rows with one rejected_response (data/README.md); bring such rows, or "
            f"train these with --loss_type {STUDY_LOSSES[0]}, or --loss_type pairwise: DPO over a study's pairs"
        )
        if kind == "studies":
            raise UserError(f"{path}: study records become rows with negative_messages, and {remedy}")
    else:
        column, verb = "rejected_response", "is"
        remedy = (
            f"{loss} trains on negative_messages; write it there as a list of one, or choose --loss_type "
            f"{STOCK_LOSSES[0]}"
        )
    if kind == "rows":
        for line, row in read_jsonl(path):
            if isinstance(row, dict) and row.get(column) is not None:
                raise UserError(f"{path}:{line}: {column} {verb} here, and {remedy}")


def refuse_smoothed_weights(plan: Plan, path: Path) -> None:
    """Refuse rows with weights of their negatives under a label_smoothing of the Plackett-Luce loss, which spreads
    evenly; the loss would at the first such row."""
    if str(plan.settings.get("loss_type")) != STUDY_LOSSES[0] or not float(plan.settings.get("label_smoothing", 0)):
        return
    for line, row in read_jsonl(path):
        if row.get("negative_weights") is not None:
            raise UserError(
                f"{path}:{line}: negative_weights are here, and --label_smoothing spreads its share evenly over the "
                f"negatives; leave one of the two out, or train with --loss_type {STUDY_LOSSES[1]}"
            )


def row_options(plan: Plan) -> dict[str, Any]:
    """The options of `data.rows.write_rows` that the settings ask for. Raises UserError for neither true nor false."""
    settings = plan.settings
    options: dict[str, Any] = {"image_root": settings.get("image_root")}
    for name in ("check_images", "allow_outside"):
        options[name] = as_bool(settings, name)
    if plan.stage == "learn":
        return options | {"share_prefix": as_bool(settings, "share_prefix")}
    for name in PROJECT_KEYS["critique"]:
        if name.startswith("on_") and name in settings:
            options[name] = settings[name]
    return options


def overlong_of(plan: Plan, dry_run: bool = False) -> str:
    """What to do with rows over max_length, "error" or "drop". Raises UserError (not in a dry run) where lengths cannot
    be counted, so that nothing could be dropped."""
    choice = plan.settings.get("overlong", "error")
    if choice == "drop" and not dry_run and length_inputs(plan) is None:
        raise UserError(
            "overlong drop: lengths are counted only for a local model with template qwen2_5_vl and a max_length; "
            "download the model and pass its folder as --model, or leave overlong out"
        )
    return choice


def _check_lengths(plan: Plan, split: str, entries: list[str], overlong: str) -> list[str]:
    """Refuse rows over max_length, or (`overlong` "drop") name and count them; the entries to train on.

    A file with rows too long is replaced by OUTPUT_DIR/rows/SPLIT-fitting.jsonl and stays as it is.
    """
    inputs = length_inputs(plan)
    if inputs is None:
        if "max_length" in plan.settings and split == "train":
            print(
                "lengths: not checked before training, only with a local qwen2_5_vl model; "
                "--strict stops at a row too long"
            )
        return entries
    used = []
    for number, entry in enumerate(entries, 1):
        name, sample = split_sample(entry)
        path = Path(name)
        if path.is_file() and overlong == "error":
            longest = check_lengths(path, *inputs)
            print(f"{path}: longest row {longest} tokens (max_length {inputs[1]})", flush=True)
        elif path.is_file():
            numbered = split if number == 1 else f"{split}-{number}"
            target = plan.output_dir.absolute() / "rows" / f"{numbered}-fitting.jsonl"
            target.parent.mkdir(parents=True, exist_ok=True)
            kept = keep_fitting(path, target, *inputs)
            print(f"{path}: {_describe_kept(kept, inputs[1])}", flush=True)
            if kept.dropped.count:
                entry = f"{target}{sample}"
        used.append(entry)
    return used


def _describe_kept(kept: Kept, max_length: int) -> str:
    words = f"longest row {kept.longest} tokens (max_length {max_length})"
    if not kept.dropped.count:
        return words
    shown = f", the first {kept.dropped.shown}" if kept.dropped.count > kept.dropped.shown else ""
    dropped = f"{kept.dropped.count} rows over it DROPPED (overlong drop), {kept.rows} kept{shown}:"
    return "\n  ".join([f"{words}; {dropped}", *kept.dropped.first])


def length_inputs(plan: Plan) -> tuple[Path, int, FilmLimits] | None:
    """(tokenizer.json, max_length, limits of films) to count tokens with; None where ms-swift's are not known."""
    tokenizer = Path(str(plan.settings["model"])) / "tokenizer.json"
    if plan.settings.get("template") != "qwen2_5_vl" or not tokenizer.is_file() or "max_length" not in plan.settings:
        return None
    pixels = as_count(plan.settings, "max_pixels", 1) if "max_pixels" in plan.settings else None
    return tokenizer, as_count(plan.settings, "max_length", 1), film_limits(pixels, model_kwargs(plan.settings))


def _one_dataset(
    plan: Plan, entry: str, kind, split: str, number: int, options: dict, dry_run: bool, *, optional: bool = False
) -> str | None:
    """The dataset that ms-swift gets for an entry; None for an `optional` one without a row."""
    name, sample = split_sample(entry)
    path = Path(name)
    target = plan.output_dir.absolute() / "rows" / (f"{split}.jsonl" if number == 1 else f"{split}-{number}.jsonl")
    if not path.exists():
        if like_a_hub_name(name):
            return entry
        if dry_run:
            return f"{target}{sample}"
        refuse_missing(name)
    refuse_other_negatives(plan, path)
    if dry_run:
        return f"{target}{sample}" if rows.file_kind(path) == "studies" else entry
    if rows.file_kind(path) == "rows":
        counts = rows.check_rows(path, kind, check_images=options["check_images"], image_root=rows_root(options))
        print(f"{path}: {counts['rows']} rows, checked", flush=True)
        if counts["unused_columns"]:
            print(f"  columns that ms-swift leaves unused: {', '.join(counts['unused_columns'])}", flush=True)
        refuse_smoothed_weights(plan, path)
        plan.datasets.append(path)
        return f"{path.absolute()}{sample}"
    written = rows.write_rows(kind, path, target, split=split, allow_empty=optional, **options)
    print(rows.describe(written), flush=True)
    if not written["rows"]:
        print(f"{path}: every study of split {split!r} was set aside; no validation", flush=True)
        return None
    refuse_smoothed_weights(plan, target)
    if path not in plan.datasets:
        plan.datasets.append(path)
    return f"{target}{sample}"


def refuse_missing(name: str) -> None:
    """Raise UserError for a dataset that is no file, unless it may be the name of one on a hub."""
    if not like_a_hub_name(name):
        raise UserError(
            f"dataset {name}: no such file; pass study records or ms-swift rows with --dataset (data/README.md), "
            "or make a phantom cohort: python -m data.phantom --out DIR --seed 0"
        )


def rows_root(options: dict[str, Any]) -> str | None:
    """The folder that images of rows made elsewhere must lie in: `image_root` where it is given, else anywhere."""
    return None if options["allow_outside"] else options["image_root"]


def _has_validation(entry: str, dry_run: bool) -> bool | str:
    """Whether an entry is a file of study records with studies of the split "validate"; "unknown" in a dry run."""
    path = Path(split_sample(entry)[0])
    if not path.exists():
        return "unknown" if dry_run and path.suffix == ".jsonl" else False
    if rows.file_kind(path) != "studies":
        return False
    return any(isinstance(row, dict) and row.get("split") == "validate" for _, row in read_jsonl(path))
