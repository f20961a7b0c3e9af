"""Studies with what teachers say of them, drawn votes, and what a consensus says."""

import numpy as np

from data.findings import read_findings, summarise

TEACHERS = ("alpha", "beta-2", "gamma", "delta", "epsilon")


def study(texts, *, name="s1", statuses=None):
    trajectories = [
        {"teacher": t, "text": text, "status": (statuses or {}).get(t, "ok")}
        for t, text in zip(TEACHERS, texts, strict=False)
    ]
    return {
        "id": name,
        "patient": name,
        "source": "test",
        "split": "train",
        "images": ["films/a.png"],
        "prompt": "A chest film <image>. What is there?",
        "trajectories": trajectories,
    }


def said(result):
    return {k: v for k, v in summarise(read_findings(result["text"])).items()}


def simulate(rng, items, sensitivity, specificity, prevalence, missing=0.0):
    truth = rng.random(items) < prevalence
    hit = rng.random((items, len(sensitivity)))
    votes = np.where(truth[:, None], hit < np.array(sensitivity), hit >= np.array(specificity)).astype(np.int8)
    votes[rng.random(votes.shape) < missing] = -1
    return truth, votes


def misled(rng, items=600):
    """Votes of which most are wrong, and the truth: four teachers call it seldom where it is, and often where not."""
    return simulate(rng, items, [0.9, 0.85, 0.2, 0.15, 0.2, 0.25], [0.9, 0.9, 0.3, 0.25, 0.2, 0.3], 0.35)


def cohort(seed, n=400):
    """Five teachers of known rates, who always speak of three findings; (studies, truth)."""
    rng = np.random.default_rng(seed)
    names = {"Pleural Effusion": "pleural effusion", "Edema": "pulmonary edema", "Consolidation": "consolidation"}
    sens, spec, sides = [0.95, 0.3, 0.35, 0.9, 0.3], [0.7, 0.95, 0.95, 0.8, 0.95], [0.95, 0.9, 0.9, 0.95, 0.1]
    forms = ("{}.", "There is {}.", "- **{}** is seen.", "{} noted.", "{} is evident.")
    studies, truth = [], []
    for s in range(n):
        facts = {k: str(rng.choice(["left", "right"])) if rng.random() < 0.5 else None for k in names}
        texts = []
        for t in range(5):
            lines = []
            for label, side in facts.items():
                present = rng.random() < (sens[t] if side else 1 - spec[t])
                told = side or "left"
                told = told if rng.random() < sides[t] else {"left": "right", "right": "left"}[told]
                phrase = f"{told} {names[label]}" if present else f"no {names[label]}"
                lines.append(forms[t].format(phrase[0].upper() + phrase[1:] if forms[t][0] != "T" else phrase))
            texts.append("\n".join(lines))
        studies.append(study(texts, name=f"s{s}"))
        truth.append(facts)
    return studies, truth
