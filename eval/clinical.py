"""Clinical report metrics by RadEval: CheXbert F1, RadGraph F1, RadCliQ-v1, GREEN. Only when asked for.

RadEval needs packages that the training stack cannot have, so it lives in an environment of its own, which
`bash scripts/radeval.sh` makes, and is fed and read back by files (eval/radeval_worker.py). Everything runs on this
machine; weights are downloaded at the first use. What to know of the numbers:

- **CheXbert**: one label may be positive, negative, uncertain or blank. "rrg" means positive or uncertain in RadEval
  and positive alone in LLaVA-Rad, so neither word is used here: both are printed, under what they do. A label without
  any positive counts as F1 0 in a macro average, as published numbers do. The five: Cardiomegaly, Edema, Consolidation,
  Atelectasis, Pleural Effusion.
- **RadGraph**: by radgraph-xl, RadEval's default; papers before 2024 used radgraph 1.0.
- **RadCliQ-v1**: lower is better. ReXrank (and RadEval's own aggregate) print 1 / mean, given beside it.
- **GREEN**: judged by a local model of 7 billion parameters (14 GB, Llama 2 licence), 0 to 1.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.records import did_you_mean
from eval.benchmarks import measure

METRICS = ("chexbert", "radgraph", "radcliq", "green")
ENVIRONMENT = "RADEVAL_VENV"  # where another environment than the default one is
CHEXBERT_FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
UNCERTAIN = {
    "CheXbert F1, uncertain counts as positive": (1, -1),
    "CheXbert F1, uncertain counts as negative": (1,),
}
# Key of the worker -> name of the metric.
MEANS = {
    "radgraph_simple": "RadGraph-XL F1/simple",
    "radgraph_partial": "RadGraph-XL F1/partial",
    "radgraph_complete": "RadGraph-XL F1/complete",
    "radcliq": "RadCliQ-v1/mean, lower is better",
    "green": "GREEN/mean",
}
INVERSE = "RadCliQ-v1/1 over mean, higher is better"
WORKER = Path(__file__).with_name("radeval_worker.py")


def parse(value: str | None) -> tuple[str, ...]:
    """ "chexbert,radgraph" or "all" -> metrics; () for None. UserError for a name that is none."""
    if value is None:
        return ()
    if value == "all":
        return METRICS
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
    for name in names:
        if name not in METRICS:
            raise UserError(f"--set clinical={value}: no metric {name!r}; {did_you_mean(name, (*METRICS, 'all'))}")
    return names


def environment_python() -> Path:
    """The Python of RadEval's environment; UserError where it is not there."""
    told = os.environ.get(ENVIRONMENT)
    folder = Path(told) if told else Path(__file__).resolve().parent.parent / ".venv-radeval"
    python = folder / "bin" / "python"
    if not os.access(python, os.X_OK):
        raise UserError(
            f"{folder}: no environment of RadEval (bin/python), which clinical metrics need; run: bash "
            f"scripts/radeval.sh, or name one with {ENVIRONMENT}=DIR"
        )
    return python


def run(metrics: Sequence[str], references: Sequence[str], answers: Sequence[str]) -> dict:
    """What eval/radeval_worker.py writes for these texts: {"versions", "results"}.

    The texts pass through a temporary folder that only this user can read (TMPDIR says where), removed afterwards.

    Raises UserError without the environment, or when RadEval fails; the message is RadEval's, without texts.
    """
    python = environment_python()
    with tempfile.TemporaryDirectory(prefix="radeval.") as folder:
        given, got = Path(folder, "in.json"), Path(folder, "out.json")
        texts = {"metrics": list(metrics), "references": list(references), "hypotheses": list(answers)}
        given.write_text(json.dumps(texts), encoding="utf-8")
        # Without PYTHONPATH and -P's opposite, the other environment could import this one's modules.
        clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        # RadEval's GREEN writes into the working folder. Its progress goes to stderr; stdout may hold texts.
        ended = subprocess.run(
            [python, "-P", WORKER, given, got], cwd=folder, env=clean, stdout=subprocess.DEVNULL, check=False
        )
        try:
            out = json.loads(got.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(
                f"{python}: RadEval ended without a result (exit status {ended.returncode}); its own message is above. "
                "Make the environment again: bash scripts/radeval.sh --again"
            ) from None
    if "error" in out:
        raise UserError(
            f"RadEval ({', '.join(metrics)}) failed: {out['error']}; weights come from the Hugging Face Hub at the "
            "first use (docs/evaluation.md)"
        )
    _check(out["results"], metrics, len(references))
    return out


def _check(results: dict, metrics: Sequence[str], n: int) -> None:
    """Every metric asked for must be there with one entry a text."""
    keys = {key for metric in metrics for key in MEANS if key.startswith(metric)}
    wrong = [key for key in sorted(keys) if len(results.get(key, ())) != n]
    if "chexbert" in metrics:
        labels = results.get("chexbert", {})
        if any(np.shape(labels.get(side)) != (n, 14) for side in ("references", "hypotheses")):
            wrong.append("chexbert")
    if wrong:
        raise UserError(f"RadEval gave no result for each of {n} texts ({', '.join(wrong)}); is it the pinned version?")


def score(
    metrics: Sequence[str],
    references: Sequence[str],
    answers: Sequence[str],
    patients: Sequence[str],
    *,
    seed: int,
    resamples: int,
) -> tuple[dict[str, dict], list[str]]:
    """({"group/metric": number with its bootstrap interval by patient}, notes); texts as written, not cleaned."""
    out = run(metrics, references, answers)
    results = out["results"]
    draw = {"seed": seed, "resamples": resamples}
    found: dict[str, dict] = {}
    notes = ["clinical metrics by " + ", ".join(f"{key} {value}" for key, value in out["versions"].items() if value)]
    if "chexbert" in metrics:
        labels = results["chexbert"]["labels"]
        truth, said = (np.array(results["chexbert"][side]) for side in ("references", "hypotheses"))
        for group, positive in UNCERTAIN.items():
            yes, claimed = np.isin(truth, positive), np.isin(said, positive)
            found |= measure(chexbert_f1(group, yes, claimed, labels), patients, **draw)
            empty = [name for name, some in zip(labels, yes.any(0), strict=True) if not some]
            if empty:
                notes.append(f"{group}: no reference has {', '.join(empty)}, which the macro average counts as 0")
    for key, name in MEANS.items():
        if key not in results or key.split("_")[0] not in metrics:
            continue
        values = np.array([np.nan if value is None else value for value in results[key]], float)
        known = ~np.isnan(values)
        if not known.all():
            notes.append(f"{name}: RadEval has no number for {int((~known).sum())} of {len(values)} answers, left out")
        of = [patient for patient, one in zip(patients, known, strict=True) if one]
        found |= measure(_means(name, values[known]), of, **draw) if of else {}
    return found, notes


def _means(name: str, values: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    def numbers(weights: np.ndarray) -> dict[str, float]:
        mean = float(weights @ values / weights.sum())
        inverse = {INVERSE: 1 / mean if mean else np.nan} if name == MEANS["radcliq"] else {}
        return {name: mean, **inverse}

    return numbers


def chexbert_f1(
    group: str, truth: np.ndarray, said: np.ndarray, labels: Sequence[str]
) -> Callable[[np.ndarray], dict[str, float]]:
    """A function of the texts' weights [n] to the F1 of 14 and 5 labels, micro and macro average.

    Args:
        truth, said: boolean [n, 14] in the order of `labels`.
    """
    sets = {"14": np.arange(len(labels)), "5": np.array([labels.index(name) for name in CHEXBERT_FIVE])}
    hits, sizes = (truth & said).astype(float), truth.astype(float) + said

    def numbers(weights: np.ndarray) -> dict[str, float]:
        hit, size = weights @ hits, weights @ sizes
        by_label = np.divide(2 * hit, size, out=np.zeros(len(labels)), where=size > 0)
        values = {}
        for name, chosen in sets.items():
            total = size[chosen].sum()
            values[f"{group}/{name} labels, micro"] = 2 * hit[chosen].sum() / total if total else 0.0
            values[f"{group}/{name} labels, macro"] = by_label[chosen].mean()
        return values

    return numbers
