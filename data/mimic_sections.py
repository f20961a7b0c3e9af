"""Sections of a MIMIC-CXR report, by the rules that MIMIC-CXR's own label and section files were made with.

    read_sections(text)      # {"preamble": ..., "indication": ..., "findings": ..., "impression": ...}
    report_text(text)        # "FINDINGS: ...\nIMPRESSION: ...", the `report` of a study record
    split_report(report)     # and back: {"findings": ..., "impression": ...}

Written from a description of the official parser; what it does differently from a reader's first guess:

- A header is a newline, one space, capitals (also blanks, brackets, slash, comma, hyphen), a colon and one white space.
  The line on which a section's text begins is never read as a header itself.
- Names are lower-cased and mapped: "conclusion" is an impression, "chest, two views" are findings, and the cut-off
  header "ndication" counts as impression, as in the official files.
- Empty findings and impressions do not exist; of several sections of one name the last counts. Addenda stand above the
  report, so "last" is the report itself.
- `last_paragraph` exists only where neither findings nor impression does: the final section after its first blank line.

The official code also chooses by hand for 54 studies, but not in the file that others read, mimic_cxr_sectioned.csv; so
neither does this module.
"""

import re

HEADER = re.compile(r"\n ([A-Z()/,\- ]+):\s")
BLANK_LINE = "\n \n"

# Header as written (lower case) -> section: the official names and misspellings, no others, so that a section is found
# where it is in the official files. What is not here is tried with the two rules of `section_name`.
NAMES = {
    "conclusion": "impression",
    "findings and impression": "impression",
    "findings/impression": "impression",
    "impresson": "impression",
    "imprression": "impression",
    "imoression": "impression",
    "impressoin": "impression",
    "imprssion": "impression",
    "impresion": "impression",
    "imperssion": "impression",
    "mpression": "impression",
    "impession": "impression",
    "ndication": "impression",
    "finding": "findings",
    "findins": "findings",
    "findindgs": "findings",
    "findgings": "findings",
    "findngs": "findings",
    "findnings": "findings",
    "finidngs": "findings",
    "comparision": "comparison",
    "comparsion": "comparison",
    "comparrison": "comparison",
    "comparisions": "comparison",
    "reference exam": "comparison",
    "clinical information": "history",
    "pfi": "history",
    "clinical indication": "indication",
    "idication": "indication",
    "reason for exam": "indication",
    "reason for examination": "indication",
    "exam": "examination",
    "type of examination": "examination",
    "recommendation": "recommendations",
    "recommendation(s)": "recommendations",
    "wetread": "wet read",
}
# A header that holds one of these words is that section; the first in this order.
MAIN = ("impression", "findings", "history", "comparison", "addendum")
# A header that only says what was taken ("PORTABLE AP CHEST", "CHEST, TWO VIEWS") opens what was seen on it.
VIEWS = re.compile(
    r"chest|portable|ribs|bone window|frontal (?:and|view|upright|semi-upright)|two views|(?:one|pa|ap|lateral) view|"
    r"pa and lat|lateral and (?:pa|ap)|ap and lateral"
)


def section_name(header: str) -> str:
    """The section that a header opens; a header that no rule knows is its own section, in lower case."""
    name = " ".join(header.lower().split())
    if name in NAMES:
        return NAMES[name]
    for main in MAIN:
        if main in name:
            return main
    return "findings" if VIEWS.search(name) else name


def read_sections(text: str) -> dict[str, str]:
    """Sections of one report by name, blanks around them stripped; "full report" where no header was found."""
    text = text.replace("\r\n", "\n")
    found: list[tuple[str, str]] = []
    header = HEADER.search(text)
    if header is None:
        found.append(("full report", text))
    else:
        found.append(("preamble", text[: header.start()]))
    while header:
        name, start = section_name(header[1]), header.end()
        first_line = text.find("\n", start)
        header = HEADER.search(text, first_line) if first_line >= 0 else None
        found.append((name, text[start : header.start() if header else len(text)]))
    found = [(name, body) for name, body in found if body.strip() or name not in ("findings", "impression")]
    names = {name for name, _ in found}
    if not names & {"findings", "impression"} and found:
        name, body = found[-1]
        head, blank, rest = body.partition(BLANK_LINE)
        if blank:
            found[-1:] = [(name, head), ("last_paragraph", rest)]
    return {name: body.strip() for name, body in found}


def report_text(text: str) -> str:
    """The part of a report that says what was seen: findings and impression under their names, else the last paragraph.

    Line breaks of the 80-column files are taken out. Empty when the report has none of the three.
    """
    sections = read_sections(text)
    parts = [f"{name.upper()}: {_one_line(sections[name])}" for name in ("findings", "impression") if name in sections]
    return "\n".join(parts) or _one_line(sections.get("last_paragraph", ""))


def split_report(report: str) -> dict[str, str]:
    """Undo `report_text`: {"findings", "impression"} as far as they are there, or {"last_paragraph"}."""
    found: dict[str, str] = {}
    for line in report.splitlines():
        name, colon, body = line.partition(": ")
        known = colon and name in ("FINDINGS", "IMPRESSION")
        found[name.lower() if known else "last_paragraph"] = body if known else line
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())
