import json

import pytest

from apo import flops
from apo.shapes import Shape
from data.records import write_studies
from scripts.ablation_flops import Lengths, costs, equal_epochs, mean_lengths, supervised_cost
from tests.eval.cases import study, trajectory

TINY = Shape(128, 3, 4, 128, 64, 256, 2048, 96, 3, 256, 1176, 64, 1)


def test_a_critique_costs_its_policy_each_epoch_and_its_reference_once():
    epoch, once = costs(TINY, Lengths(60, 16, 20, 50, 7))
    setup = flops.Setup(full=True, checkpointing=False, freeze_vit=False, freeze_aligner=False)
    (way,) = [w for w in flops.critique_ways(TINY, flops.Study(60, 16, 46, 7), setup) if w.name == "shared"]
    assert (epoch, once) == (pytest.approx(sum(way.policy)), pytest.approx(sum(way.reference)))


def test_equal_epochs_follow_the_number_and_length_of_the_trajectories():
    def ratio(*numbers):
        lengths = Lengths(*numbers)
        epoch, once = costs(TINY, lengths)
        return (3 * epoch + once) / supervised_cost(TINY, lengths)

    assert ratio(60, 16, 20, 50, 1) < ratio(60, 16, 20, 50, 7) < ratio(60, 16, 20, 100, 7)
    assert 9 < ratio(63, 16, 22, 54, 7) < 20


def test_fewer_negatives_have_more_epochs_for_the_same_flops(tmp_path):
    word_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))

    def write(name, teachers):
        trajectories = [trajectory(teacher, "one two three four") for teacher in "abcdefg"[:teachers]]
        write_studies(tmp_path / name, [study(0, {}, trajectories, split="train", consensus="a b")])
        return tmp_path / name

    seven, one = write("seven.jsonl", 7), write("one.jsonl", 1)
    same, numbers = equal_epochs(tmp_path, seven, 10.0, 12544, seven)
    assert same == 10 and numbers["ratio"] == pytest.approx(10)
    more, numbers = equal_epochs(tmp_path, seven, 10.0, 12544, one)
    assert numbers["own_lengths"]["trajectories"] == 1 and numbers["lengths"]["trajectories"] == 7
    spent = numbers["own_reference"] + numbers["ratio"] * numbers["own_epoch"]
    assert spent == pytest.approx(numbers["critique"])
    most, _ = equal_epochs(tmp_path, seven, 10.0, 12544)
    assert 10 < more < most


def word_tokenizer(folder):
    """A tokenizer.json in `folder` that counts words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(WordLevel({"x": 0}, unk_token="x"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


def test_lengths_are_those_of_the_training_studies(tmp_path):
    word_tokenizer(tmp_path)
    studies = [
        study(
            0, {}, [trajectory("a", "one two three"), trajectory("b", "one", "refused")], split="train", consensus="a b"
        ),
        study(1, {}, [trajectory("a", "one"), trajectory("b", "one two")], split="train", consensus="a b c d"),
        study(2, {}, [trajectory("a", "one " * 50)], split="test", consensus="a b"),
    ]
    write_studies(tmp_path / "s.jsonl", studies)
    found = mean_lengths(tmp_path, tmp_path / "s.jsonl", 16)
    assert found.consensus == 4 and found.trajectory == 3 and found.trajectories == 1.5  # with the end of the turn
    assert found.prompt == 16 + (len(studies[0]["prompt"].split()) + 1) + (8 + 1)


@pytest.mark.parametrize(("epochs", "wanted"), [(9.0, 10), (0.1, 1)])
def test_epochs_are_the_nearest_whole_number_of_at_least_one(tmp_path, monkeypatch, epochs, wanted):
    for name in ("shape_of", "folder_config"):
        monkeypatch.setattr(f"scripts.ablation_flops.{name}", lambda _: None)
    monkeypatch.setattr("scripts.ablation_flops.mean_lengths", lambda *_: Lengths(60, 16, 20, 50, 7))
    monkeypatch.setattr("scripts.ablation_flops.costs", lambda *_: (1.0, 0.6))
    monkeypatch.setattr("scripts.ablation_flops.supervised_cost", lambda *_: 1.0)
    assert equal_epochs(tmp_path, tmp_path, epochs, 12544)[0] == wanted
