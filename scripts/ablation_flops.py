"""How many epochs of a cheaper training cost as much as the critique with all trajectories, by apo/flops.py."""

from pathlib import Path
from typing import Any, NamedTuple

from apo import flops
from apo.shapes import PIXELS_A_TOKEN, Shape, folder_config, shape_of
from data.records import read_studies
from data.rows import ok_trajectories

# The phantom configs': everything is trained, in float32.
SETUP = flops.Setup(full=True, checkpointing=False, freeze_vit=False, freeze_aligner=False, element_bytes=4)


class Lengths(NamedTuple):
    """Mean tokens of the training studies: prompt with film, film, consensus, trajectory; and trajectories a study."""

    prompt: float
    film: float
    consensus: float
    trajectory: float
    trajectories: float


def mean_lengths(student: Path, studies: Path, film: int) -> Lengths:
    """Count the training split with the student's tokenizer. `film`: tokens of a film."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(student / "tokenizer.json"))

    def count(text: str) -> int:
        return len(tokenizer.encode(text).ids) + 1  # the end of the turn

    # ms-swift's Qwen2.5-VL template around a prompt
    around = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n\n<|im_start|>assistant\n"

    train = [study for study in read_studies(studies) if study["split"] == "train" and study.get("consensus")]
    trajectories = [one["text"] for study in train for one in ok_trajectories(study)]
    prompts = [count(study["prompt"]) for study in train]
    consensus = [count(study["consensus"]["text"]) for study in train]
    return Lengths(
        sum(prompts) / len(prompts) + count(around) + film,
        film,
        sum(consensus) / len(consensus),
        sum(map(count, trajectories)) / len(trajectories),
        len(trajectories) / len(train),
    )


def costs(shape: Shape, lengths: Lengths) -> tuple[float, float]:
    """FLOPs a study of the critique: (one epoch of the policy, the reference's pass that is made once)."""
    number = round(lengths.trajectories)
    response = (lengths.consensus + lengths.trajectories * lengths.trajectory) / (lengths.trajectories + 1)
    study = flops.Study(round(lengths.prompt), round(lengths.film), round(response), number)
    (way,) = [way for way in flops.critique_ways(shape, study, SETUP) if way.name == "shared"]
    return sum(way.policy), sum(way.reference)


def supervised_cost(shape: Shape, lengths: Lengths) -> float:
    """FLOPs a study of one epoch of learning on the consensus alone."""
    short = flops.Study(round(lengths.prompt), round(lengths.film), round(lengths.consensus), 1)
    (way,) = [way for way in flops.learn_ways(shape, short, SETUP) if way.name == "separate rows"]
    return sum(way.policy)


def equal_epochs(
    student: Path, studies: Path, epochs: float, max_pixels: int, own_studies: Path | None = None
) -> tuple[int, dict[str, Any]]:
    """(whole epochs that cost what `epochs` of critique on `studies` cost, the numbers behind it), at least 1.

    Args:
        own_studies: the study file of a critique with other negatives, whose epochs are wanted; None for epochs of
            learning on the consensus.
    """
    shape, film = shape_of(folder_config(student)), max_pixels // PIXELS_A_TOKEN
    lengths = mean_lengths(student, studies, film)
    epoch, once = costs(shape, lengths)
    numbers: dict[str, Any] = {"critique": epochs * epoch + once, "lengths": lengths._asdict()}
    if own_studies:
        own = mean_lengths(student, own_studies, film)
        numbers["own_epoch"], numbers["own_reference"] = costs(shape, own)
        numbers["own_lengths"] = own._asdict()
    else:
        numbers["own_epoch"], numbers["own_reference"] = supervised_cost(shape, lengths), 0.0
    ratio = (numbers["critique"] - numbers["own_reference"]) / numbers["own_epoch"]
    number = max(1, round(ratio))
    return number, {**numbers, "ratio": ratio, "epochs": number}
