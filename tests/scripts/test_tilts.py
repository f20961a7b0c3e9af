"""Consensus over random splits of the published accuracies: the votes have them, and the scores are by hand."""

import json

import numpy as np
import pytest

from data.errors import UserError
from data.phantom.teachers import FIVE, MANNERS, PREVALENCE, PUBLISHED_ACCURACY, TEACHERS, TILT
from scripts import tilts


def test_every_split_has_the_published_accuracies():
    truth = tilts.truths(4000, 1, 3)
    rng = np.random.default_rng(0)
    for tilt in (TILT, dict.fromkeys(TEACHERS, 0.0), dict.fromkeys(TEACHERS, -0.9)):
        votes = tilts.vote(truth, tilt, rng)
        for t, name in enumerate(TEACHERS):
            spoke = votes[:, t, 0] >= 0
            assert 1 - spoke.mean() == pytest.approx(MANNERS[name][1], abs=0.02)
            for i, label in enumerate(FIVE):
                # The truth's own share of a finding moves the accuracy of a tilted teacher by up to as much.
                drawn = abs(truth[:, i].mean() - PREVALENCE[label])
                right = (votes[spoke, t, i] == truth[spoke, i]).mean()
                assert right == pytest.approx(PUBLISHED_ACCURACY[name][i], abs=0.025 + drawn), (name, label)


def test_scores_by_hand():
    truth = np.zeros((6, 8), dtype=bool)
    truth[:3, :5] = True  # each finding on the first three films
    votes = np.repeat(truth[:, None, :], 7, 1).astype(int)
    votes[5, 0, 4] = 1  # one teacher errs once; another refuses a scored film
    votes[4, 1, :] = -1
    found = tilts.score(truth, votes, 4, [1], np.random.default_rng(0))
    assert {value for name, value in found.items() if "wrong" not in name} == {1.0}
    votes[:, :, 4] = 1 - truth[:, None, 4]  # all are wrong on the last finding
    votes[4, 1, :] = -1
    found = tilts.score(truth, votes, 4, [1], np.random.default_rng(0))
    assert found["vote"] == pytest.approx(0.8) and found["best teacher"] == pytest.approx(0.8)
    low = {"dawid_skene": 0.5, "dawid_skene, worst finding": 0.2, "vote": 0.4, "best teacher": 0.48}
    high = {"dawid_skene": 0.95, "dawid_skene, worst finding": 0.9, "vote": 0.8, "best teacher": 0.7}
    low |= {"2 labels": 0.92, "2 labels, worst finding": 0.6}
    high |= {"2 labels": 0.72, "2 labels, worst finding": 0.4}
    shares = tilts.summary([low, high])
    assert shares["dawid_skene above the best teacher"] == 1.0 and shares["dawid_skene above it by 5 points"] == 0.5
    assert shares["dawid_skene at .90 or more"] == shares["dawid_skene, a finding turned round"] == 0.5
    assert shares["2 labels above the best teacher"] == 1.0 and shares["2 labels above it by 5 points"] == 0.5
    assert shares["2 labels at .90 or more"] == shares["2 labels, a finding turned round"] == 0.5
    assert shares["2 labels, median"] == pytest.approx(0.82)
    assert shares["vote above the best teacher"] == 0.5 and shares["dawid_skene, median"] == pytest.approx(0.725)


def test_labels_turn_round_what_agreement_has_the_wrong_way():
    truth = tilts.truths(600, 200, 0)
    found = tilts.score(
        truth,
        tilts.vote(truth, dict.fromkeys(TEACHERS, -0.5), np.random.default_rng(0)),
        200,
        [50],
        np.random.default_rng(1),
    )
    assert found["dawid_skene, worst finding"] < 0.2 and found["dawid_skene"] < found["best teacher"]
    assert found["50 labels, worst finding"] > 0.7 and found["50 labels"] > found["best teacher"] + 0.1
    assert found["50 labels, some wrong"] > found["best teacher"] + 0.1


def test_the_command_is_repeatable_and_refuses_what_is_no_number(tmp_path, capsys):
    words = ["--splits", "2", "--films", "60", "--test", "20", "--out", str(tmp_path / "a/one.json")]
    tilts.main(words)
    tilts.main([*words[:-1], str(tmp_path / "two.json")])
    assert (tmp_path / "a/one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert json.loads((tmp_path / "two.json").read_text())["random"]["splits"] == 2
    (tmp_path / "file").touch()
    capsys.readouterr()
    with pytest.raises(UserError, match="file/t.json: cannot be written"):
        tilts.main([*words[:-1], str(tmp_path / "file/t.json")])
    assert capsys.readouterr().out == "", "before anything is computed"
    with pytest.raises(UserError, match="--splits 0"):
        tilts.main(["--splits", "0"])
    with pytest.raises(UserError, match="--labels 61: must be from 1 to the 60 --films"):
        tilts.main([*words, "--labels", "61"])
    with pytest.raises(UserError, match="--seed -1"):
        tilts.main(["--seed", "-1"])
