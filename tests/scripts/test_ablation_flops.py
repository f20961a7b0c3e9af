import pytest

from apo import flops
from apo.shapes import Shape
from data.records import write_studies
from scripts.ablation_flops import Lengths, costs, mean_lengths
from tests.eval.cases import study, trajectory

TINY = Shape(128, 3, 4, 128, 64, 256, 2048, 96, 3, 256, 1176, 64, 1)


def test_the_critique_counts_its_reference_once():
    lengths = Lengths(60, 16, 20, 50, 7)
    one, three = (costs(TINY, lengths, epochs)["critique"] for epochs in (1.0, 3.0))
    setup = flops.Setup(full=True, checkpointing=False, freeze_vit=False, freeze_aligner=False)
    (way,) = [w for w in flops.critique_ways(TINY, flops.Study(60, 16, 46, 7), setup) if w.name == "shared"]
    assert three - one == pytest.approx(2 * sum(way.policy))
    assert one == pytest.approx(way.total)


def test_equal_epochs_follow_the_number_and_length_of_the_trajectories():
    def ratio(*lengths):
        found = costs(TINY, Lengths(*lengths), 3.0)
        return found["critique"] / found["supervised_epoch"]

    assert ratio(60, 16, 20, 50, 1) < ratio(60, 16, 20, 50, 7) < ratio(60, 16, 20, 100, 7)
    assert 9 < ratio(63, 16, 22, 54, 7) < 20


def test_lengths_are_those_of_the_training_studies(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(WordLevel({"x": 0}, unk_token="x"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
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
