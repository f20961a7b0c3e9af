"""How many epochs of learning on the consensus cost as much as the critique, by the formulas of apo/flops.py."""

from pathlib import Path
from typing import Any, NamedTuple

from data.records import read_studies
from data.rows import ok_trajectories


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


def costs(shape: Any, lengths: Lengths, epochs: float) -> dict[str, float]:
    """FLOPs a study: of the whole critique of `epochs` (its reference computed once), and of one supervised epoch."""
    from apo import flops

    setup = flops.Setup(full=True, checkpointing=False, freeze_vit=False, freeze_aligner=False, element_bytes=4)
    number = round(lengths.trajectories)
    response = (lengths.consensus + lengths.trajectories * lengths.trajectory) / (lengths.trajectories + 1)
    study = flops.Study(round(lengths.prompt), round(lengths.film), round(response), number)
    (critique,) = [way for way in flops.critique_ways(shape, study, setup) if way.name == "shared"]
    short = flops.Study(round(lengths.prompt), round(lengths.film), round(lengths.consensus), 1)
    (learn,) = [way for way in flops.learn_ways(shape, short, setup) if way.name == "separate rows"]
    return {
        "critique": flops.training(critique, 1, epochs, cache=True),
        "supervised_epoch": flops.training(learn, 1, 1.0),
    }


def equal_epochs(student: Path, studies: Path, epochs: float, max_pixels: int) -> tuple[int, dict[str, Any]]:
    """(whole supervised epochs that cost what `epochs` of critique cost, the numbers behind it), at least 1."""
    from apo.shapes import PIXELS_A_TOKEN, folder_config, shape_of

    lengths = mean_lengths(student, studies, max_pixels // PIXELS_A_TOKEN)
    found = costs(shape_of(folder_config(student)), lengths, epochs)
    ratio = found["critique"] / found["supervised_epoch"]
    number = max(1, round(ratio))
    return number, {**found, "lengths": lengths._asdict(), "ratio": ratio, "epochs": number}
