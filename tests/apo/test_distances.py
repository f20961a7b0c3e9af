"""How far two texts are apart: worked out by hand."""

from collections import Counter

import pytest

from apo.distances import claim_distance, token_overlap, words
from data.findings import read_findings, summarise


@pytest.mark.parametrize(
    "a, b, want",
    [
        ("Left effusion.", "Left effusion. No edema.", 0.0),  # a denial and silence are the same
        ("Left effusion.", "No effusion.", 1.0),
        ("Left effusion.", "Right effusion.", 1.0),
        ("Left effusion.", "Bilateral effusions.", 0.5),
        ("Left effusion.", "Effusion.", 0.5),  # a vague text is not close to everybody
        ("Left effusion.", "Possible left effusion.", 0.5),
        ("Possible left effusion.", "Possible right effusion.", 0.5),
        ("Left effusion. Edema.", "Right effusion. Cardiomegaly.", 3.0),
        ("No acute cardiopulmonary abnormality.", "No edema. No effusion.", 0.0),
    ],
)
def test_claim_distance(a, b, want):
    a, b = summarise(read_findings(a)), summarise(read_findings(b))
    assert claim_distance(a, b) == claim_distance(b, a) == want
    assert claim_distance(a, a) == 0


def test_token_overlap_by_hand():
    bags = [Counter(words(t)) for t in ("No **edema**. No effusion.", "No edema", "")]
    assert token_overlap(bags[0], bags[1]) == 2 * 2 / (4 + 2)
    assert token_overlap(bags[0], bags[2]) == token_overlap(bags[2], bags[2]) == 0
