"""Lessons in sight for a student whose vision tower has random weights: films in, how light their squares are out.

    python -m scripts.sight STUDIES.jsonl --out ROWS.jsonl

A 7B instruct model can see before it is trained; a tiny one first has to learn it, and then looks at films decide what
a row of the ablation gives, more than its loss does. A lesson is a training film and, for each square of 14 x 14 pixels
(one patch of the vision tower), a digit for its mean and one for its standard deviation, in tenths of all squares of
all training films. They are computed from the pixels: no truth of the cohort, nothing that its teachers said and no
word of medicine is in a lesson.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.errors import UserError, run_cli
from data.files import atomic_open, dump_line, refuse_input
from data.phantom.student import PATCH
from data.records import image_paths, read_studies, require_images, root_of
from data.row_checks import turn

EDGE = 112  # pixels: the film as configs/*_phantom.yaml show it (max_pixels 12544)
PROMPT = "<image>How light and how uneven is each square of this picture?"
LEVELS = 10


def squares(path: str) -> np.ndarray:
    """[2, 8, 8] float32: mean and standard deviation of each square, in gray levels."""
    with Image.open(path) as image:
        film = np.asarray(image.convert("L").resize((EDGE, EDGE), Image.Resampling.BICUBIC), dtype=np.float32)
    side = EDGE // PATCH
    cells = film.reshape(side, PATCH, side, PATCH)
    return np.stack([cells.mean(axis=(1, 3)), cells.std(axis=(1, 3))])


def borders(films: np.ndarray) -> np.ndarray:
    """[2, 9]: what parts the squares of all films, [F, 2, 8, 8], into ten groups of equal size."""
    steps = np.linspace(0, 1, LEVELS + 1)[1:-1]
    return np.stack([np.quantile(films[:, kind], steps) for kind in range(2)])


def answer(film: np.ndarray, limits: np.ndarray) -> str:
    """Two blocks of eight words of eight digits, the top row of squares first: "light 0016... grain 7173..."."""
    blocks = []
    for name, values, limit in zip(("light", "grain"), film, limits, strict=True):
        words = ["".join(map(str, row)) for row in np.searchsorted(limit, values).tolist()]
        blocks.append(" ".join([name, *words]))
    return " ".join(blocks)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.sight", description=__doc__.split("\n")[0])
    parser.add_argument("studies", type=Path, metavar="STUDIES.jsonl", help="whose training films are looked at")
    parser.add_argument("--out", type=Path, required=True, help="rows for the Learn launcher")
    args = parser.parse_args(argv)
    refuse_input(args.out, args.studies)
    root = root_of(args.studies)
    train = [study for study in read_studies(args.studies) if study["split"] == "train"]
    if not train:
        raise UserError(f"{args.studies}: has no study of split train; choose another file")
    require_images(args.studies, train, root)
    paths = [image_paths(study, root)[:1] for study in train]
    films = np.stack([squares(path) for (path,) in paths])
    limits = borders(films)
    with atomic_open(args.out) as out:
        for images, film in zip(paths, films, strict=True):
            turns = [turn("user", PROMPT), turn("assistant", answer(film, limits))]
            out.write(dump_line({"messages": turns, "images": images}))
    print(f"{len(train)} lessons; written: {args.out}")


if __name__ == "__main__":
    run_cli(main)
