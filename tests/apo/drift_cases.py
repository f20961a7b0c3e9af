"""Studies by teacher, and what drift finds in them."""

from apo.drift_measures import measure, merge
from apo.drift_results import results


def study(texts, *, name="s1", statuses=None, consensus=None, source="test"):
    """texts: {teacher: text}."""
    out = {
        "id": name,
        "patient": name,
        "source": source,
        "split": "train",
        "images": [f"films/{name}.png"],
        "prompt": "A chest film <image>. What is there?",
        "trajectories": [
            {"teacher": t, "text": text, "status": (statuses or {}).get(t, "ok")} for t, text in texts.items()
        ],
    }
    return out | ({"consensus": {"text": consensus, "strategy": "vote"}} if consensus else {})


def found(studies, permutations=20):
    return results(merge(None, measure(studies)), permutations=permutations, seed=0)
