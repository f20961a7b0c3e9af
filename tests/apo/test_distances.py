"""How far two texts are apart: worked out by hand."""

import random
from collections import Counter

import pytest

from apo.distances import claim_distance, lcs_length, positions, text_measures, token_overlap, tokens_of, words
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


def test_text_measures_by_hand():
    a, b = tokens_of("**No** effusion, no edema."), tokens_of("No edema. Small effusion")
    # tokens: no effusion no edema / no edema small effusion; shared: no, edema, effusion; LCS: no edema
    assert text_measures(a, b) == (3 / 4, 3 / 4, 2 * 2 / 8)
    assert text_measures(tokens_of("edema edema edema"), tokens_of("edema")) == (1 / 3, 1.0, 2 / 4)
    assert text_measures(a, a) == (1.0, 1.0, 1.0)
    assert text_measures(tokens_of("**"), a) == (0.0, 0.0, 0.0)


def test_bit_parallel_lcs_is_that_of_the_textbook():
    def textbook(a, b):
        row = [0] * (len(b) + 1)
        for x in a:
            new = [0]
            for j, y in enumerate(b):
                new.append(row[j] + 1 if x == y else max(new[-1], row[j + 1]))
            row = new
        return row[-1]

    rng = random.Random(0)
    for _ in range(200):
        a, b = ([rng.choice("abcdef") for _ in range(rng.randrange(90))] for _ in range(2))
        assert lcs_length(positions(a), len(a), b) == textbook(a, b)
