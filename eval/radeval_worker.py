"""Runs RadEval in its own environment; started by eval/clinical.py, never imported. Imports nothing of this repository.

    PYTHON -P eval/radeval_worker.py IN.json OUT.json

IN: {"metrics": ["chexbert", "radgraph", "radcliq", "green"], "references": [text], "hypotheses": [text]}.
OUT: {"versions": {package: version}, "results": {...}}, or {"error": "..."} with exit status 1. Results, one entry a
text: "chexbert": {"labels": [14 names], "references": [[1 present, -1 uncertain, 0 neither]], "hypotheses": [...]};
"radgraph_simple", "radgraph_partial", "radgraph_complete", "radcliq", "green": [number, or null where there is none].
"""

import importlib.metadata
import json
import math
import sys

PACKAGES = ("radeval", "torch", "transformers", "numpy")
# RadEval's key of a metric -> the key here. Its aggregates are not used: radcliq_v1's is the inverse of the mean.
KEYS = {
    "radgraph": {name: name for name in ("radgraph_simple", "radgraph_partial", "radgraph_complete")},
    "radcliq": {"radcliq_v1": "radcliq"},
    "green": {"green": "green"},
}


def chexbert(references, hypotheses):
    """CheXbert's labels of all texts. The F1 is not RadEval's, which knows one treatment of uncertain labels only."""
    import torch
    from radeval.metrics.f1chexbert.f1chexbert import F1CheXbert

    scorer = F1CheXbert(device="cuda" if torch.cuda.is_available() else "cpu")
    return {
        "labels": list(scorer.TARGET_NAMES),
        "references": scorer.get_labels(references, mode="classification"),
        "hypotheses": scorer.get_labels(hypotheses, mode="classification"),
    }


def number(value):
    value = float("nan") if value is None else float(value)
    return value if math.isfinite(value) else None


def run(given):
    references, hypotheses = given["references"], given["hypotheses"]
    results = {}
    for metric in given["metrics"]:
        if metric == "chexbert":
            results["chexbert"] = chexbert(references, hypotheses)
            continue
        from radeval import RadEval

        # One metric at a time, so that two models are never in memory together.
        scores = RadEval(metrics=[metric], per_sample=True)(refs=references, hyps=hypotheses)
        for theirs, ours in KEYS[metric].items():
            results[ours] = [number(value) for value in scores[theirs]]
    return results


def versions():
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def main():
    source, target = sys.argv[1:]
    with open(source, encoding="utf-8") as file:
        given = json.load(file)
    try:
        out = {"versions": versions(), "results": run(given)}
    except Exception as error:  # whatever RadEval, torch or the Hub raise; told to the caller in one line
        out = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    with open(target, "w", encoding="utf-8") as file:
        json.dump(out, file, allow_nan=False)
    return 1 if "error" in out else 0


if __name__ == "__main__":
    sys.exit(main())
