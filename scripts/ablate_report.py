"""Tables and figures of the ablation ledger, written into docs/evidence.md between its markers.

    python -m scripts.ablate_report [--ledger FILE] [--doc FILE] [--figures DIR] [--check]

Every number comes from the ledger. Lines whose row has other settings by now are left out and counted; a row without
five seeds says how many it has. With --check nothing is written: exit status 1 if the document or a figure is not up to
date.
"""

import argparse
import math
import os
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

from data.errors import UserError, run_cli
from data.files import write_atomic
from data.findings_lexicon import FIVE
from eval.ablation_metrics import LOOKS, STRATA
from eval.items import CONSENSUS, MAJORITY
from eval.statistics import holm
from eval.table import line as table_line
from scripts import ablation_ledger as ledger
from scripts.ablation_figures import EVERY_WORLD, figures
from scripts.ablation_pairs import compared_pairs
from scripts.ablation_rows import GROUPS, Row, Sizes, read_rows
from scripts.ablation_tables import (
    REFERENCE,
    REFERENCES,
    SEEDS,
    TEACHER,
    Block,
    Comparison,
    Line,
    Mean,
    apart,
    baselines,
    blocks,
    by_seed,
    compare,
    compared_alone,
    mean_of,
    own_reference,
    paired,
)
from scripts.plan import ROOT

DOC = ROOT / "docs" / "evidence.md"
BEGIN, END = "<!-- ablation:begin (python -m scripts.ablate_report) -->", "<!-- ablation:end -->"
# What a critique has to be no worse than: learning on the same consensus, in one round and in two.
SUPERVISED = ("sft_consensus_flops", "sft_consensus_flops_best", "two_rounds_sft")
DAWID = "dawid_skene"
ANEW = "°"
ANEW_MEANS = (
    f"In some seed from another training of Learn than {' and '.join(f'`{name}`' for name in REFERENCES)} of that seed "
    "(same films, teachers and settings; another machine or number of processes): the difference contains both."
)
APART_MEANS = "In some seed the two rows began from different trainings of Learn: the difference contains both."
NOTHING = "The ledger holds no run yet: `bash scripts/ablate.sh` fills it."

# column title -> where the number stands in a line's metrics, times what, decimals
BESIDE = {
    "balanced %": (("mean_balanced_accuracy",), 100, 1),
    "hallucinated a film": (("hallucinated",), 1, 2),
    "missed a film": (("missed",), 1, 2),
    "right side %": (("laterality",), 100, 1),
    "malformed %": (("malformed_rate",), 100, 1),
    "consensus form %": (("consensus_form",), 100, 1),
    "words": (("words",), 1, 0),
}
BY_FINDING = {label: (("accuracy", label), 100, 1) for label in FIVE}
BY_DRIFT, BY_LOOKS = (
    {
        f"{title}{part} %": ((metric, part, "accuracy", who), 100, 1)
        for who, title in (("student", ""), ("consensus", "consensus, "))
        for part in parts
    }
    for metric, parts in (("drift", STRATA), ("looks", LOOKS))
)
# how sure a student is of its own report (eval/calibration.py)
SURE = {
    "films": (("calibration", "films"), 1, 0),
    "AUC": (("calibration", "auc"), 1, 3),
    "Brier": (("calibration", "brier"), 1, 3),
    "ECE": (("calibration", "ece"), 1, 3),
}
TRAINING = {
    "consensus moved, nats": (("training", "displacement_chosen"), 1, 1),
    "negatives moved, nats": (("training", "displacement_rejected"), 1, 1),
    "margin, nats": (("rewards", "margin_nats"), 1, 1),
    "margin ~ length": (("rewards", "margin_length"), 1, 2),
    "margin ~ style": (("rewards", "margin_style"), 1, 2),
    "margin ~ errors": (("rewards", "margin_errors"), 1, 2),
    "style AUC": (("style_auc",), 1, 3),
    "above all negatives %": (("rewards", "beats_all"), 100, 1),
    "KL, nats": (("rewards", "kl"), 1, 1),
    "samples": (("rewards", "own_samples"), 1, 0),
}


def fixed(number: float, digits: int, sign: str = "") -> str:
    """`number` to `digits` decimals, halves away from zero, without a minus where it rounds to zero.

    Many metrics are exact halves of the last digit (a count over 2,000), which a binary float would round by chance.
    """
    exact = Decimal(repr(round(number, 9))).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return f"{exact + 0:{sign}.{digits}f}"


def percent(mean: Mean | None) -> str:
    """ "91.2 (89.0 to 93.4)" of a share, with its n where that is not SEEDS."""
    if mean is None:
        return ""
    text = fixed(100 * mean.value, 1)
    if mean.low is not None and mean.high is not None:
        text += f" ({fixed(100 * mean.low, 1)} to {fixed(100 * mean.high, 1)})"
    return text + ("" if mean.n == SEEDS else f", n={mean.n}")


def against(one: Comparison | None) -> str:
    """ "+3.1 (1.9 to 4.3; p .004, Holm .02)"."""
    if one is None or one.difference is None:
        return ""
    text, low, high = fixed(100 * one.difference.value, 1, "+"), one.difference.low, one.difference.high
    if one.p is None or one.adjusted is None or low is None or high is None:
        return f"{text} (no test)"
    p = f"p {p_text(one.p)}, Holm {p_text(one.adjusted)}"
    return f"{text} ({fixed(100 * low, 1)} to {fixed(100 * high, 1)}; {p})"


def p_text(p: float) -> str:
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def cell(mean: Mean | None, factor: float, digits: int, seeds: int) -> str:
    """The number, with its n where the row has more seeds."""
    if mean is None:
        return ""
    return fixed(factor * mean.value, digits) + ("" if mean.n == seeds else f" (n={mean.n})")


def title(block: Block) -> str:
    text = f"### World {block.world}"
    if block.sizes != Sizes():
        text += f", {block.sizes.train} training films, {block.sizes.test} held-out films"
    return text + (", smoke run: its numbers mean nothing" if block.sizes.steps else "")


def ordered(block: Block, rows: dict[str, Row]) -> list[str]:
    """Row names by group, then by value, then by name."""

    def rank(name: str) -> tuple:
        row = rows[name]
        return GROUPS.index(row.group), math.inf if row.value is None else row.value, name

    return sorted(block.lines, key=rank)


def main_table(block: Block, rows: dict[str, Row]) -> list[str]:
    names = ordered(block, rows)
    fixed = baselines(block)
    references = {name: own_reference(block, name) for name in names if name != REFERENCE}
    to_reference = compare(block, {name: reference for name, (reference, _) in references.items()})
    to_teacher = compare(block, dict.fromkeys(names, fixed.get(TEACHER, {})))
    out = [
        table_line(["row", "what", "accuracy %", f"minus {REFERENCE}", f"minus {TEACHER}", "s"]),
        table_line(["---", "---", "---:", "---:", "---:", "---:"]),
    ]
    for name, values in fixed.items():
        out.append(table_line([name, "", percent(mean_of(values)), "", "", ""]))
    anew = {name for name, (_, elsewhere) in references.items() if elsewhere}
    for name in names:
        lines = block.lines[name]
        seconds = mean_of({seed: line["seconds"] for seed, line in lines.items()})
        out.append(
            table_line(
                [
                    f"`{name}`" + (ANEW if name in anew else ""),
                    rows[name].question,
                    percent(mean_of(by_seed(lines, "mean_accuracy"))),
                ]
                + [against(to_reference.get(name)), against(to_teacher.get(name)), cell(seconds, 1, 0, len(lines))]
            )
        )
    return [*out, "", f"{ANEW} {ANEW_MEANS}"] if anew else out


def supervised_table(block: Block, rows: dict[str, Row]) -> list[str]:
    """Rows that share enough seeds for a test with a row of SUPERVISED, against those; [] without any."""
    names, columns = ordered(block, rows), {}
    for base in SUPERVISED:
        other = by_seed(block.lines.get(base, {}), "mean_accuracy")
        found = compare(block, {name: other for name in names if name != base})
        tested = {
            name: against(one) + (ANEW if apart(block, name, base) else "")
            for name, one in found.items()
            if one.p is not None
        }
        if tested:
            columns[base] = tested
    if not columns:
        return []
    out = [table_line(["row", *(f"minus {base}" for base in columns)]), table_line(["---", *["---:"] * len(columns)])]
    for name in names:
        cells = [tested.get(name, "") for tested in columns.values()]
        if any(cells):
            out.append(table_line([f"`{name}`", *cells]))
    return [*out, "", f"{ANEW} {APART_MEANS}"] if any(ANEW in text for text in out) else out


def more_table(block: Block, rows: dict[str, Row], columns: dict) -> list[str]:
    out = [table_line(["row", *columns]), table_line(["---", *["---:"] * len(columns)])]
    for name in ordered(block, rows):
        lines = block.lines[name]
        cells = [cell(mean_of(by_seed(lines, *path)), *form, len(lines)) for path, *form in columns.values()]
        if any(cells):
            out.append(table_line([f"`{name}`", *cells]))
    return out if len(out) > 2 else []


def picture_line(picture: str) -> str:
    return f"![{Path(picture).stem.replace('_', ' ')}]({picture})"


def all_rows(block: Block) -> dict[str, dict[int, Line]]:
    return block.lines | block.compared


def consensus_table(found: list[Block]) -> list[str]:
    """Accuracy of every consensus that was scored by itself, by world, and Dawid and Skene's against the best teacher;
    Holm over the worlds. [] without any."""
    whole = {block.world: block for block in found if block.sizes == Sizes() and block.compared}
    if not whole:
        return []
    fixed = {world: baselines(block) for world, block in whole.items()}
    names = compared_alone(whole.values())
    tests = {w: paired(one.get(f"{CONSENSUS} {DAWID}", {}), one.get(TEACHER, {})) for w, one in fixed.items()}
    adjusted = holm({world: p for world, (_, p) in tests.items()})
    head = ["world", TEACHER, MAJORITY, *names, f"{DAWID} minus {TEACHER}"]
    out = [table_line(head), table_line(["---", *["---:"] * (len(head) - 1)])]
    for world, values in fixed.items():
        cells = [percent(mean_of(values.get(name, {}))) for name in (TEACHER, MAJORITY, *names)]
        difference, p = tests[world]
        out.append(table_line([world, *cells, against(Comparison(difference, p, adjusted[world]))]))
    out += ["", f"That of {DAWID} by finding, %:", "", table_line(["world", *FIVE])]
    out.append(table_line(["---", *["---:"] * len(FIVE)]))
    for world, block in whole.items():
        lines = block.compared.get(f"compare_{DAWID}", {})
        means = [mean_of(by_seed(lines, "accuracy", label)) for label in FIVE]
        out.append(table_line([world, *(cell(mean, 100, 1, len(lines)) for mean in means)]))
    return out


def text_of(found: list[Block], left: int, rows: dict[str, Row], pictures: dict[str, list[str]]) -> str:
    """The generated part of the document. `pictures`: world -> file names beside the document."""
    if not found:
        return "\n".join([NOTHING, *_left(left)])
    out: list[str] = []
    for block in found:
        out += [title(block), "", *main_table(block, rows), ""]
        if not block.lines:
            continue
        supervised = supervised_table(block, rows)
        if supervised:
            out += ["Against learning on the consensus, over the seeds that both have:", "", *supervised, ""]
        out += ["Beside accuracy, means over the same seeds:", "", *more_table(block, rows, BESIDE), ""]
        for heading, columns in (
            ("Accuracy by finding, %:", BY_FINDING),
            (
                "Accuracy by third of the films, by conflict between the teachers from low to high:",
                BY_DRIFT,
            ),
            ("Accuracy where films mislead (small findings, look-alikes) and where they are plain:", BY_LOOKS),
            ("How sure the student is of its own report, where it is in the consensus' form:", SURE),
            ("Training and rewards:", TRAINING),
        ):
            table = more_table(block, rows, columns)
            if table:
                out += [heading, "", *table, ""]
        for picture in pictures.get(block.world, []) if block.sizes == Sizes() else []:
            out += [picture_line(picture), ""]
    worlds = consensus_table(found)
    if worlds:
        out += ["### Consensus by world", "", *worlds, ""]
        for picture in pictures.get(EVERY_WORLD, []):
            out += [picture_line(picture), ""]
    pairs = compared_pairs(found)
    if pairs:
        out += ["### Across rows and worlds", "", table_line(["difference", "points"]), table_line(["---", "---:"])]
        out += [*(table_line([what, against(one)]) for what, one in pairs.items()), ""]
    runs = [line for block in found for by_row in all_rows(block).values() for line in by_row.values()]
    out.append(provenance(runs))
    return "\n".join([*out, "", wholeness(found, rows), *_left(left)])


def provenance(runs: list[Line]) -> str:
    """Which commits the runs are of, and what is known of uncommitted changes.

    A line knows the code of each of its stages ("made_by") or, an older one, only that of the moment it was begun.
    """
    told = [None not in line.get("made_by", [None]) for line in runs]
    makers = [line["made_by"] if whole else [line] for line, whole in zip(runs, told, strict=True)]
    commits = {one["commit"] for each in makers for one in each}
    states = [[one["dirty"] for one in each] for each in makers]
    dirty, unknown = sum(True in one for one in states), sum(True not in one and None in one for one in states)
    text = f"{len(runs)} runs of {len(commits)} commit(s); {dirty} were made with uncommitted changes"
    text += f", of {unknown} it is not known" if unknown else ""
    if rest := told.count(False):
        text += f" (of {rest} only the commit is known at which they were begun)"
    return f"{text}."


def wholeness(found: list[Block], rows: dict[str, Row]) -> str:
    """How many rows have the seeds they should have, each in the world where it has most, and which have none."""
    whole = [block for block in found if block.sizes == Sizes()]
    seeds = {name: max((len(all_rows(block).get(name, ())) for block in whole), default=0) for name in rows}
    five = sum(n >= SEEDS for n in seeds.values())
    none = [f"`{name}`" for name, n in seeds.items() if not n]
    text = f"Of {len(rows)} rows {five} have {SEEDS} seeds, {len(rows) - five - len(none)} have fewer"
    return f"{text}, {len(none)} {'have' if len(none) > 1 else 'has'} none: {', '.join(none)}." if none else f"{text}."


def _left(left: int) -> list[str]:
    if not left:
        return []
    return [f"{left} line(s) of the ledger are left out: their row has other settings by now, or is gone."]


def replaced(document: str, text: str, path: Path) -> str:
    """The document with the part between its markers replaced. Raises UserError when it has no markers."""
    start, end = document.find(BEGIN), document.find(END)
    if start < 0 or end < start:
        raise UserError(f"{path}: has no lines {BEGIN} and {END}; put them where the tables belong")
    return f"{document[: start + len(BEGIN)]}\n\n{text}\n\n{document[end:]}"


def same_text(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.ablate_report", description=__doc__.split("\n")[0])
    parser.add_argument("--ledger", type=Path, default=ledger.LEDGER)
    parser.add_argument("--doc", type=Path, default=DOC, help="Markdown file with the markers")
    parser.add_argument("--figures", type=Path, help="folder of the SVG files (default: that of the ledger)")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; status 1 if document or figures are not up to date"
    )
    args = parser.parse_args(argv)
    if not args.ledger.is_file():
        raise UserError(f"{args.ledger}: no such ledger; name one, or make it with `bash scripts/ablate.sh`")
    rows = read_rows()
    found, left = blocks(ledger.read(args.ledger).values(), rows)
    folder = args.figures or args.ledger.parent
    drawn = figures([block for block in found if block.sizes == Sizes()], rows)
    base = args.doc.absolute().parent
    pictures: dict[str, list[str]] = {}
    for world, name in drawn:
        pictures.setdefault(world, []).append(Path(os.path.relpath(folder / name, base)).as_posix())
    try:
        document = args.doc.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{args.doc}: cannot be read ({error.strerror}); name the document with the markers") from None
    new = replaced(document, text_of(found, left, rows, pictures), args.doc)
    if args.check:
        old = [str(args.doc)] if new != document else []
        old += [str(folder / name) for (_, name), svg in drawn.items() if not same_text(folder / name, svg)]
        if old:
            print(f"not up to date: {', '.join(old)}; python -m scripts.ablate_report")
        else:
            print(f"{args.doc} and {len(drawn)} figures: up to date")
        return int(bool(old))
    for (_, name), svg in drawn.items():
        write_atomic(folder / name, svg)
    write_atomic(args.doc, new)
    shown = sum(len(all_rows(block)) for block in found)
    print(f"written: {args.doc} and {len(drawn)} figures ({shown} rows, {left} lines left out)")
    return 0


if __name__ == "__main__":
    run_cli(main)
