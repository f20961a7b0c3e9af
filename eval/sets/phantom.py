"""The phantom cohort as a labelled set: its first film of each study, the truth that the films were drawn from."""

from pathlib import Path

from data.findings_lexicon import LABELS as ALL
from data.records import image_paths
from eval import phantom_items, presence
from eval.sets import Film, FilmSet, chexpert

OPTIONS = phantom_items.OPTIONS
NO_FINDING = "No Finding"


def read(root: Path, chosen: dict) -> FilmSet:
    studies, folder, fingerprint = phantom_items.read(root, chosen)
    truths = [presence.read_truth(study) for study in studies]
    labels = [label for label in ALL if label != NO_FINDING and any(label in truth for truth in truths)]
    films = [
        Film(
            study["id"],
            study["patient"],
            study["id"],
            image_paths(study, folder)[0],
            frozenset(label for label in labels if presence.is_present(truth, label)),
        )
        for study, truth in zip(studies, truths, strict=True)
    ]
    positives = {label: sum(label in film.labels for film in films) for label in labels}
    protocol = {"films": f"first film of each study of split {chosen['split']}", "labels_from": "the drawn findings"}
    phrases = {label: chexpert.LABELS[label] for label in labels}
    return FilmSet(phrases, films, fingerprint | {"positives": positives}, protocol, ["simulated films"])
