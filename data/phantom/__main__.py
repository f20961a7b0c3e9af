"""python -m data.phantom --out DIR --seed N [--train N --validate N --test N --world NAME --size N --workers N]"""

import argparse
import os

from data.errors import run_cli
from data.phantom import cohort, teachers


def main():
    """Build the phantom cohort and print what was written."""
    parser = argparse.ArgumentParser(prog="python -m data.phantom", description="Build the phantom cohort.")
    parser.add_argument("--out", required=True, help="folder for studies.jsonl and films/")
    parser.add_argument("--seed", type=int, default=1, help="same seed, same bytes (default 1)")
    parser.add_argument("--train", type=int, default=1500, help="training studies (default 1500)")
    parser.add_argument("--validate", type=int, default=60, help="validation studies (default 60)")
    parser.add_argument("--test", type=int, default=400, help="test studies (default 400)")
    parser.add_argument("--world", default="balanced", help=f"teachers: {', '.join(teachers.WORLDS)}")
    parser.add_argument("--size", type=int, default=224, help="film edge in pixels (default 224)")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="processes that draw films")
    args = vars(parser.parse_args())
    out = args.pop("out")
    count = cohort.build(out, progress=cohort.show_progress, **args)
    print(f"{count} studies, world {args['world']}, seed {args['seed']}: {out}/studies.jsonl")


if __name__ == "__main__":
    run_cli(main)
