"""Tables and figure of `apo.bench` results."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.errors import UserError
from data.files import atomic_open

RATIO_LABELS = {
    "stock_pairs": "time: stock pairs / ours",
    "stock_pairs_cached": "time: stock pairs / ours with cached reference",
    "plain_rows": "time: plain rows / ours",
    "plain_rows_cached": "time: plain rows / ours with cached reference",
    "shared_mask": "time: shared with mask / ours",
    "learn_rows": "time: learn, separate rows / ours",
}
MEMORY_LABELS = {
    "memory_stock_pairs": "peak memory: stock pairs / ours",
    "memory_step_stock_pairs": "memory of a step: stock pairs / ours",
    "memory_plain_rows": "peak memory: plain rows / ours",
    "memory_step_plain_rows": "memory of a step: plain rows / ours",
    "memory_learn_rows": "peak memory: learn, separate rows / ours",
    "memory_step_learn_rows": "memory of a step: learn, separate rows / ours",
}
VARIED = {
    "prompt_tokens": "film and prompt, tokens",
    "response_tokens": "response, tokens",
    "negatives": "negatives a study (N)",
}


def align(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its columns aligned, the first to the left, all others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |"

    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])


def cases_table(result: dict) -> str:
    head = ["case", "s a step", "min", "max", "peak MB", "of it step MB", "vision", "decoder tokens", "GFLOP", "load"]
    rows = [head]
    for name, case in result["cases"].items():
        batch = "" if case["accumulation"] == 1 else f" ({case['accumulation']} micro-batches)"
        rows.append(
            [
                case["label"] + batch,
                f"{case['median_seconds']:.3f}",
                f"{case['range_seconds'][0]:.3f}",
                f"{case['range_seconds'][1]:.3f}",
                f"{case['peak_mb']:.0f}",
                f"{case['peak_mb'] - case['loaded_mb']:.0f}",
                f"{case['vision_encodes']:g}",
                f"{case['decoder_tokens']}",
                f"{case['flops'] / 1e9:.1f}",
                f"{100 * result['loading'][name]['share_of_step']:.1f} %",
            ]
        )
    return align(rows)


def ratios_table(result: dict) -> str:
    ratios, limits = result["ratios"], result["limits"]
    rows = [["ratio", "measured", "token ratio", "share of it", "FLOP ratio"]]
    for name, label in RATIO_LABELS.items():
        if name in ratios:
            limit = limits.get(name)
            known = ["", ""] if limit is None else [f"{limit:.2f}", f"{100 * ratios[name] / limit:.1f} %"]
            rows.append([label, f"{ratios[name]:.2f}", *known, f"{ratios[f'flops_{name}']:.2f}"])
    rows += [[label, f"{ratios[name]:.2f}", "", "", ""] for name, label in MEMORY_LABELS.items() if name in ratios]
    return align(rows)


def differences_table(result: dict) -> str:
    labels = {name: case["label"] for name, case in result["cases"].items()}
    head = {
        "token_logps": "log-prob of a token",
        "summed_logps_relative": "log-prob of a response, relative",
        "loss": "loss",
        "gradient_relative": "gradient, relative",
    }
    rows = [["largest difference", *head.values()]]
    for name, found in result["difference_by_case"].items():
        rows.append([labels[name], *(f"{found[key]:.1e}" if key in found else "" for key in head)])
    return align(rows)


def released(size: str) -> str:
    return f"Qwen2.5-VL of {size}"


def heading(result: dict) -> str:
    settings, environment = result["settings"], result["environment"]
    shapes = next((case["shapes"] for case in result["cases"].values() if case.get("shapes")), None)
    sizes = f"prompt {settings['prompt_tokens']}, response {settings['response_tokens']} tokens"
    if shapes:
        lengths = [n for _, *responses in shapes for n in responses]
        sizes = f"prompt {shapes[0][0]} tokens, responses {min(lengths)} to {max(lengths)}"
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    busy = " **The machine was busy: do not cite these times.**" if environment["busy_at_start"] else ""
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    # Results from before there was a choice have no such keys.
    size, dtype = settings.get("size", "mid"), settings.get("dtype", "float32")
    student = f"Vocabulary {settings['vocab']:,}, hidden {settings['hidden']}, {settings['layers']} layers"
    if size != "mid":
        student = f"{released(size)} with random weights"
    device = result.get("device", "cpu")
    place = f"{environment['cpus']} CPUs ({environment['machine']})" + (f", {device}" if device != "cpu" else "")
    return (
        f"{student}; {sizes}, N = {settings['negatives']}, {settings['studies']} study a step; median of "
        f"{settings['steps']} steps after {settings['warmup']} for warming up; {threads} on {place}, "
        f"{dtype}; load average at the start "
        f"{environment['load_average_at_start'][0]:.2f}.{busy} {packages}."
    )


def results_text(result: dict) -> str:
    """Settings, table of cases, ratios with their limits, and differences, as Markdown."""
    parts = [heading(result), cases_table(result)]
    if result["ratios"]:
        parts.append(ratios_table(result))
    if result["difference_by_case"]:
        parts.append(differences_table(result))
    return "\n\n".join(parts) + "\n"


def points_over(sweep: dict, name: str) -> list[dict]:
    """Points of a sweep that differ from its base in `name` at most, in its order."""
    base = {key: value for key, value in sweep["base"].items() if key != name}
    points = [p for p in sweep["points"] if {k: v for k, v in p["settings"].items() if k != name} == base]
    return sorted(points, key=lambda point: point["settings"][name])


LINES = {
    "stock_pairs": ("stock pairs / ours", "C3"),
    "plain_rows": ("plain rows / ours", "C0"),
    "learn_rows": ("learn: separate rows / ours", "C2"),
}


class Panel(NamedTuple):
    """One axis: its label, values [n], and of a key of LINES the ratios [n] and, dashed, their limits [n] or None."""

    label: str
    values: list[float]
    lines: dict[str, tuple[list[float], list[float] | None]]


def draw_sweep(sweep: dict, path: Path) -> None:
    """Draw speed-up, and its limit by tokens, over each setting that has two points or more; `path` is .png or .svg."""
    panels = []
    for name, label in VARIED.items():
        points = points_over(sweep, name)
        if len(points) > 1:
            lines = {
                key: ([p["ratios"][key] for p in points], [p["limits"][key] for p in points])
                for key in LINES
                if all(key in point["ratios"] for point in points)
            }
            panels.append(Panel(label, [point["settings"][name] for point in points], lines))
    if not panels:
        raise UserError("the sweep has no setting with two measured values; measure more with --vary")
    base = sweep["base"]
    size = base.get("size", "mid")
    student = f"vocabulary {base['vocab']:,}" if size == "mid" else released(size)
    title = (
        f"Speed-up of a shared row: base {base['prompt_tokens']} + {base['response_tokens']} tokens, "
        f"N = {base['negatives']}, {student}"
    )
    draw_panels(panels, path, title, "time ratio (dashed: token ratio)")


def refuse_figure(path: Path | None) -> None:
    """UserError unless `path`, the --figure of a command, is one that `draw_panels` can write or None."""
    if path and path.suffix not in (".png", ".svg"):
        raise UserError(f"--figure {path}: must end in .png or .svg")


def draw_panels(panels: Sequence[Panel], path: Path, title: str, what: str) -> None:
    """Panels side by side into `path` (.png or .svg); `what` the ratios are of."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), squeeze=False, sharey=True)
    for axis, panel in zip(axes[0], panels, strict=True):
        for key, (ratios, limits) in panel.lines.items():
            label, colour = LINES[key]
            axis.plot(panel.values, ratios, "o-", color=colour, label=label)
            if limits:
                axis.plot(panel.values, limits, "--", color=colour, alpha=0.6)
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_xlabel(panel.label)
        axis.grid(alpha=0.3)
    # Last: a limit that is set ends the scaling of all axes, which share it.
    axes[0][0].set_ylim(bottom=0)
    axes[0][0].set_ylabel(what)
    axes[0][0].legend(frameon=False, fontsize="small")
    figure.suptitle(title, fontsize="medium")
    figure.tight_layout()
    with atomic_open(path) as file:
        # No date in the file: the same numbers give the same bytes.
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        with matplotlib.rc_context({"svg.hashsalt": "apo.bench"}):
            figure.savefig(file, format=path.suffix[1:], dpi=150, metadata=metadata)
    plt.close(figure)
