"""The tables of a results file: one for each benchmark and group of metrics, as plain structures and as Markdown.

A metric called "group/column" stands in the table of its group; the others share the table "other". Two protocols or
two kinds of number never share a table.
"""

from collections.abc import Iterator, Mapping

OTHER = "other"
RESEARCH = "Research use only; not for diagnosis."


def tables(result: Mapping) -> Iterator[dict]:
    """{"group", "columns": [(title, n)], "rows": [{"name", "baseline", "cells": [metric or None]}]} by group."""
    names = list(dict.fromkeys(metric for row in result["rows"] for metric in row["metrics"]))
    groups: dict[str, list[tuple[str, str]]] = {}
    for metric in names:
        group, slash, column = metric.partition("/")
        groups.setdefault(group if slash else OTHER, []).append((metric, column if slash else metric))
    for group, columns in groups.items():
        rows = []
        for row in result["rows"]:
            cells = [row["metrics"].get(metric) for metric, _ in columns]
            if any(cell is not None for cell in cells):
                rows.append({"name": row["name"], "baseline": bool(row.get("baseline")), "cells": cells})
        titles = []
        for at, (_, title) in enumerate(columns):
            n = {row["cells"][at]["n"] for row in rows if row["cells"][at]}
            titles.append((title, n.pop() if len(n) == 1 else None))
        yield {"group": group, "columns": titles, "rows": rows}


def cell_text(cell: Mapping | None) -> str:
    """ "0.612 (0.580 to 0.641)"; "n/a" for a number that is not defined, "" where a row has no such metric."""
    if cell is None:
        return ""
    if cell["value"] is None:
        return "n/a"
    text = number(cell["value"])
    if cell["low"] is None or cell["high"] is None:
        return text
    return f"{text} ({number(cell['low'])} to {number(cell['high'])})"


def number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def one_line(value: object) -> str:
    """A value of a protocol or fingerprint in words."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {one_line(one)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(one_line(one) for one in value)
    return " ".join(str(value).split())


def foot(result: Mapping, bootstrap: Mapping) -> list[str]:
    """The lines under the tables of a benchmark: how many, how resampled, what was counted out."""
    skipped: dict[str, int] = {}
    for row in result["rows"]:
        for metric, cell in row["metrics"].items():
            if cell["skipped_resamples"] and cell["value"] is not None:
                skipped[metric] = max(skipped.get(metric, 0), cell["skipped_resamples"])
    lines = [
        f"{result['n']} items of {result['patients']} patients; in brackets {round(100 * bootstrap['level'])} % "
        f"bootstrap intervals by {bootstrap['unit']} ({bootstrap['resamples']} resamples, seed {bootstrap['seed']})"
    ]
    if skipped:
        worst = max(skipped, key=skipped.__getitem__)
        lines.append(
            f"{len(skipped)} numbers are not defined in some resamples, which their intervals leave out: up to "
            f"{skipped[worst]} ({worst}; all in results.json)"
        )
    return lines + list(result["notes"])


def markdown(results: Mapping) -> str:
    """All tables of a results file for a paper."""
    out = [f"Evaluation of {results['name']}. {RESEARCH}", ""]
    for name, result in results["benchmarks"].items():
        out += [f"## {name}", ""]
        for table in tables(result):
            titles = [f"{title} (n={n})" if n is not None else title for title, n in table["columns"]]
            out += [f"**{table['group']}**", ""]
            out += [line([table["group"], *titles]), line(["---", *["---:"] * len(titles)])]
            for row in table["rows"]:
                out.append(line([row["name"], *map(cell_text, row["cells"])]))
            out.append("")
        out += [f"- {text}" for text in foot(result, results["bootstrap"])]
        out += [f"- {key.replace('_', ' ')}: {one_line(value)}" for key, value in result["protocol"].items()]
        out += [f"- decoding: {one_line(result['decoding'])}", ""]
    return "\n".join(out)


def line(cells: list[str]) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"


def escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
