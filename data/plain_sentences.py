"""A finding's state and side -> the fixed sentence that says it, which data/findings.py reads back."""

from data.findings_lexicon import LABELS

NAMES = {label: label.lower() for label in LABELS} | {
    "Edema": "pulmonary edema",
    "Enlarged Cardiomediastinum": "widened mediastinum",
    "Pleural Other": "pleural thickening",
    "No Finding": "acute cardiopulmonary abnormality",
}


def plain_sentence(label: str, state: str, side: str | None) -> str:
    """The fixed sentence for a decision; data.findings reads it back as that decision.

    >>> plain_sentence("Pleural Effusion", "present", "left"), plain_sentence("Edema", "absent", None)
    ('Left pleural effusion.', 'No pulmonary edema.')
    """
    if label == "No Finding":
        return {"present": "No acute cardiopulmonary abnormality.", "uncertain": "Possibly normal chest radiograph."}[
            state
        ]
    words = {"absent": ["no"], "uncertain": ["possible"], "present": []}[state]
    words += [side] if side and state != "absent" else []
    sentence = " ".join([*words, NAMES[label]])
    return sentence[0].upper() + sentence[1:] + "."
