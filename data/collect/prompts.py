"""What a teacher is asked. Two templates, or a text of your own in the config."""

from data.findings_lexicon import LABELS

DIAGNOSES = "{diagnoses}"

# The published data was made by the first way: the teachers were told the diagnoses and gave their basis. It measures
# how teachers justify, not whether they find; the second way gives nothing away.
TEMPLATES = {
    "given_diagnoses": (
        "The attached image is a patient's chest radiograph (several images belong to one study). "
        "The diagnoses of this study are: {diagnoses}.\n"
        "Explain the basis of each diagnosis: which findings on the film support it, on which side and where they lie, "
        "and how marked they are. Say also what speaks against it or cannot be judged on this film. "
        "Describe only what can be seen. Left and right are the patient's."
    ),
    "open": (
        "The attached image is a patient's chest radiograph (several images belong to one study). "
        "Describe step by step what can be seen: lungs, pleura, heart and mediastinum, bones, devices; for each "
        "finding its side, its place and how marked it is. Then say which diagnoses these findings support, and which "
        "important ones are absent or cannot be judged on this film. Left and right are the patient's."
    ),
}


def given_diagnoses(study: dict) -> list[str]:
    """Labels that the record's `findings` mark present, in the fixed order of LABELS."""
    findings = study.get("findings") or {}
    return [label for label in LABELS if (findings.get(label) or {}).get("state") == "present"]


def render(template: str, study: dict) -> str | None:
    """The text sent with the study's films; None when the template gives diagnoses and the record has none present."""
    if DIAGNOSES not in template:
        return template
    diagnoses = given_diagnoses(study)
    return template.replace(DIAGNOSES, ", ".join(diagnoses)) if diagnoses else None
