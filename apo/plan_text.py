"""The text of a plan: aligned tables of at most 100 columns, units in the headings, and what the numbers rest on."""

import argparse
import math
import textwrap

from apo import memory, shapes
from apo.flops import Cost, Setup, Study

COLUMNS = 98
GOAL = 4.0  # times fewer FLOPs than the method's released launchers


def show(plan: dict, model: str, args: argparse.Namespace) -> str:
    """A plan of `apo.plan.make_plan` as text."""
    setup, study = Setup(**plan["setup"]), Study(**plan["study"])
    tuning = "full fine-tuning" if setup.full else f"LoRA rank {setup.rank}"
    head = [
        f"Plan for {model}",
        f"both stages: {tuning}, ZeRO stage {setup.zero}, gradient checkpointing {on_off(setup)}, "
        f"{setup.gpus} GPU(s) of {args.gpu_memory:g} GiB",
        f"a study: {study.prompt:,} prompt tokens, {study.film:,} of them film; {study.trajectories} trajectories of "
        f"{study.response:,} tokens",
        *(f"note: {note}" for note in plan["notes"]),
    ]
    return "\n\n".join(
        [
            "\n".join(map(wrap, head)),
            show_parameters(plan["parameters"], setup),
            show_flops(plan["flops"], setup),
            show_training(plan["flops"], setup, args),
            show_activations(plan["memory"]),
            show_states(plan["memory"], setup),
            *show_refusals(plan["memory"]),
            "\n".join(["Assumptions", *(wrap(f"- {line}") for line in assumptions(setup, args))]),
        ]
    )


def show_parameters(counts: dict, setup: Setup) -> str:
    tied = ", tied: the embedding's own weights" if counts["tied"] else ""
    lines = [
        ("language model with embedding", counts["language"]),
        (f"head{tied}", counts["head"]),
        ("vision tower", counts["vision"]),
        ("aligner (merger)", counts["aligner"]),
        ("total", counts["total"]),
        ("trained", counts["trained"]),
    ]
    targets = ", ".join(f"{n} {kind}" for kind, n in counts["targets"].items())
    lora = (
        f"LoRA targets of all-linear: {sum(counts['targets'].values())} layers, {counts['adapter'] / 1e6:,.1f} million "
        f"parameters at rank {setup.rank}: {targets}"
    )
    return table(["Parameters", "million"], [[name, f"{n / 1e6:,.1f}"] for name, n in lines]) + "\n" + wrap(lora)


def show_flops(found: dict, setup: Setup) -> str:
    what = "studies" if found["whole_studies"] else "trajectories (Learn) or studies (Critique)"
    lines = []
    for name, way in found["ways"].items():
        parts = [way[f"{key}_tflop_a_study"] for key in Cost._fields]
        numbers = [significant(part) for part in (*parts, way["tflop_a_study"], way["pflop_a_step"])]
        lines.append(
            [name, f"{way['decoder_tokens']:,}", str(way["vision_encodes"]), *numbers, f"{way['times_ours']:.2f}"]
        )
    header = ["TFLOP a study", "tokens", "films", *Cost._fields, "all", "a step", "x ours"]
    return "\n".join(
        [
            table([name.replace("adapter", "LoRA").replace("attention", "attn.") for name in header], lines),
            wrap(
                f"tokens: through the decoder in one pass. films: vision encodes in all passes. a step: PFLOP of "
                f"{setup.batch} {what}. x ours: all, against shared of the stage"
            ),
        ]
    )


def show_training(found: dict, setup: Setup, args: argparse.Namespace) -> str:
    work, hours, ratio = found["exaflop"], found["hours"], found["ratio"]
    lines = []
    for name, ours, released, key in (
        ("Learn; released: separate rows", ["learn"], ["released_learn"], "learn"),
        ("Critique; released: pairs", ["critique"], ["released_critique"], "critique"),
        ("together", ["learn", "critique"], ["released_learn", "released_critique"], "together"),
    ):
        cells = [
            cell
            for keys in (ours, released)
            for cell in (significant(sum(work[k] for k in keys)), significant(sum(hours[k] for k in keys)))
        ]
        lines.append([name, *cells, f"{ratio[key]:.2f}"])
    reached = "reached" if ratio["together"] >= GOAL else "NOT reached"
    saved = 100 * (1 - work["critique_cached"] / work["critique"])
    cache = f"{significant(hours['critique_cached'])} hours, {saved:.0f} % fewer: the reference runs in the first only"
    if setup.epochs <= 1:
        cache = "no gain while the first epoch fills it; another run on the same data reads it"
    return "\n".join(
        [
            table(
                [f"Training on {args.studies:,} studies", "ours EFLOP", "hours", "released EFLOP", "hours", "ratio"],
                lines,
            ),
            f"at least {GOAL:g} times fewer FLOPs than released: {reached}, {ratio['together']:.2f}; "
            f"with our Learn as separate rows: {ratio['together_learn_as_rows']:.2f}",
            wrap(f"Critique with a reference cache, {setup.epochs:g} epoch(s): {cache}"),
        ]
    )


def show_activations(found: dict) -> str:
    keys = (*memory.Activations._fields, "peak")
    lines = [
        [name, *(gib(row[f"{key}_gib"]) for key in keys)] for name, row in found["activations_of_one_study"].items()
    ]
    notes = (
        "peak = kept + mask + the largest of layer, head and vision. kept: from forward to backward pass; layer: while "
        "one decoder layer runs backward; head: a chunk; vision: one block; mask: L x L. no GC: without gradient "
        "checkpointing, the others with it. plain rows: all rows of a study at once"
    )
    return table(["GiB of activations, one study", *keys], lines) + "\n" + wrap(notes)


def show_states(found: dict, setup: Setup) -> str:
    lines = []
    ours = f"{'full' if setup.full else 'LoRA'} ZeRO-{setup.zero}"
    for name, row in found["by_zero_stage"].items():
        cells = [gib(row[f"{part}_gib"]) for part in memory.States._fields]
        for stage in ("learn", "critique"):
            n = row[f"studies_{stage}"]
            cells.append("none" if n == 0 else f"{n}+" if n == memory.MOST_STUDIES else str(n))
        lines.append([f"{name} *" if name == ours else name, *cells])
    return "\n".join(
        [
            table(["GiB a GPU", *memory.States._fields, "Learn", "Critique"], lines),
            wrap(
                f"Learn, Critique: most studies a micro-batch in {found['usable_gib']:.1f} usable GiB, shared rows, "
                f"gradient checkpointing {on_off(setup)}. reference: in Critique. * this configuration"
            ),
        ]
    )


def show_refusals(found: dict) -> list[str]:
    return [
        wrap(
            f"{stage.capitalize()} DOES NOT FIT: one study alone needs {row['needed_gib']:,.1f} of "
            f"{found['usable_gib']:.1f} usable GiB. What would help: {'; or '.join(row['remedies'])}"
        )
        for stage, row in found["does_not_fit"].items()
    ]


def assumptions(setup: Setup, args: argparse.Namespace) -> list[str]:
    """What the numbers rest on, one entry each."""
    again = "run forward again, whole, in the backward pass" if setup.checkpointing else "are not computed again"
    vision = "the frozen vision tower runs forward only"
    if not setup.freeze_vit:
        vision = "the vision tower trains (LoRA inside it is not counted)"
    look = "policy and reference share ours" if setup.shares_look else "policy and reference each encode their own"
    states = "float32 master weight and two moments" if setup.element_bytes == 2 else "two float32 moments"
    return [
        "matrix products only, a multiply-add is 2 FLOPs; no norms, softmax, rotary embedding, optimizer",
        "attention: the query-key pairs that are needed, L (L + 1) / 2 of a causal row, the prefix once a response; "
        "under a dense mask L x L; backward = 2 x forward",
        f"decoder layers {again}; gradients of activations"
        + (" and weights" if setup.full else "; frozen weights have none"),
        "head on response tokens only, for all ways; no padding: all responses are equally long",
        f"{vision}; {look}; stock pairs encode the film in every row and pass; one film a study, "
        f"{shapes.PIXELS_A_TOKEN} pixels a token",
        "released launchers: Learn = one row a trajectory, Critique = DPO on a study's N pairs (2 N rows, policy and "
        "reference), same tuning and checkpointing",
        f"hours = FLOPs / ({setup.gpus} x {args.peak_tflops:g} TFLOP/s x {args.utilisation:g}) over {setup.epochs:g} "
        "epoch(s), the same utilisation for all; recomputation counts as work; no evaluation, saving, waiting for data",
        f"{8 * setup.element_bytes}-bit weights and activations; Adam: {states}, 16 bytes a trained parameter in all; "
        "autocast keeps a copy of the input of every LoRA layer",
        f"head {setup.chunk} tokens at a time (apo_chunk_size); attention keeps nothing L x L unless under a mask, but "
        "repeats keys and values for all heads",
        f"lost to CUDA, NCCL and fragmentation: {memory.CONTEXT / memory.GIB:g} GiB and "
        f"{100 * memory.FRAGMENTATION:g} % of a GPU. Measured at three points: a whole process within 2 %, "
        "activations 6 % above the plan without checkpointing, 17 % below it with",
    ]


def table(header: list[str], lines: list[list[str]]) -> str:
    """First column to the left, the others to the right, two blanks between."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True))])
        for first, *cells in [header, *lines]
    )


def wrap(line: str) -> str:
    return textwrap.fill(line, COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def on_off(setup: Setup) -> str:
    return "on" if setup.checkpointing else "off"


def significant(value: float) -> str:
    """Three significant digits without exponent, thousands separated."""
    if value == 0:
        return "0"
    return f"{value:,.{min(6, max(0, 2 - math.floor(math.log10(abs(value)))))}f}"


def gib(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}" if value else "0"
