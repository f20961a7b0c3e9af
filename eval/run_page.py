"""The page of a results file: tables, intervals and what was chosen, in one file that loads nothing from elsewhere.

It shows no film and no text of a report, so that it may be kept where the results may be.
"""

from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from data.pages import environment
from eval import charts, table

LARGEST = 20  # columns and rows of a chart; larger tables are read as tables


def render(results: Mapping) -> str:
    """results.json of `eval.run` as HTML text."""
    env = environment(Path(__file__).parent)
    env.globals |= {
        "tables": table.tables,
        "number": table.number,
        "one_line": table.one_line,
        "chart_of": chart_of,
        "research": table.RESEARCH,
        "foot": lambda result: table.foot(result, results["bootstrap"]),
    }
    return env.get_template("run_page.html").render(results=results)


def chart_of(one: Mapping, name: str) -> Markup | None:
    """The intervals of one table; None where it has none, or too many to be seen."""
    if len(one["columns"]) > LARGEST or len(one["rows"]) > LARGEST:
        return None
    series = []
    for row in one["rows"]:
        points = [
            (title, cell["value"], cell["low"], cell["high"])
            for (title, _), cell in zip(one["columns"], row["cells"], strict=True)
            if cell and cell["value"] is not None and cell["low"] is not None and cell["high"] is not None
        ]
        series.append((row["name"], points))
    return charts.interval_chart(series, title=f"{one['group']}, {name}")
