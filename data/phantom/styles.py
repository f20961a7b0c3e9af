"""Wording: how each simulated teacher, the consensus and the radiologist of the phantom cohort write findings down.

`teacher_text(claims, style, rng)` writes any claims in any style. It needs of a claim `label`, `state` and `side`
(data.findings.Claim will do) and uses `severity` where there is one. Formats and lengths differ between the styles as
those of real models do (headings, bullets, numbers, bold, prose); no sentence is taken from a real model's answer.
"""

from data.findings_lexicon import FIVE, LABELS

NAMES = {
    "Consolidation": "consolidation",
    "Pleural Effusion": "pleural effusion",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
    "Edema": "pulmonary edema",
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Support Devices": "support devices",
}
# What one sees when the finding is there: {side} is "left ", {base} "the left base", {lung} "in the left lung".
SIGNS = {
    "Consolidation": ("a homogeneous white lobe {lung}", "dense lobar airspace filling {lung} hides the vessels"),
    "Pleural Effusion": ("blunting of {angle}", "a meniscus at {base}"),
    "Pneumonia": ("patchy ill-defined shadows {lung}", "several fluffy airspace foci {lung}"),
    "Pneumothorax": ("a thin visceral pleural line {on}", "a lucent rim outside the pleural line {on}"),
    "Edema": ("bat-wing haze {lung}", "Kerley B lines {lung}"),
    "Atelectasis": ("linear bands at {base}", "volume loss at {base}"),
    "Cardiomegaly": ("an enlarged cardiac silhouette", "an increased cardiothoracic ratio"),
    "Support Devices": ("a tube, line or pacemaker in place", "indwelling hardware projected over the chest"),
}
# What one sees instead when it is not.
CLEAR = {
    "Consolidation": ("vessels stay visible in every lobe", "each lobe is aerated"),
    "Pleural Effusion": ("the costophrenic angles are sharp", "both hemidiaphragms are outlined"),
    "Pneumonia": ("the airspaces are evenly aerated", "both lungs have an even texture"),
    "Pneumothorax": ("lung markings reach the chest wall", "vessels run to the periphery"),
    "Edema": ("the perihilar vessels are crisp", "the hila have sharp outlines"),
}
PLURAL = {"Support Devices"}
COUNTED = {"Pleural Effusion", "Pneumothorax"}  # take an article: "a small left pleural effusion"


def teacher_text(claims, style, rng):
    """Write `claims` as one answer.

    Args:
        claims: in the order to be told (the consensus style sorts them).
        style: a key of STYLES.
        rng: numpy Generator, chooses between the style's wordings.
    Returns str. KeyError for an unknown style.
    """
    return STYLES[style](list(claims), rng)


def words(claim, rng):
    """Fragments of one claim: name, Name, side ("left " or ""), on, lung, base, angle, severity ("small "), sign."""
    name, side = NAMES[claim.label], claim.side
    severity = getattr(claim, "severity", None)
    both = side == "bilateral"
    part = {
        "name": name,
        "Name": claim.label,
        "a": "a " if claim.label in COUNTED else "",
        "is": "are" if claim.label in PLURAL else "is",
        "side": f"{side} " if side else "",
        "on": "" if not side else "on both sides" if both else f"on the {side}",
        "lung": "" if not side else "in both lungs" if both else f"in the {side} lung",
        "base": "both lung bases" if both else f"the {side} lung base" if side else "the lung base",
        "angle": "both costophrenic angles" if both else f"the {side + ' ' if side else ''}costophrenic angle",
        "severity": f"{severity} " if severity else "",
    }
    pool = SIGNS[claim.label] if claim.state == "present" else CLEAR.get(claim.label, ("nothing of the kind is seen",))
    part["sign"] = " ".join(pool[int(rng.integers(len(pool)))].format(**part).split())
    return part


def present(claim):
    """Is the finding claimed to be there?"""
    return claim.state == "present"


def cap(text):
    """First letter upper case, the rest as it is."""
    return text[:1].upper() + text[1:]


def pick(rng, *options):
    """One of the options."""
    return options[int(rng.integers(len(options)))]


def seldom(rng):
    """True for one claim in five, whose sign is told as well.

    Text is what a student of this size spends its time on: the simulated answers keep the forms of real ones and are
    several times shorter.
    """
    return rng.random() < 0.2


def _headings(claims, rng):
    lines = [pick(rng, "My observations:", "On this X-ray:")]
    for claim in claims:
        w = words(claim, rng)
        if present(claim):
            more = f"\n- {cap(w['sign'])}" if seldom(rng) else ""
            lines.append(f"**{w['Name']}:** " + (f"{w['severity']}{w['side']}".strip() or "present") + more)
        else:
            lines.append("**{Name}:** none".format(**w))
    return "\n".join(lines)


def _bullets(claims, rng):
    lines = [pick(rng, "Key findings:", "Main points:")]
    for claim in claims:
        w = words(claim, rng)
        if present(claim):
            lines.append(cap(pick(rng, "{severity}{side}{name}", "{severity}{side}{name} noted").format(**w)))
        else:
            lines.append("No {name}".format(**w))
    return "\n- ".join(lines)


def _numbered_prose(claims, rng):
    blocks = [pick(rng, "Key imaging features:", "We go through the features:")]
    for number, claim in enumerate(claims, 1):
        w = words(claim, rng)
        if present(claim):
            text = "There {is} {a}{severity}{side}{name}" + (": {sign}." if seldom(rng) else ".")
        else:
            text = pick(rng, "No {name}", "No {name} seen") + ("; {sign}." if rng.random() < 0.1 else ".")
        blocks.append(f"{number}. " + text.format(**w))
    return "\n".join(blocks)


def _verdicts(claims, rng):
    lines = [pick(rng, "Chest DR findings:", "Findings:")]
    for claim in claims:
        w = words(claim, rng)
        if present(claim):
            where = f"{w['side'].strip()}, " if w["side"] else ""
            more = f" {cap(w['sign'])}." if seldom(rng) else ""
            lines.append(f"* {w['Name']}: {where}{w['severity'].strip() or 'present'}.{more}")
        else:
            lines.append(f"* {w['Name']}: absent.")
    return "\n".join(lines)


def _plain(claims, rng):
    start = pick(rng, "As far as this image shows, ", "From the image, ")
    parts, negatives = [], []
    for claim in [*claims, None]:
        if claim is not None and not present(claim):
            negatives.append(NAMES[claim.label])
            continue
        if negatives:
            parts.append(f"no {_and(negatives, 'or')}")
            negatives = []
        if claim is not None:
            parts.append("{severity}{side}{name}".format(**words(claim, rng)))
    return start + ("; ".join(parts) or "nothing can be said") + "."


def _ticks(claims, rng):
    lines = [pick(rng, "The image shows:", "Assessment:")]
    for claim in claims:
        w = words(claim, rng)
        if present(claim):
            seen = " ".join(f"{w['side']}{w['severity']}".split()) or "seen"
            more = f"; {w['sign']}" if seldom(rng) else ""
            lines.append(f"✔ {cap(w['name'])}: {seen}{more}.")
        else:
            lines.append(f"✘ {cap(w['name'])}: absent.")
    shown = [NAMES[claim.label] for claim in claims if present(claim)]
    tail = f"\n**Summary:** {cap(_and(shown))}." if shown and seldom(rng) else ""
    return "\n".join(lines) + tail


def _numbered(claims, rng):
    lines = [pick(rng, "Concise and objective.", "Here is what I see.")]
    for number, claim in enumerate(claims, 1):
        w = words(claim, rng)
        if present(claim):
            text = "{name} {on}, {severity}" if w["severity"] else "{name} present {on}"
            text = (
                " ".join((text + (": {sign}" if seldom(rng) else "")).format(**w).split())
                .replace(" ,", ",")
                .replace(" :", ":")
            )
        else:
            text = "no {name}".format(**w)
        lines.append(f"{number}. {cap(text)}.")
    return "\n".join(lines)


def _consensus(claims, rng):
    order = (*FIVE, *(label for label in LABELS if label not in FIVE))
    sentences = []
    for claim in sorted(claims, key=lambda one: order.index(one.label)):
        w = words(claim, rng)
        if present(claim):
            sentences.append(cap("{severity}{side}{name}.".format(**w)))
        else:
            sentences.append("No {name}.".format(**w))
    return " ".join(sentences)


def _and(names, last="and"):
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"


STYLES = {
    "sonnet-4": _headings,
    "gpt-5-nano": _bullets,
    "glm-4.5v": _numbered_prose,
    "gemini-2.5-flash-lite": _verdicts,
    "moonshot-v1": _plain,
    "qwen-vl-max": _ticks,
    "grok-4": _numbered,
    "consensus": _consensus,
}

REFUSALS = (
    "I'm sorry, but I can't interpret medical images. Please consult a qualified radiologist.",
    "As an AI, I am not able to read this X-ray or give a diagnosis. A trained physician should review it.",
    "I cannot provide an interpretation of this chest image. Please seek advice from a medical professional.",
)


def refusal(rng):
    """An answer that declines to read the film."""
    return pick(rng, *REFUSALS)


def report_text(findings, compared):
    """A short radiologist's report of the truth; `compared` says that an earlier film exists."""
    change = {"improving": "decreased", "stable": "unchanged", "worsening": "increased"}
    positive, negative, impression = [], [], []
    for label in (*FIVE, *(label for label in findings if label not in FIVE)):
        row = findings[label]
        name = NAMES[label]
        since = f", {change[row['progression']]} since the prior film" if compared and row.get("progression") else ""
        if row["state"] == "present":
            what = " ".join(part for part in (row.get("severity"), row.get("side"), name) if part)
            positive.append(f"{cap(what)}{since}.")
            impression.append(what)
        elif since:
            negative.append(f"No {name}; it has resolved since the prior film.")
        elif label in FIVE:
            negative.append(f"No {name}.")
    closing = f"{cap(_and(impression))}." if impression else "No acute cardiopulmonary abnormality."
    return f"FINDINGS: {' '.join(positive + negative)} IMPRESSION: {closing}"
