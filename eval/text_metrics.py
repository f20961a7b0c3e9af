"""Report metrics by the definitions of pycocoevalcap 1.2, sacrebleu and rouge-score; bootstrap intervals by patient.

BLEU-1..4, METEOR and sacrebleu's BLEU are metrics of a corpus: each is computed from sums of counts over all texts, so
a resample sums the counts of the texts that it drew. ROUGE-L and CIDEr are means over texts. What to know of them:

- pycocoevalcap splits at white space and does no more: texts come cleaned (eval/text_cleaning.py). Its ROUGE-L (F with
  beta 1.2) splits at every single blank, so a double blank would be a word.
- Its CIDEr is CIDEr-D times 10. The document frequencies come from the scored references, so the number depends on the
  set (0 for one text; 9.99 rather than 10 for copies of short ones). In resamples they stay those of the full set.
- METEOR 1.5 is a Java program.
- sacrebleu tokenises as mteval-v13a, keeps case, smooths (exp), and counts from 0 to 100. rouge-score has beta 1, drops
  punctuation and case, here without its stemmer.

The packages are extras: `bash scripts/setup.sh --reports`.
"""

import contextlib
import importlib
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.errors import UserError

ORDERS = 4  # n-grams up to this length
COCO, SACRE, ROUGE = "pycocoevalcap", "sacrebleu 13a (0 to 100)", "rouge-score"
CIDER = f"{COCO}/CIDEr"
PACKAGES = {"pycocoevalcap": COCO, "sacrebleu": SACRE, "rouge_score": ROUGE}
# pycocoevalcap's guards against division by zero, BleuScorer.compute_score.
_TINY, _SMALL = 1e-15, 1e-9


class Counts(NamedTuple):
    """What the metrics of n texts are summed or averaged from."""

    bleu: np.ndarray  # [n, 10]: words of the answer, of the reference, n-grams 1..4 in the answer, of these matched
    sacrebleu: np.ndarray  # [n, 10]: the same by sacrebleu's tokeniser
    rouge_l: np.ndarray  # [n], pycocoevalcap
    cider: np.ndarray  # [n], idf from all n references
    rouge_score: np.ndarray  # [n], rouge-score's ROUGE-L
    meteor: np.ndarray | None  # [n, 23]: METEOR 1.5's own statistics; None without Java


def check_packages() -> None:
    """Raise UserError when a metric's package is not there; cheap, for before anything long runs."""
    for package in PACKAGES:
        _import(package)


def have_java() -> bool:
    return shutil.which("java") is not None


def count(references: Sequence[str], answers: Sequence[str], meteor: Any = None) -> Counts:
    """Everything that the metrics need from cleaned texts.

    Args:
        references, answers: [n] each; an answer may be empty, a reference should not be.
        meteor: what `meteor_program` gives, or None to leave METEOR out.

    Raises UserError without the packages or without a text.
    """
    if len(references) != len(answers):
        raise ValueError(f"{len(answers)} answers to {len(references)} references")
    if not references:
        raise UserError("no text to score; check the predictions and --limit")
    truth = {i: [text] for i, text in enumerate(references)}
    said = {i: [text] for i, text in enumerate(answers)}
    rouge = _import("pycocoevalcap.rouge.rouge").Rouge()
    return Counts(
        bleu=_bleu_counts(references, answers),
        sacrebleu=_sacrebleu_counts(references, answers),
        rouge_l=np.asarray(rouge.compute_score(truth, said)[1], float),
        cider=np.asarray(_import("pycocoevalcap.cider.cider").Cider().compute_score(truth, said)[1], float),
        rouge_score=_rouge_score(references, answers),
        meteor=None if meteor is None else _meteor_counts(meteor, references, answers),
    )


def metrics(counts: Counts, weights: np.ndarray | None = None, meteor: Any = None) -> dict[str, float]:
    """ "package/metric" -> number, every text counted `weights` [n] times (once by default)."""
    weights = np.ones(len(counts.bleu)) if weights is None else np.asarray(weights, float)
    total = weights.sum()
    bleu = coco_bleu(weights @ counts.bleu)
    values = {f"{COCO}/BLEU-{order}": value for order, value in enumerate(bleu, 1)}
    values[f"{COCO}/ROUGE-L"] = float(weights @ counts.rouge_l / total)
    if counts.meteor is not None:
        values[f"{COCO}/METEOR"] = _meteor_eval(meteor, weights @ counts.meteor)
    values[CIDER] = float(weights @ counts.cider / total)
    for order in (1, ORDERS):
        values[f"{SACRE}/BLEU-{order}"] = sacre_bleu(weights @ counts.sacrebleu, order)
    values[f"{ROUGE}/ROUGE-L"] = float(weights @ counts.rouge_score / total)
    return values


def per_text(counts: Counts) -> list[dict[str, float | list[int]]]:
    """For each text what a paired test needs: its ROUGE-L and CIDEr, and for BLEU-1 and BLEU-4 its part of the sums."""
    found = []
    for bleu, rouge, cider in zip(counts.bleu, counts.rouge_l, counts.cider, strict=True):
        parts = {f"{COCO}/BLEU-{order}": [int(x) for x in bleu_part(bleu, order)] for order in (1, ORDERS)}
        found.append(parts | {f"{COCO}/ROUGE-L": float(rouge), CIDER: float(cider)})
    return found


# --- BLEU -----------------------------------------------------------------------------------------------------------


def bleu_part(counts: np.ndarray, order: int) -> np.ndarray:
    """What BLEU up to n-grams of `order` needs of a row, or a sum of rows, of `Counts.bleu`: 2 + 2 * order numbers."""
    return np.concatenate([counts[: 2 + order], counts[2 + ORDERS : 2 + ORDERS + order]])


def coco_bleu(sums: np.ndarray) -> list[float]:
    """BLEU-1..n from sums of `bleu_part`: geometric mean of the precisions, brevity penalty, no smoothing.

    The formula of pycocoevalcap's BleuScorer with one reference a text, its guards included, so the numbers are equal.
    """
    orders = (len(sums) - 2) // 2
    words, reference, found, matched = sums[0], sums[1], sums[2 : 2 + orders], sums[2 + orders :]
    ratio = (words + _TINY) / (reference + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, values = 1.0, []
    for order in range(orders):
        product *= (matched[order] + _TINY) / (found[order] + _SMALL)
        values.append(float(product ** (1 / (order + 1)) * penalty))
    return values


def _bleu_counts(references: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    scorer = _import("pycocoevalcap.bleu.bleu_scorer")
    rows = []
    for reference, answer in zip(references, answers, strict=True):
        one = scorer.cook_test(answer, scorer.cook_refs([reference], n=ORDERS), n=ORDERS)
        rows.append([one["testlen"], one["reflen"][0], *one["guess"], *one["correct"]])
    return np.array(rows, float)


def sacre_bleu(sums: np.ndarray, order: int) -> float:
    """sacrebleu's BLEU up to n-grams of `order`, 0 to 100, from sums of `Counts.sacrebleu`."""
    bleu = _import("sacrebleu.metrics").BLEU
    whole = [int(x) for x in sums]
    score = bleu.compute_bleu(
        correct=whole[2 + ORDERS : 2 + ORDERS + order],
        total=whole[2 : 2 + order],
        sys_len=whole[0],
        ref_len=whole[1],
        smooth_method="exp",
        max_ngram_order=order,
    )
    return float(score.score)


def _sacrebleu_counts(references: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    bleu = _import("sacrebleu.metrics").BLEU(max_ngram_order=ORDERS)
    rows = []
    for reference, answer in zip(references, answers, strict=True):
        one = bleu.corpus_score([answer], [[reference]])
        rows.append([one.sys_len, one.ref_len, *one.totals, *one.counts])
    return np.array(rows, float)


def _rouge_score(references: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    scorer = _import("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    pairs = zip(references, answers, strict=True)
    return np.array([scorer.score(reference, answer)["rougeL"].fmeasure for reference, answer in pairs])


# --- METEOR ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def meteor_program() -> Iterator[Any]:
    """pycocoevalcap's METEOR 1.5 while the block runs; UserError where there is no Java."""
    if not have_java():
        raise UserError(
            "METEOR 1.5 is a Java program and no java is on PATH; install a Java runtime (Debian: apt-get install "
            "default-jre-headless), or leave METEOR out with --set meteor=no"
        )
    meteor = _import("pycocoevalcap.meteor.meteor").Meteor()
    try:
        yield meteor
    finally:
        for pipe in (meteor.meteor_p.stdin, meteor.meteor_p.stdout, meteor.meteor_p.stderr):
            with contextlib.suppress(OSError):
                pipe.close()
        meteor.meteor_p.kill()
        meteor.meteor_p.wait()


def _meteor_counts(meteor: Any, references: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    rows = []
    for reference, answer in zip(references, answers, strict=True):
        # A line break or the program's own separator inside a text would break the dialogue with it.
        reference, answer = (" ".join(text.replace("|||", " ").split()) for text in (reference, answer))
        rows.append([float(x) for x in _ask(meteor, f"SCORE ||| {reference} ||| {answer}", 1)[0].split()])
    found = np.array(rows, float)
    # The program sums its statistics, but lets a text that matches its reference in one piece add no chunk.
    words, reference_words, chunks, matched, reference_matched = found[:, [0, 1, 20, 21, 22]].T
    found[(chunks == 1) & (matched == words) & (reference_matched == reference_words), 20] = 0
    return found


def _meteor_eval(meteor: Any, sums: np.ndarray) -> float:
    """METEOR of a corpus: the program's score of the summed statistics of `_meteor_counts`."""
    return float(_ask(meteor, "EVAL ||| " + " ".join(f"{x:.17g}" for x in sums), 2)[1])


def _ask(meteor: Any, line: str, answers: int) -> list[str]:
    process = meteor.meteor_p
    try:
        process.stdin.write(f"{line}\n".encode())
        process.stdin.flush()
        got = [process.stdout.readline().decode().strip() for _ in range(answers)]
    except OSError:
        got = []
    if len(got) < answers or not all(got):
        raise UserError(
            "METEOR's Java program ended (it asks for 2 GB of memory); try `java -version`, or leave METEOR out with "
            "--set meteor=no"
        )
    return got


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"package {error.name} is not installed, report metrics need it (104 MB); run: bash scripts/setup.sh "
            "--reports"
        ) from error


def describe() -> Mapping[str, str]:
    """How the numbers come about, for the protocol of a results file."""
    return {
        COCO: "BLEU-1..4, ROUGE-L (beta 1.2), METEOR 1.5, CIDEr (CIDEr-D x 10, idf from the scored references, fixed "
        "in resamples); words split at white space",
        SACRE: "13a tokeniser, case kept, exp smoothing",
        ROUGE: "ROUGE-L F1, no stemmer",
    }
