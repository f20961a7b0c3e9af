"""What a run will cost before it is started: parameters, FLOPs, memory and hours, from shapes alone.

    python -m apo.plan CONFIG.yaml [--gpus 2 --gpu-memory 80]
    python -m apo.plan --model-size 32B --gpus 8

CONFIG.yaml is a training configuration (configs/); tuning, checkpointing, ZeRO stage, film size, epochs and batch come
from it. Without one, the published settings are taken. Nothing is loaded or downloaded.
"""

import argparse
import json
import math
import re
import sys
from pathlib import Path

from apo import flops, memory, options, shapes
from apo.bench_report import LINES, Panel, draw_panels, refuse_figure
from apo.flops import Setup, Study
from apo.plan_text import show
from data.errors import UserError, run_cli
from data.files import home, out_file, refuse_input, write_atomic
from scripts.settings import as_bool, as_count, as_list, model_kwargs, read_config, stage_of

TEXT_TOKENS = 60  # system prompt, question and the marks of the chat template
FILM_TOKENS = 1280  # max_pixels 1,003,520, which rounding to multiples of 28 may pass by 4 %


def number(name: str, kind=int, most: float = math.inf):
    """A parser of positive numbers for argparse; raises UserError with the flag's name."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not 0 < value <= most or value == math.inf:
            what = "a whole number of at least 1" if kind is int else "a positive number"
            raise UserError(f"{name} {text}: must be {what}{'' if most == math.inf else f', at most {most:g}'}")
        return value

    return parse


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m apo.plan", description=__doc__.split("\n")[0])
    config_help = "without one: the published settings, of --model-size"
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG.yaml", help=config_help)
    parser.add_argument("--model-size", help=f"{'|'.join(shapes.RELEASED)}: shapes of a released Qwen2.5-VL")
    for flag, kind, default, most, text in (
        ("--gpus", int, 2, math.inf, "GPUs of the run"),
        ("--gpu-memory", float, 80.0, math.inf, "GiB of one GPU"),
        ("--prompt-tokens", int, None, math.inf, f"tokens of prompt with film (default: film + {TEXT_TOKENS})"),
        ("--response-tokens", int, 256, math.inf, "tokens of one trajectory"),
        ("--negatives", int, 7, math.inf, "trajectories a study"),
        ("--studies", int, 24426, math.inf, "studies in the training set; CXR-MAX has 24,426"),
        ("--utilisation", float, 0.4, 1.0, "share of the peak that is reached, recomputation counted as work"),
        ("--peak-tflops", float, 989.0, math.inf, "TFLOP/s of one GPU; an H100 SXM has 989 in dense bfloat16"),
    ):
        default_text = "" if default is None else f" (default: {default:g})"
        parser.add_argument(flag, type=number(flag, kind, most), default=default, help=text + default_text)
    parser.add_argument("--json", type=out_file, metavar="FILE", help="write every number to FILE, too")
    parser.add_argument(
        "--figure", type=out_file, metavar="FILE", help="draw FLOP ratios over lengths and N (.svg, .png)"
    )
    args = parser.parse_args(argv)
    refuse_figure(args.figure)
    return args


def resolve_model(settings: dict, config: Path | None, size: str | None) -> tuple[object, str]:
    """transformers' configuration and one line that says where it comes from."""
    if size:
        return shapes.released_config(size), f"Qwen2.5-VL-{size.upper()} (--model-size)"
    if not config:
        raise UserError(f"no model: pass a CONFIG.yaml or --model-size {'|'.join(shapes.RELEASED)}")
    name = settings.get("model")
    if not name:
        raise UserError(f"{config}: no model; write it there or pass --model-size {'|'.join(shapes.RELEASED)}")
    folder = Path(home(str(name)))
    if folder.exists():
        return shapes.folder_config(folder), f"{name} (its config.json)"
    named = shapes.size_in_name(str(name))
    if named:
        return shapes.released_config(named), f"Qwen2.5-VL-{named}, read from the name {name}, which is not on disk"
    raise UserError(
        f"{config}: model {name} is not on disk and names no released size; pass --model-size "
        f"{'|'.join(shapes.RELEASED)}"
    )


def read_training(path: Path) -> dict:
    """The settings of a configuration of Learn or Critique. Raises UserError as read_config."""
    return read_config(stage_of(path), path)


def zero_stage(settings: dict) -> int:
    """DeepSpeed stage of a configuration: 0 without DeepSpeed. Raises UserError where it cannot be told."""
    value = str(settings.get("deepspeed") or "zero0")
    found = re.fullmatch(r"zero([0-3])", value)
    if found:
        return int(found[1])
    try:
        text = value if value.startswith("{") else Path(value).read_text(encoding="utf-8")
        zero = json.loads(text)["zero_optimization"]
        offloads = [key for key in zero if key.startswith("offload") and zero[key].get("device", "none") != "none"]
        if zero["stage"] in (0, 1, 2, 3) and not offloads:
            return zero["stage"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(
        f"deepspeed {value}: the planner knows zero0 to zero3, and JSON with such a stage and no offloading"
    )


def resolve_setup(settings: dict, gpus: int) -> tuple[Setup, list[str]]:
    """The settings of a configuration that count, ms-swift's defaults where it is silent; and what to tell the user."""
    if not settings:
        return Setup(gpus=gpus, zero=2 if gpus > 1 else 0), []
    tuner = str(settings.get("tuner_type", "lora"))
    if tuner not in ("lora", "full"):
        raise UserError(f"tuner_type {tuner}: the planner knows lora and full")
    if as_bool(settings, "freeze_llm"):
        raise UserError("freeze_llm true: the planner counts runs that train the language model; set it to false")
    notes = []
    targets = as_list(settings.get("target_modules")) or ["all-linear"]
    if tuner == "lora" and targets != ["all-linear"]:
        notes.append(f"target_modules {' '.join(targets)}: counted as all-linear")
    try:
        chosen = options.check_model_kwargs(model_kwargs(settings))
    except ValueError as error:
        raise UserError(f"model_kwargs: {error}") from None
    try:
        epochs = float(str(settings.get("num_train_epochs", 3)))
    except ValueError:
        epochs = math.nan
    if not 0 < epochs < math.inf:
        raise UserError(f"num_train_epochs {settings['num_train_epochs']}: must be a positive number")
    micro = as_count(settings, "per_device_train_batch_size", 1) * gpus
    steps = as_count(settings, "gradient_accumulation_steps", math.ceil(16 / micro))
    setup = Setup(
        full=tuner == "full",
        rank=as_count(settings, "lora_rank", 8),
        zero=zero_stage(settings),
        gpus=gpus,
        checkpointing=as_bool(settings, "gradient_checkpointing", True),
        freeze_vit=as_bool(settings, "freeze_vit", True),
        freeze_aligner=as_bool(settings, "freeze_aligner", True),
        one_look=chosen.one_look,
        chunk=chosen.chunk_size,
        epochs=epochs,
        batch=as_count(settings, "effective_batch_size", micro * steps),
        element_bytes=4 if settings.get("torch_dtype") == "float32" else 2,
    )
    return setup, notes


def resolve_study(settings: dict, args: argparse.Namespace) -> Study:
    film = FILM_TOKENS
    if "max_pixels" in settings:
        film = as_count(settings, "max_pixels", 1) // shapes.PIXELS_A_TOKEN
    if args.prompt_tokens:
        film = min(args.prompt_tokens - TEXT_TOKENS, film)
    if film < 4:
        raise UserError(
            f"--prompt-tokens {args.prompt_tokens}: must leave room for a film (4 tokens) beside {TEXT_TOKENS} of text"
            if args.prompt_tokens
            else "max_pixels: under 4 film tokens (3,136 pixels), the least that the image processor makes"
        )
    return Study(args.prompt_tokens or film + TEXT_TOKENS, film, args.response_tokens, args.negatives)


def make_plan(config, settings: dict, args: argparse.Namespace) -> dict:
    """Every number of the plan, units in the keys: what `--json` writes and `show` prints."""
    setup, notes = resolve_setup(settings, args.gpus)
    study = resolve_study(settings, args)
    whole_studies = as_bool(settings, "share_prefix")
    if not re.fullmatch(r"-\d+|0", str(settings.get("max_steps", -1))):  # those mean none
        learns = args.config and stage_of(args.config) == "learn" and not whole_studies
        rows = args.studies * (study.trajectories if learns else 1)
        setup = setup._replace(epochs=as_count(settings, "max_steps", 1) * setup.batch / rows)
        notes.append(f"max_steps {settings['max_steps']}: {setup.epochs:.2g} epochs of {rows:,} rows")
    shape = shapes.shape_of(config)
    frozen = {"freeze_vit": setup.freeze_vit, "freeze_aligner": setup.freeze_aligner}
    counts = shapes.count(shapes.build(config), setup.rank, **frozen)
    longest = study.prompt + study.response
    if "max_length" in settings and longest > as_count(settings, "max_length", 1):
        notes.append(f"prompt and response take {longest:,} tokens, over max_length {settings['max_length']}")
    return {
        "setup": setup._asdict(),
        "study": study._asdict(),
        "parameters": {**counts._asdict(), "total": counts.total, "trained": memory.trainable(counts, setup)},
        "flops": plan_flops(shape, study, setup, args, whole_studies=whole_studies),
        "memory": plan_memory(shape, counts, study, setup, args.gpu_memory),
        "notes": notes,
    }


# What the figure varies: field of Study -> (label, values)
OVER = {
    "prompt": ("tokens of prompt with film", (160, 300, 600, 900, 1340, 2000)),
    "response": ("tokens of a response", (32, 64, 128, 256, 512, 1024)),
    "trajectories": ("N, trajectories a study", (1, 2, 3, 5, 7, 9, 12)),
}


def figure_panels(shape, study: Study, setup: Setup) -> list[Panel]:
    """FLOP ratios of the other layouts to ours around `study`, one setting varied at a time."""
    panels = []
    for name, (label, values) in OVER.items():
        ratios: dict[str, list[float]] = {key: [] for key in LINES}
        for value in values:
            one = study._replace(**{name: value})
            one = one._replace(film=min(one.film, one.prompt - TEXT_TOKENS))
            critique = {way.name: way.total for way in flops.critique_ways(shape, one, setup)}
            learn = {way.name: way.total for way in flops.learn_ways(shape, one, setup)}
            ratios["stock_pairs"].append(critique["stock pairs"] / critique["shared"])
            ratios["plain_rows"].append(critique["plain rows"] / critique["shared"])
            ratios["learn_rows"].append(learn["separate rows"] / learn["shared"])
        panels.append(Panel(label, list(values), {key: (found, None) for key, found in ratios.items()}))
    return panels


def draw_figure(path: Path, config, model: str, plan: dict) -> None:
    setup, study = Setup(**plan["setup"]), Study(**plan["study"])
    title = (
        f"FLOPs of a study against ours, {model.split()[0].strip(',')}: prompt with film {study.prompt}, "
        f"responses {study.response} tokens, N = {study.trajectories}"
    )
    panels = figure_panels(shapes.shape_of(config), study, setup)
    draw_panels(panels, path, title, "FLOP ratio (by formula)")


def plan_flops(shape, study: Study, setup: Setup, args: argparse.Namespace, *, whole_studies: bool) -> dict:
    """FLOPs, hours and ratios of the ways to train; whole_studies: a row of Learn, too, is a study."""
    learn, critique = flops.learn_ways(shape, study, setup), flops.critique_ways(shape, study, setup)
    ways = {}
    for stage, found in (("learn", learn), ("critique", [critique[0], flops.cached(critique[0]), *critique[1:]])):
        # Learn's batch counts rows, one a trajectory if they do not share the film; Critique's counts studies.
        a_step = setup.batch / (study.trajectories if stage == "learn" and not whole_studies else 1)
        for way in found:
            parts = {
                key: (a + b) / 1e12 for key, a, b in zip(flops.Cost._fields, way.policy, way.reference, strict=True)
            }
            ways[f"{stage}: {way.name}"] = {
                "decoder_tokens": way.layout.tokens,
                "vision_encodes": way.films,
                **{f"{key}_tflop_a_study": value for key, value in parts.items()},
                "tflop_a_study": way.total / 1e12,
                "pflop_a_step": way.total * a_step / 1e15,
                "times_ours": way.total / found[0].total,
            }
    stages = {
        "learn": flops.training(learn[0], args.studies, setup.epochs),
        "critique": flops.training(critique[0], args.studies, setup.epochs),
        "critique_cached": flops.training(critique[0], args.studies, setup.epochs, cache=True),
        "released_learn": flops.training(learn[-1], args.studies, setup.epochs),
        "released_critique": flops.training(critique[-1], args.studies, setup.epochs),
    }
    released = stages["released_learn"] + stages["released_critique"]
    return {
        "whole_studies": whole_studies,
        "ways": ways,
        "exaflop": {name: value / 1e18 for name, value in stages.items()},
        "hours": {name: flops.hours(v, setup, args.peak_tflops, args.utilisation) for name, v in stages.items()},
        "ratio": {
            "learn": stages["released_learn"] / stages["learn"],
            "critique": stages["released_critique"] / stages["critique"],
            "together": released / (stages["learn"] + stages["critique"]),
            "together_cached": released / (stages["learn"] + stages["critique_cached"]),
            "together_learn_as_rows": released / (stages["released_learn"] + stages["critique"]),
        },
    }


def plan_memory(shape, counts, study: Study, setup: Setup, gpu_memory: float) -> dict:
    responses = {"learn": study.trajectories, "critique": study.trajectories + 1}
    activations = {}
    for stage, n in responses.items():
        packed, plain, unchecked = flops.shared(study, n), flops.rows(study, n), setup._replace(checkpointing=False)
        for name, layout, this, dense in (
            ("shared", packed, setup._replace(checkpointing=True), False),
            ("shared, no GC", packed, unchecked, False),
            ("shared, mask", packed, setup._replace(checkpointing=True), True),
            ("shared, mask, no GC", packed, unchecked, True),
            ("plain rows", plain, setup._replace(checkpointing=True), False),
        ):
            parts = memory.activations(shape, layout, study, this, dense=dense)
            activations[f"{stage}: {name}"] = {**in_gib(parts), "peak_gib": parts.peak / memory.GIB}

    fits = {}
    for full in (False, True):
        for zero in range(4):
            this = setup._replace(full=full, zero=zero)
            row = in_gib(memory.states(counts, this, critique=True))
            for stage, n in responses.items():
                layout, kind = flops.shared(study, n), {"critique": stage == "critique"}
                row[f"studies_{stage}"] = memory.largest(counts, shape, layout, study, this, gpu_memory, **kind)
            fits[f"{'full' if full else 'LoRA'} ZeRO-{zero}"] = row

    refused = {}
    for stage, n in responses.items():

        def lay_out(study: Study, n: int = n):
            return flops.shared(study, n)

        kind = {"critique": stage == "critique"}
        if not memory.largest(counts, shape, lay_out(study), study, setup, gpu_memory, **kind):
            refused[stage] = {
                "needed_gib": memory.needed(counts, shape, lay_out(study), study, setup, 1, **kind) / memory.GIB,
                "remedies": memory.remedies(counts, shape, lay_out, study, setup, gpu_memory, **kind),
            }
    return {
        "usable_gib": memory.usable(gpu_memory) / memory.GIB,
        "activations_of_one_study": activations,
        "by_zero_stage": fits,
        "does_not_fit": refused,
    }


def in_gib(parts) -> dict[str, float]:
    """A NamedTuple of bytes as GiB, with the unit in its keys."""
    return {f"{key}_gib": value / memory.GIB for key, value in parts._asdict().items()}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(sys.argv[1:] if argv is None else argv)
    settings = read_training(args.config) if args.config else {}
    if args.json:
        read = (args.config, settings.get("deepspeed"), Path(str(settings.get("model")), "config.json"))
        refuse_input(args.json, *map(str, filter(None, read)), option="--json")
    config, model = resolve_model(settings, args.config, args.model_size)
    plan = make_plan(config, settings, args)
    print(show(plan, model, args))
    if args.json:
        write_atomic(args.json, json.dumps({"model": model, **plan}, indent=2) + "\n")
        print(f"\nwritten: {args.json}")
    if args.figure:
        draw_figure(args.figure, config, model, plan)
        print(f"\nwritten: {args.figure}")


if __name__ == "__main__":
    run_cli(main)
