"""The side of every mention of a finding in one clause."""

from __future__ import annotations

import re

from data import findings_lexicon as lex
from data.findings_states import Mention

_SIDES = re.compile("|".join(f"(?P<s{i}>{p})" for i, (_, p) in enumerate(lex.SIDES)))
NOT_A_SIDE, SHIFT = re.compile(lex.NOT_A_SIDE), re.compile(lex.SHIFT)
_CONNECTOR = re.compile(r",| and | with | or | plus |/| as well as | - |:| without |\bno\b")
_LINK = re.compile(lex.LINK)
_PLACE = re.compile(lex.PLACE)
_COMPARED = re.compile(r"^, (?:left|right|larger|greater|more|worse|smaller|less)[^,]*,")  # ", left more than right,"


def side_in(text: str) -> str | None:
    """left, right or bilateral, whichever the normalised text names (bilateral for both); None without any."""
    found = {lex.SIDES[int(m.lastgroup[1:])][0] for m in _SIDES.finditer(text)}
    if "bilateral" in found or len(found) > 1:
        return "bilateral"
    return found.pop() if found else None


def blank(pattern: re.Pattern, text: str) -> str:
    """The text with spaces for what the pattern matches, as long as before."""
    return pattern.sub(lambda m: " " * len(m.group()), text)


def side_windows(clause: str, mentions: list[Mention]) -> list[str | None]:
    """Side of every mention: its own words first (up to the connector to the next), then those it shares in a list."""
    if not _SIDES.search(clause):
        return [None] * len(mentions)
    bounds = [0]
    between_texts = []
    for a, b in zip(mentions, mentions[1:], strict=False):
        between = clause[a.end : b.start]
        hits = list(_CONNECTOR.finditer(between))
        # The last comma, else the first connector: "effusion at the left base, right lower lobe consolidation".
        commas = [hit for hit in hits if "," in hit.group()]
        hit = commas[-1] if commas else (hits[0] if hits else None)
        if (
            hit
            and not _SIDES.search(between[: hit.start()])
            and _SIDES.search(between)
            and re.match(r"(?:left|right) and |both ", between.strip())
        ):
            hit = None
        place = _PLACE.match(between) if not hits else None  # "the opacity in the right base is likely atelectasis"
        bounds.append(a.end + (hit.start() if hit else place.end() if place else 0))
        between_texts.append(between)
    bounds.append(len(clause))
    sides: list[str | None] = []
    pushed = any({"Pneumothorax", "Pleural Effusion"} & {*m.labels} for m in mentions)  # then the shift is theirs
    for k, m in enumerate(mentions):
        own = clause[bounds[k] : bounds[k + 1]]
        if "Atelectasis" not in m.labels or pushed:
            own = blank(SHIFT, own)
        sides.append(side_in(own))
    for k in range(len(mentions) - 2, -1, -1):  # "effusion and atelectasis on the left"
        tail = clause[mentions[k + 1].end : bounds[k + 2]]
        if (
            sides[k] is None
            and side_in(tail)
            and re.fullmatch(r"\s*(?:,|and|or|, and|, or|/|with)\s*(?:[a-z]+ ){0,2}", between_texts[k])
        ):
            sides[k] = sides[k + 1]
    for k, m in enumerate(mentions):  # the same finding twice in one clause
        sides[k] = sides[k] or next((sides[j] for j in range(k) if mentions[j].labels == m.labels), None)
    for k in range(len(mentions) - 1):  # "left basilar opacity consistent with pneumonia": a sign and its reading
        reading = mentions[k].labels == ("Lung Opacity",) and {"Atelectasis", "Consolidation", "Pneumonia"} & {
            *mentions[k + 1].labels
        }
        if _LINK.fullmatch(_SIDES.sub("", between_texts[k])) or (reading and not between_texts[k].strip(" ,")):
            sides[k] = sides[k] or sides[k + 1]
            sides[k + 1] = sides[k + 1] or sides[k]
    for k in range(1, len(mentions)):  # "left effusion and atelectasis", but not "left effusion and support devices"
        if (
            sides[k] is None
            and "Support Devices" not in mentions[k].labels
            and sides[k - 1]
            and re.fullmatch(
                r"\s*(?:and|or|/|with|, and)\s*(?:(?:adjacent|associated|overlying|underlying|compressive) )*",
                _COMPARED.sub("", between_texts[k - 1]),
            )
        ):
            sides[k] = sides[k - 1]
    return sides
