"""Report texts as two protocols prepare them before they are scored. Pure functions, no files.

Preparation alone moves scores by more than most published differences (docs/evaluation.md), so the two never meet in
one table:

- **R2Gen** (Chen et al. 2020, arXiv 2010.16056): lower case, punctuation taken out, sentences joined by " . ", rare
  words as <unk>, references cut at 99 tokens. Rebuilt from what the public code does, its oddities included:
  - the class of punctuation holds a range from ":" to "[", so ; < = > ? @ go too, while **hyphens stay** ("follow-up");
  - full stops inside a number go ("1.5 cm" becomes "15 cm"), and "1. " goes from the end of any word ("11. " -> "1");
  - list numbers go only from 1 to 5, and " 2. " goes from running text as well;
  - an empty sentence stays and leaves two full stops; an empty report becomes " .", one token that can be matched.
- **Findings** (MAIRA, LLaVA-Rad): the findings section as it was written, case, punctuation and "___" kept; line breaks
  and repeated blanks, which only the 80 columns of the files cause, become one blank.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable

UNKNOWN = "<unk>"
R2GEN_THRESHOLD = 10  # a word must stand so often in the training reports of MIMIC-CXR
R2GEN_TOKENS = 99  # max_seq_length 100, of which one is the start

# (what, by what, how many passes): str.replace takes no overlaps, so runs need several.
_REPLACED = (
    ("\n", " ", 1),
    ("__", "_", 7),
    ("  ", " ", 6),
    ("..", ".", 8),
    ("1. ", "", 1),
    *((f". {n}. ", ". ", 1) for n in range(2, 6)),
    *((f" {n}. ", ". ", 1) for n in range(2, 6)),
)
# ":" to "[" is the accidental range; the hyphen is therefore not in the class.
_PUNCTUATION = re.compile(r"[.,?;*!%^&_+():-\[\]{}]")
_QUOTES = str.maketrans("", "", "\"/\\'")

_SECTION = r"(?:^|(?<=[\n.]))[ \t#*_]*{}[ \t*_]*:[ \t*_]*"
_FINDINGS = re.compile(_SECTION.format("findings?"), re.IGNORECASE)
_AFTER = re.compile(_SECTION.format("(?:impressions?|conclusions?|recommendations?)"), re.IGNORECASE)


def r2gen_clean(report: str) -> str:
    """A report as R2Gen's tokenizer cleans it, before it is split into tokens at white space."""
    for what, by, passes in _REPLACED:
        for _ in range(passes):
            report = report.replace(what, by)
    sentences = report.strip().lower().split(". ")
    # Blanks are taken off before the punctuation goes, so that what stood between the two stays.
    return " . ".join(_PUNCTUATION.sub("", sentence.translate(_QUOTES).strip()) for sentence in sentences) + " ."


def r2gen_vocabulary(reports: Iterable[str], threshold: int = R2GEN_THRESHOLD) -> frozenset[str]:
    """Tokens that stand at least `threshold` times in the (uncleaned) training reports; the others become <unk>."""
    counts = Counter(token for report in reports for token in r2gen_clean(report).split())
    return frozenset(token for token, n in counts.items() if n >= threshold)


def r2gen_reference(report: str, vocabulary: Collection[str], tokens: int = R2GEN_TOKENS) -> str:
    """A reference as R2Gen scores against it: decoded from the first `tokens` token numbers, one blank between two."""
    words = r2gen_clean(report).split()[:tokens]
    return " ".join(word if word in vocabulary else UNKNOWN for word in words)


def r2gen_answer(text: str) -> str:
    """An answer of any model in R2Gen's form. Neither cut nor given <unk>: a rare word must not match R2Gen's <unk>."""
    return " ".join(r2gen_clean(text).split())


def findings_text(text: str) -> str:
    """A text as the Findings protocol scores it: white space apart, as it was written."""
    return " ".join(text.split())


def findings_section(text: str) -> str:
    """The findings section of an answer or report; the whole text where it names none or nothing stands in it.

    A section begins at "FINDINGS:" (any case, Markdown marks allowed) at the start of a line or sentence and ends
    before "IMPRESSION:", "CONCLUSION:" or "RECOMMENDATION:" in such a place.
    """
    start = _FINDINGS.search(text)
    if start is None:
        return text.strip()
    rest = text[start.end() :]
    end = _AFTER.search(rest)
    return rest[: end.start() if end else None].strip() or text.strip()
