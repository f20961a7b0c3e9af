"""What a run of compare says of the studies that got no consensus."""

from collections import Counter

from apo.compare_summary import summary
from apo.consensus import vote
from tests.apo.voices import study


def test_why_there_is_no_consensus_and_who_was_not_heard():
    films = [
        study(["No pleural effusion."] * 2, name="agree"),
        study(["Bilateral pleural effusion.", "Left pneumothorax."], name="differ"),
        study(["I cannot interpret medical images.", "I am unable to interpret this image."], name="refuse"),
        study(["A film.", "Another film."], name="mute"),
    ]
    line = summary("vote", films, vote(films), Counter())
    assert line.startswith("vote: 4 studies, 1 with a consensus; without one: 2 nothing readable in the trajectories, ")
    assert "1 no finding on which its teachers agree; trajectories without a vote: 2 refused by its text" in line
