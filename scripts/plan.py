"""Settings of one training stage into a plan: processes, accumulation, attention, model, fixed flags.

Nothing here reads data or starts anything; every problem is a UserError that names the setting and the remedy.
"""

import importlib.util
import json
import os
import shlex
import socket
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from apo.options import Options, check_model_kwargs
from apo.refusals import (
    READ_IN_SHARED_LEARN,
    STUDY_LOSSES,
    refuse_critique_settings,
    refuse_settings,
    refuse_shared_learn_settings,
    refuse_sliding_config,
    refuse_unread_options,
)
from data import checkpoints
from data.errors import UserError
from data.files import home
from data.images import FILM_KEYS, film_settings
from data.records import did_you_mean
from scripts.ranges import check_values
from scripts.settings import SCRIPTS, Command, Value, as_bool, as_count, as_list, merge, model_kwargs, read_config

ROOT = Path(__file__).resolve().parent.parent
STAGES = {"sft": "learn", "apo": "critique"}
DEFAULT_CONFIGS = {"learn": "configs/sft_qwen2_5_vl_7b.yaml", "critique": "configs/apo_qwen2_5_vl_7b.yaml"}
PHANTOM_CONFIGS = {"learn": "configs/sft_phantom.yaml", "critique": "configs/apo_phantom.yaml"}
FLASH = ("flash_attn", "flash_attention_2")
# What transformers 5.19 takes beside kernels of the hub, which are OWNER/NAME.
ATTENTION = (*FLASH, "flash_attention_3", "flash_attention_4", "flex_attention", "sdpa", "eager")
# The published setting: two GPUs on one machine.
PUBLISHED_RANKS = 2
# The families whose templates apo/template.py can encode a study with.
MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
RESUME_LAST = "last"  # resume_from_checkpoint: the newest whole checkpoint of output_dir, if there is one
# Paths in which "~" is written out at once: a shell leaves that of --name=~/x as it is, and so does YAML.
PATHS = (
    *("model", "ref_model", "adapters", "ref_adapters", "dataset", "val_dataset", "output_dir", "image_root"),
    "resume_from_checkpoint",
)
WORLD_VARIABLES = ("NPROC_PER_NODE", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass
class Plan:
    """One resolved run: the words after `swift`, the variables added to the environment, and what to tell the user."""

    stage: str
    config: Path
    settings: dict[str, Value]
    argv: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    datasets: list[Path] = field(default_factory=list)
    image_root: Path | None = None  # what image paths of the datasets are relative to, where it was given

    @property
    def groups(self) -> bool:
        """Whether a row is a study with all its responses; rows made elsewhere may be such in Learn, too."""
        if self.stage == "critique":
            return str(self.settings.get("loss_type")) in STUDY_LOSSES
        return as_bool(self.settings, "share_prefix")

    @property
    def output_dir(self) -> Path:
        return Path(str(self.settings["output_dir"]))


def visible_gpus() -> int:
    """GPUs that torch sees, CUDA_VISIBLE_DEVICES taken into account. Imports torch, so only GPU settings ask."""
    import torch

    return torch.cuda.device_count()


def resolve(stage: str, command: Command) -> Plan:
    """Settings, world and fixed flags of a run, without its data: see `add_data`. Raises UserError."""
    config = command.config or ROOT / DEFAULT_CONFIGS[stage]
    written = read_config(stage, config)
    settings = merge(written, command.flags, str(config))
    check_values(stage, settings, command.flags, config)
    for name in ("model", "dataset", "output_dir"):
        if not settings.get(name):
            raise UserError(f"{config}: no {name}; write it there or pass --{name}")
    plan = Plan(stage, config, settings)
    _homes(settings)
    if "model_kwargs" in written and "model_kwargs" in command.flags:
        plan.notes.append(f"--model_kwargs replaces the whole of {config.name}'s: {written['model_kwargs']}")
    _resume_last(plan)
    ranks = _world(plan, command.dry_run)
    _batch(plan, ranks)
    _film_variables(plan)
    _fixed_flags(plan)
    _attention(plan)
    _precision(plan)
    return plan


def _homes(settings: dict[str, Value]) -> None:
    for name in PATHS:
        words = as_list(settings.get(name))
        if any(word.startswith("~") for word in words):
            found = [home(word) if word.startswith("~") else word for word in words]
            settings[name] = found if isinstance(settings[name], list) else found[0]


def _resume_last(plan: Plan) -> None:
    """Turn `resume_from_checkpoint last` into the newest whole checkpoint of output_dir, or into a fresh start.

    So one command both begins a run and goes on with it: for queues that stop and requeue jobs.
    """
    if plan.settings.get("resume_from_checkpoint") != RESUME_LAST:
        return
    newest = checkpoints.latest_whole(plan.output_dir)
    if newest:
        plan.settings["resume_from_checkpoint"] = str(newest)
        plan.notes.append(f"goes on from {newest.name}")
    else:
        del plan.settings["resume_from_checkpoint"]
        plan.notes.append("no checkpoint yet: begins at step 0")


def _film_variables(plan: Plan) -> None:
    """Move film sizes of the environment (MAX_PIXELS, ...) into `model_kwargs`: so the checkpoint's args.json has them,
    and it is asked about films of the size that it was trained on."""
    given = model_kwargs(plan.settings)
    named = {key.lower() for key in given}
    found = {key: os.environ[key.upper()] for key in FILM_KEYS if os.environ.get(key.upper()) and key not in named}
    try:
        film_settings({key.upper(): value for key, value in found.items()})
    except ValueError as error:
        raise UserError(f"environment: {error}; mend it or unset it") from None
    if found:
        plan.settings["model_kwargs"] = json.dumps(given | found)
        told = ", ".join(f"{key.upper()}={value}" for key, value in found.items())
        plan.notes.append(f"of the environment: {told}; written into model_kwargs, which the checkpoint keeps")


def _world(plan: Plan, dry_run: bool) -> int:
    """Processes in all; sets the variables that torchrun reads, from the environment or by default."""
    given = {name: os.environ[name] for name in WORLD_VARIABLES if os.environ.get(name)}
    for name in ("NPROC_PER_NODE", "NNODES"):
        as_count(given, name, 1)
    nodes = int(given.get("NNODES", 1))
    if nodes > 1:
        missing = [name for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in given]
        if missing:
            raise UserError(f"NNODES={nodes} needs {', '.join(missing)} in the environment of every node")
    rank = given.get("NODE_RANK", "0")
    if not (rank.isdecimal() and int(rank) < nodes):
        # One node of several whose NNODES was forgotten would wait for a master that never comes.
        allowed = f"must be a whole number from 0 to {nodes - 1}" if nodes > 1 else "must be 0, or NNODES be set, too"
        raise UserError(f"NODE_RANK={rank}: with NNODES={nodes} it {allowed}")
    if as_bool(plan.settings, "use_cpu"):
        per_node = int(given.get("NPROC_PER_NODE", 1))
        # Without this a machine with GPUs loads the model onto one of them and trains on the CPU.
        plan.environment["CUDA_VISIBLE_DEVICES"] = ""
        if per_node * nodes > 1:
            plan.settings.setdefault("ddp_backend", "gloo")
    else:
        per_node = _gpu_ranks(plan, given, dry_run)
    # DeepSpeed wants torchrun's variables for a single process, too.
    if per_node * nodes > 1 or plan.settings.get("deepspeed") or given.keys() & {"NPROC_PER_NODE", "NNODES"}:
        plan.environment |= given | {"NPROC_PER_NODE": str(per_node)}
        if nodes == 1 and "MASTER_PORT" not in given and not dry_run:
            plan.environment["MASTER_PORT"] = str(free_port())
    return per_node * nodes


def _gpu_ranks(plan: Plan, given: dict[str, str], dry_run: bool) -> int:
    gpus = visible_gpus()
    if not gpus:
        if dry_run:
            per_node = int(given.get("NPROC_PER_NODE", PUBLISHED_RANKS))
            plan.notes.append(f"no GPU here; shown for {per_node} a node")
            return per_node
        raise UserError(
            f"{plan.config}: trains on a GPU and none is visible; on a CPU run: "
            f"bash {SCRIPTS[plan.stage]} {PHANTOM_CONFIGS[plan.stage]}"
        )
    per_node = int(given.get("NPROC_PER_NODE", min(gpus, PUBLISHED_RANKS)))
    if per_node > gpus:
        raise UserError(f"NPROC_PER_NODE={per_node}, but {gpus} GPU(s) visible; set NPROC_PER_NODE={gpus}")
    if per_node < gpus and "NPROC_PER_NODE" not in given:
        plan.notes.append(f"{gpus} GPUs visible, {per_node} used as published; NPROC_PER_NODE={gpus} uses all")
    return per_node


def _batch(plan: Plan, ranks: int) -> None:
    if "effective_batch_size" not in plan.settings:
        return
    wanted = as_count(plan.settings, "effective_batch_size", 1)
    micro = as_count(plan.settings, "per_device_train_batch_size", 1) * ranks
    if wanted % micro:
        fits = [size for size in (wanted // micro * micro, -(-wanted // micro) * micro) if size]
        raise UserError(
            f"effective_batch_size {wanted} is no multiple of per_device_train_batch_size x processes "
            f"({micro // ranks} x {ranks} = {micro}); the nearest that fit: {', '.join(map(str, fits))}"
        )
    del plan.settings["effective_batch_size"]
    plan.settings["gradient_accumulation_steps"] = str(wanted // micro)
    plan.notes.append(f"effective batch {wanted} = {micro // ranks} x {ranks} process(es) x {wanted // micro} steps")


def _attention(plan: Plan) -> None:
    chosen = str(plan.settings.get("attn_impl", "sdpa"))
    if chosen not in ATTENTION and "/" not in chosen:
        raise UserError(f"attn_impl {chosen}: {did_you_mean(chosen, ATTENTION)}")
    if chosen not in FLASH or importlib.util.find_spec("flash_attn"):
        return
    for name in ("padding_free", "packing"):
        if as_bool(plan.settings, name):
            raise UserError(f"{name} needs flash-attn, which is not installed; run: bash scripts/setup.sh --gpu")
    plan.settings["attn_impl"] = "sdpa"
    plan.notes.append("flash-attn is not installed: attention falls back to sdpa (bash scripts/setup.sh --gpu adds it)")


def _precision(plan: Plan) -> None:
    """Say what float32 becomes on a GPU; nobody would guess it from the flag."""
    settings = plan.settings
    if settings.get("torch_dtype") != "float32" or as_bool(settings, "use_cpu"):
        return
    if "fp16" not in settings:
        plan.notes.append(
            "torch_dtype float32 on a GPU: ms-swift computes in float16 over float32 weights; "
            "--fp16 false computes in float32, and with --bf16 true in bfloat16"
        )


def _fixed_flags(plan: Plan) -> None:
    """What every run of this project needs, unless the user says otherwise."""
    settings = plan.settings
    if as_bool(settings, "add_version"):
        raise UserError("add_version true: the output folder must be the one that is named; leave it false")
    # By default ms-swift replaces a row that it cannot encode by a random other one; with `strict` it stops.
    # "delete" is its name for not truncating: together with `strict` a row over max_length is an error.
    defaults = {"add_version": "false", "strict": "true", "truncation_strategy": "delete"}
    # Its cache of prepared datasets does not notice every change of a rows file.
    defaults |= {"load_from_cache_file": "false"}
    if plan.stage == "critique":
        defaults |= {"rlhf_type": "dpo", "loss_type": "plackett_luce"}
        if settings.get("adapters") and not settings.get("ref_adapters"):
            # Otherwise the reference would be the base model and not the stage-one model.
            defaults["ref_adapters"] = settings["adapters"]
            plan.notes.append("reference = the stage-one adapter (--ref_adapters set to --adapters)")
    for name, value in defaults.items():
        settings.setdefault(name, value)
    options = apo_options(settings)
    if plan.groups:
        _refuse(refuse_settings, settings)
        if plan.stage == "critique":
            _refuse(partial(refuse_critique_settings, reference_free=options.reference_free), settings)
        else:
            _refuse(refuse_shared_learn_settings, settings)
            refuse_options(plan, READ_IN_SHARED_LEARN)
    elif plan.stage == "learn":
        refuse_options(plan)
    plugin = str(ROOT / "apo" / "plugin.py")
    # An absolute path: ms-swift stores it in the checkpoint and loads it again from any folder.
    settings["external_plugins"] = [plugin, *(p for p in as_list(settings.get("external_plugins")) if p != plugin)]
    if as_bool(settings, "save_only_model"):
        plan.notes.append("save_only_model true: without optimizer state an interrupted run cannot be gone on with")
    if as_bool(settings, "strict", True) is False:
        plan.notes.append("strict false: ms-swift replaces rows that it cannot encode by random others")


def refuse_options(plan: Plan, read: Container[str] = ()) -> None:
    """Refuse options of ours that a run does not read: rows one by one and a stock loss read none."""
    try:
        refuse_unread_options(apo_options(plan.settings), read)
    except ValueError as error:
        raise UserError(str(error)) from None


def apo_options(settings: dict[str, Value]) -> Options:
    """The `apo_*` options in `model_kwargs`, checked."""
    try:
        return check_model_kwargs(model_kwargs(settings))
    except ValueError as error:
        raise UserError(f"model_kwargs: {error}") from None


def _refuse(check: Callable[[Mapping], None], given: Mapping, where: str = "") -> None:
    """`check(given)`, its ValueError as a UserError."""
    try:
        check(given)
    except ValueError as error:
        raise UserError(f"{where}{error}") from None


def like_a_hub_name(name: str) -> bool:
    """Whether a model or dataset that is not on disk may be OWNER/NAME on a hub: no path, and no folder OWNER here."""
    path = Path(name)
    local = name.startswith((".", "/")) or path.suffix in (".jsonl", ".json", ".csv") or path.parent.exists()
    return name.count("/") == 1 and not local


def check_model(plan: Plan, dry_run: bool) -> None:
    """Refuse a path that is no full checkpoint; tell ms-swift what a local one is. A hub name passes."""
    settings, model = plan.settings, str(plan.settings["model"])
    path = Path(model)
    if not path.exists():
        if dry_run:
            return
        if not like_a_hub_name(model):
            before = "" if plan.stage == "learn" else "; train it first: bash SFT-Qwen2.5.sh"
            raise UserError(f"model {model}: no such folder, and no hub name like Qwen/Qwen2.5-VL-7B-Instruct{before}")
        return
    info = checkpoints.describe(path)
    if info["kind"] == "adapter":
        raise UserError(
            f"model {model}: is a LoRA adapter, not a model; merge it first "
            f"(swift export --adapters {shlex.quote(model)} --merge_lora true) and pass the merged folder, "
            f"or go on training the adapter: --model {info['model']} --adapters {shlex.quote(model)}"
        )
    if info["model_type"] not in MODEL_TYPES:
        found = f"model_type {info['model_type']}" if info["model_type"] else "its config.json names no model_type"
        raise UserError(f"model {model}: {found}: this project trains {', '.join(MODEL_TYPES)}; pass such a model")
    for name in ("model_type", "template"):
        other = settings.get(name)
        if info[name] and other in MODEL_TYPES and other != info[name]:
            raise UserError(
                f"{name} {other}: the model {model} is of {info['model_type']}; pass --model_type {info['model_type']} "
                f"--template {info['template']}, or another model"
            )
    if plan.groups and apo_options(settings).layout != "rows":
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        _refuse(refuse_sliding_config, config, f"model {model}: ")
    settings["model"] = str(path.resolve())
    # ms-swift cannot tell Qwen2.5-VL's template from the look-alikes by a local folder's name, and its check of the
    # model hub for a newer version only waits for a network.
    for name, value in (("model_type", info["model_type"]), ("template", info["template"]), ("check_model", "false")):
        if value:
            settings.setdefault(name, value)


def resume_weights(plan: Plan) -> None:
    """Full fine-tuning goes on from the checkpoint's weights: make the checkpoint the model that is loaded.

    transformers 5.19 saves Qwen2.5-VL under its released parameter names and, on resuming, looks for its own ones: it
    warns of missing keys, restores the optimiser and trains on with the weights of `model`. The reference of a resumed
    Critique stays the stage-one model.
    """
    settings = plan.settings
    checkpoint = settings.get("resume_from_checkpoint")
    if not checkpoint or settings.get("tuner_type") != "full":
        return
    if plan.stage == "critique":
        settings.setdefault("ref_model", settings["model"])
    settings["model"] = str(Path(str(checkpoint)).absolute())
    plan.notes.append("weights are loaded from the checkpoint as the model (ms-swift's resuming alone would not)")


def check_adapters(plan: Plan) -> None:
    """Refuse `adapters` or `ref_adapters` that are local paths and no adapter folder."""
    for name in ("adapters", "ref_adapters"):
        for adapter in as_list(plan.settings.get(name)):
            if checkpoints.describe(Path(adapter))["kind"] != "adapter":
                raise UserError(f"{name} {adapter}: is a full model, not an adapter; pass it as --model")


def check_resume(plan: Plan) -> None:
    """Refuse a `resume_from_checkpoint` that cannot be resumed."""
    if not plan.settings.get("resume_from_checkpoint"):
        return
    resumed = Path(str(plan.settings["resume_from_checkpoint"]))
    if not resumed.exists():
        raise UserError(
            f"resume_from_checkpoint {resumed}: no such folder; give a checkpoint-N folder, or {RESUME_LAST} for the "
            "newest of output_dir"
        )
    problem = checkpoints.cut_off(resumed) if resumed.is_dir() else None
    if problem:
        whole = checkpoints.latest_whole(resumed.parent)
        raise UserError(f"resume_from_checkpoint {problem}; give {whole or 'a checkpoint-N folder that is whole'}")
    checkpoints.describe(resumed)
    if resumed.is_dir() and not as_bool(plan.settings, "resume_only_model") and not checkpoints.has_optimizer(resumed):
        raise UserError(
            f"resume_from_checkpoint {resumed}: holds no state of the optimizer (saved with save_only_model): learning "
            "rate and moments would silently begin anew. Go on from another, or accept it with --resume_only_model true"
        )


def refuse_used_folder(plan: Plan) -> None:
    """Refuse to mix a new run's checkpoints with those of an earlier one."""
    newest = checkpoints.latest_whole(plan.output_dir)
    resumed = plan.settings.get("resume_from_checkpoint")
    if newest and not (resumed and Path(str(resumed)).resolve().parent == plan.output_dir.resolve()):
        raise UserError(
            f"output_dir {plan.output_dir}: holds {newest.name} of an earlier run; go on with it "
            f"(--resume_from_checkpoint {RESUME_LAST}), choose another --output_dir, or move it away"
        )


def free_port() -> int:
    """A port that nobody on this machine listens on: two runs must not meet on torchrun's default port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
