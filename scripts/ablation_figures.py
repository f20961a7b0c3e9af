"""Figures of the ablation ledger as SVG: accuracy by row, log-probabilities over training, sweeps."""

import io
from collections.abc import Sequence

import numpy as np

from eval.items import MAJORITY
from scripts.ablation_rows import GROUPS, Row
from scripts.ablation_tables import REFERENCES, TEACHER, Block, baselines, by_seed, compared_alone, dig, mean_of

CURVES = (
    *("pl", "pl_nll", "dpo_seven_pairs", "dpo_seven_pairs_nll", "pl_length"),
    *("pl_consensus_style", "pl_content_reference", "pl_content_alone"),
)
# group -> (axis, log scale, where pl_nll stands on it)
SWEEPS = {
    "beta": ("beta", True, ("training", "beta")),
    "learning rate": ("learning rate", True, ("training", "learning_rate")),
    "N": ("negatives a study", False, None),
}
TEACHERS = 7.0
EVERY_WORLD = ""  # in the place of a world, for a figure of all of them


def figures(blocks: Sequence[Block], rows: dict[str, Row]) -> dict[tuple[str, str], str]:
    """(world or EVERY_WORLD, file name) -> SVG text, for what the ledger has numbers of."""
    found = {}
    for block in blocks:
        for kind, draw in (("accuracy", accuracy), ("displacement", displacement), ("sweeps", sweeps)):
            svg = draw(block, rows)
            if svg:
                found[block.world, f"phantom_{block.world}_{kind}.svg"] = svg
    svg = consensus([block for block in blocks if block.compared])
    return found | ({(EVERY_WORLD, "phantom_consensus.svg"): svg} if svg else {})


def new_figure(width: float, height: float, columns: int = 1):
    """(figure, axes list), set so that the same numbers give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {"svg.hashsalt": "ablation", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, axes = pyplot.subplots(1, columns, figsize=(width, height), squeeze=False)
    return figure, list(axes[0])


def as_svg(figure) -> str:
    from matplotlib import pyplot

    out = io.StringIO()
    figure.tight_layout()
    figure.savefig(out, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return out.getvalue()


def consensus(blocks: Sequence[Block]) -> str | None:
    """Accuracy of each consensus by world, between the majority class and the best teacher; None without a block."""
    if not blocks:
        return None
    marks = {TEACHER: ("C3", "|"), MAJORITY: ("0.5", "|")}
    dots = zip(compared_alone(blocks), ("C0", "C1", "C2", "C4", "C5", "C6", "C7"), strict=False)
    marks |= {name: (colour, "o") for name, colour in dots}
    inches = 1.3 + 0.45 * len(blocks)
    figure, (axis,) = new_figure(7, inches)
    labelled = set()
    for height, block in enumerate(reversed(blocks)):
        fixed = baselines(block)
        for name, (colour, mark) in marks.items():
            mean = mean_of(fixed.get(name, {}))
            if mean is None:
                continue
            if mean.low is not None and mean.high is not None:
                axis.plot([100 * mean.low, 100 * mean.high], [height, height], color=colour, lw=1, zorder=1)
            label = None if name in labelled else name
            # A ring for one that was told labels: where they turn nothing round, it lies on the one that was not.
            look = {"ms": 8, "mfc": "none"} if "labelled" in name else {"ms": 5}
            look = {"ms": 14, "mew": 2} if mark == "|" else look
            axis.plot(100 * mean.value, height, mark, color=colour, label=label, **look)
            labelled.add(name)
    axis.set_yticks(range(len(blocks)), [block.world for block in reversed(blocks)])
    axis.set_ylim(-0.5, len(blocks) - 0.5)
    axis.set_xlabel("accuracy over the five findings, %; mean over seeds, 95 % t interval", fontsize=8)
    axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.7 / inches), ncols=3)
    return as_svg(figure)


def accuracy(block: Block, rows: dict[str, Row]) -> str | None:
    """Mean accuracy with its interval, a dot a row; the best teacher as a line."""
    names = sorted(block.lines, key=lambda name: (GROUPS.index(rows[name].group), name))[::-1]
    means = [mean_of(by_seed(block.lines[name], "mean_accuracy")) for name in names]
    if not any(means):
        return None
    figure, (axis,) = new_figure(7, 0.9 + 0.24 * len(names))
    for height, mean in enumerate(means):
        if mean is None:
            continue
        if mean.low is not None and mean.high is not None:
            axis.plot([100 * mean.low, 100 * mean.high], [height, height], color="0.6", lw=2, zorder=1)
        axis.plot(100 * mean.value, height, "o", color="C0", ms=4, zorder=2)
    teacher = mean_of(baselines(block).get(TEACHER, {}))
    if teacher:
        axis.axvline(100 * teacher.value, color="C3", lw=1, ls="--", label=TEACHER)
        axis.legend(loc="lower left", frameon=False)
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel(
        f"accuracy over the five findings, %, world {block.world}\n"
        "mean over seeds, 95 % t interval; no bar: fewer than three seeds"
    )
    axis.xaxis.label.set_size(8)
    return as_svg(figure)


def displacement(block: Block, rows: dict[str, Row]) -> str | None:
    """Log-probability of the consensus and of the negatives over training, less the first logged one."""
    names = [name for name in CURVES if name in block.lines]
    panels = (("logps/chosen", "consensus"), ("logps/rejected", "negatives"))
    if not any(dig(line["metrics"], "training", "curve") for name in names for line in block.lines[name].values()):
        return None
    figure, axes = new_figure(9.5, 3, 2)
    for axis, (key, label) in zip(axes, panels, strict=True):
        for number, name in enumerate(names):
            curves = [dig(line["metrics"], "training", "curve") or {} for line in block.lines[name].values()]
            drawn = [np.subtract(one[key], one[key][0]) for one in curves if key in one and None not in one[key]]
            shares = [np.array(one["step"]) / one["step"][-1] for one in curves if key in one and None not in one[key]]
            if not drawn:
                continue
            grid = np.linspace(min(share[0] for share in shares), 1, 20)
            mean = np.mean([np.interp(grid, share, curve) for share, curve in zip(shares, drawn, strict=True)], axis=0)
            axis.plot(grid, mean, color=f"C{number}", label=name, lw=1.5)
        axis.axhline(0, color="0.8", lw=0.8, zorder=0)
        axis.set_title(f"{label}: log-probability, nats from the first step", fontsize=9)
        axis.set_xlabel("share of the training")
    axes[-1].legend(
        *axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    return as_svg(figure)


def sweep_points(block: Block, rows: dict[str, Row], group: str) -> list[tuple[float, list[float]]]:
    """(value, accuracies by seed) of a sweep, REFERENCES among them at their value; [] without rows of the sweep."""
    found = [
        (float(rows[name].value), list(by_seed(lines, "mean_accuracy").values()))
        for name, lines in block.lines.items()
        if rows[name].group == group and rows[name].value is not None
    ]
    middle = [line for name in REFERENCES for line in block.lines.get(name, {}).values()]
    if found and middle:
        path = SWEEPS[group][2]
        value = TEACHERS if path is None else dig(middle[0]["resolved"], *path)
        if value is not None:
            # Both trainings: rows of the sweep started from either.
            found.append((float(value), list(by_seed(dict(enumerate(middle)), "mean_accuracy").values())))
    return sorted(found)


def sweeps(block: Block, rows: dict[str, Row]) -> str | None:
    """Accuracy over beta, learning rate and number of negatives: every seed a dot, the means a line; None where nothing
    has three values."""
    points = {group: sweep_points(block, rows, group) for group in SWEEPS}
    points = {group: found for group, found in points.items() if len(found) > 2}
    if not points:
        return None
    figure, axes = new_figure(3 * len(points) + 0.5, 2.8, len(points))
    for axis, (group, found) in zip(axes, points.items(), strict=True):
        label, log, _ = SWEEPS[group]
        for value, accuracies in found:
            axis.plot([value] * len(accuracies), [100 * a for a in accuracies], ".", color="0.6")
        means = [(value, 100 * float(np.mean(accuracies))) for value, accuracies in found if accuracies]
        axis.plot(*zip(*means, strict=True), "o-", color="C0", ms=4, lw=1.2)
        if log:
            axis.set_xscale("log")
        axis.set_xlabel(label)
    axes[0].set_ylabel("mean accuracy, %")
    return as_svg(figure)
