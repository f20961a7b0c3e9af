"""What a run of compare says of its consensuses, a line each."""

from collections import Counter
from collections.abc import Sequence

from apo.heard import hear
from apo.labels import Labels
from data.findings_lexicon import ORDER

VERDICTS = {"turned": "turned round", "kept": "confirmed", "undecided": "too few labels to tell"}


def summary(strategy: str, studies: Sequence[dict], results: Sequence[dict | None], failed: Counter) -> str:
    """One line: how many studies, how many consensuses, and why the others have none."""
    counts: Counter = Counter(failed)
    single = dropped = same = 0
    for study, result in zip(studies, results, strict=True):
        texts = [t["text"].split() for t in study["trajectories"] if t["status"] == "ok"]
        if result is None:
            counts["no ok trajectory"] += not texts
            continue
        single += len(texts) == 1
        dropped += bool(result["audit"].get("dropped"))
        same += result["text"].split() in texts
    mute: Counter = Counter(t["status"] for s in studies for t in s["trajectories"] if t["status"] != "ok")
    readable = 0
    for study, result in zip(studies, results, strict=True):  # ok by status, a refusal by its text
        ok = {t["teacher"] for t in study["trajectories"] if t["status"] == "ok"}
        heard = None if result else hear(study)
        mute["refused by its text"] += len(ok & (heard.unheard if heard else result["audit"]["unheard"]).keys())
        readable += bool(heard and any(heard.says.values()))
    made = sum(r is not None for r in results)
    rest = len(results) - made - sum(counts.values())
    if rest:
        counts["nothing readable in the trajectories"] = rest - min(rest, readable)
        counts["no finding on which its teachers agree"] = min(rest, readable)
    line = f"{strategy}: {len(results)} studies, {made} with a consensus"
    reasons = [f"{n} {why}" for why, n in counts.items() if n]
    line += f"; without one: {', '.join(reasons)}" if reasons else ""
    voteless = ", ".join(f"{n} {why}" for why, n in sorted(mute.items()) if n)
    line += f"; trajectories without a vote: {voteless}" if voteless else ""
    line += f"; from one teacher only (N = 1): {single}" if single else ""
    line += f"; shortened by whole trajectories to fit the context: {dropped}" if dropped else ""
    line += f"; equal to one of the trajectories: {same}" if same else ""
    return line


def label_summary(labels: Labels, results: Sequence[dict | None]) -> str:
    """One line: how many labels were used and left out, and what they said to each finding."""
    said: dict[str, str] = {}
    for result in filter(None, results):
        said |= {label: one["labels"] for label, one in result["audit"]["findings"].items() if "labels" in one}
    line = f"labels: {len(labels.known)} film(s)"
    line += f"; not used: {', '.join(f'{n} {why}' for why, n in labels.left.items())}" if labels.left else ""
    for verdict, words in VERDICTS.items():
        line += f"; {words}: {', '.join(label for label in ORDER if said.get(label) == verdict) or 'none'}"
    return line
