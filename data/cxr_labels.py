"""The labels that a row of a source states: in a column of them each, in a list, in an object, or in a text."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from data.cxr_columns import Columns, list_in, plain
from data.findings_lexicon import LABELS

BY_PLAIN_LABEL = {plain(label): label for label in LABELS} | {"airspaceopacity": "Lung Opacity"}


@lru_cache(4096)
def _label(name: str) -> str | None:
    return BY_PLAIN_LABEL.get(plain(name))


_STATES = {1.0: "present", 0.0: "absent", -1.0: "uncertain"}


class Stated(NamedTuple):
    """What a row says of labels: `findings` or None; how many names are none of the 14; whether it is no list."""

    findings: dict[str, dict[str, str]] | None
    unknown: int = 0
    no_list: bool = False


def labels_of(row: dict, columns: Columns) -> Stated:
    """The labels that a row states.

    A list, also one written as text (JSON or Python), states what is present, whatever unknown names stand in it; 14
    columns, or an object, state 1, 0 or -1. A text with , ; | or "and" between names does only where each is one of the
    14: others may be sentences, whose words say nothing alone ("No consolidation, edema, or effusion").
    An empty list ([] as text, too) states that nothing is present: {}. None where nothing is stated: null, a blank
    text, none but unknown names, or a text that is no list.
    """
    if columns.label_columns:
        value: Any = {label: row.get(column) for label, column in columns.label_columns.items()}
    else:
        value = row.get(columns.labels) if columns.labels else None
    if isinstance(value, str):
        value, text = list_in(value), value
        if value is None:
            value = [name for name in re.split(r"[,;|]|\band\b", text.strip("[] \t\r\n")) if plain(name)] or None
            if not all(map(_label, value or [])):
                return Stated(None, no_list=True)
    found: dict[str, dict[str, str]] = {}
    unknown = 0
    for name, state in value.items() if isinstance(value, dict) else _present(value):
        label = _label(name) if isinstance(name, str) else None
        if label is None:
            unknown += bool(plain(name))
        elif state in ("present", "absent", "uncertain"):
            found[label] = {"state": state}
        elif state is not None and state != "":
            try:
                # NaN (a blank of pandas) has no entry and so is not mentioned.
                known = _STATES.get(float(state))
            except (TypeError, ValueError):
                known = None
            if known:
                found[label] = {"state": known}
    normal = not unknown and (isinstance(value, (list, tuple)) or value == {})
    return Stated(found if found or normal else None, unknown)


def _present(value: Any) -> Iterable[tuple[Any, str]]:
    return [(name, "present") for name in value] if isinstance(value, (list, tuple)) else []
