"""What a benchmark shares with the studies that a model was trained on: patients, studies, films.

    python -m eval.leaks TRAIN.jsonl BENCHMARK [BENCHMARK ...] --data-root DIR [--set KEY=VALUE] [--out FILE.json]

TRAIN is a file of study records; its splits "train" and "validate" count, since a checkpoint is chosen by the latter
(--split train, or all for every study). BENCHMARK is a name that `python -m eval.run` knows, or another file of study
records.

Ids are compared where both sides number patients and films alike (same data set); patient 12 of one hospital is not
patient 12 of another. Films are compared by name there, unless the name stands in several folders of one side
(view1_frontal.jpg), and byte for byte everywhere; by their pixels where ids cannot tell, or with --films pixels. An
item overlaps when its patient, its study or one of its films does.
"""

import argparse
import dataclasses
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data.errors import UserError, refuse_below_one, run_cli
from data.files import refuse_input, write_atomic
from data.records import SPLITS, did_you_mean, image_paths, read_studies, root_of
from eval import benchmarks, film_hash
from eval.items import Benchmark, Item
from eval.run_options import data_roots, split_settings
from scripts.machine import write_problem

LEVELS = ("patient", "study", "film name", "film bytes", "film pixels")
FILMS = ("auto", "names", "bytes", "pixels")
SEEN = ("train", "validate")  # splits that training looks at: a checkpoint is chosen by validation films
# Beginning of a benchmark's name -> `source` of study records with the same ids. Others: their own name.
ID_SPACES = {
    "ms-cxr-t": "mimic-cxr",
    "mimic": "mimic-cxr",
    "cxr-max": "mimic-cxr",
    "chexpert": "chexpert",
    "padchest": "padchest",
    "phantom": "phantom",
}
SHOWN = 5


class Trained(NamedTuple):
    """What a model was trained on. `validation`: how many of its studies are for validation; `patients`, `ids` (of the
    studies): (source, id as `plain_id` gives it); `names`: films by (source, name as `film_names` gives it); `films`:
    their paths."""

    file: str
    studies: int
    validation: int
    sources: frozenset[str]
    patients: frozenset[tuple[str, str]]
    ids: frozenset[tuple[str, str]]
    names: frozenset[tuple[str, str]]
    films: tuple[str, ...]


def read_trained(path: Path, *, splits: Sequence[str] = SEEN, image_root: Path | None = None) -> Trained:
    """What the studies of the splits say; UserError for a file without such a study."""
    root = root_of(path, image_root)
    studies = [study for study in read_studies(path) if study["split"] in splits]
    if not studies:
        raise UserError(
            f"{path}: no study of split {' or '.join(splits)}; name the file of the studies that were trained on"
        )
    films = defaultdict(list)
    for study in studies:
        films[study["source"]] += study["images"]
    return Trained(
        str(path),
        len(studies),
        sum(study["split"] == "validate" for study in studies),
        frozenset(study["source"] for study in studies),
        *(
            frozenset((study["source"], plain_id(study["source"], study[key])) for study in studies)
            for key in ("patient", "id")
        ),
        frozenset((source, name) for source, paths in films.items() for name in film_names(paths)),
        tuple(dict.fromkeys(film for study in studies for film in image_paths(study, root))),
    )


def of_studies(path: Path, image_root: Path | None = None) -> tuple[Benchmark, str]:
    """A file of study records as a benchmark without questions, and its source; UserError for several sources."""
    root = root_of(path, image_root)
    studies = list(read_studies(path))
    sources = sorted({study["source"] for study in studies})
    if not sources:
        raise UserError(f"{path}: holds no study; name another file")
    if len(sources) > 1:
        raise UserError(f"{path}: holds {len(sources)} sources ({', '.join(sources)}); write a file for each")
    items = tuple(
        Item(study["id"], study["patient"], study["id"], tuple(image_paths(study, root)), "", {}) for study in studies
    )
    return Benchmark(path.name, "generate", items, {}, {}, ()), sources[0]


def id_space(name: str) -> str:
    """The `source` of study records whose ids mean the same as those of a benchmark."""
    return next((source for start, source in ID_SPACES.items() if name.startswith(start)), name)


# A patient or study of MIMIC-CXR: with the letter of its folder, or as its tables and pandas write it.
_MIMIC_ID = re.compile(r"[ps]?([15]\d{7})(?:\.0)?", re.IGNORECASE)


def plain_id(source: str, text: str) -> str:
    """An id without what the writings of one id differ by: "p10000032" and "10000032" are one patient of mimic-cxr."""
    found = _MIMIC_ID.fullmatch(text) if source == "mimic-cxr" else None
    return found[1] if found else text


def film_name(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def film_names(paths: Iterable[str]) -> set[str]:
    """The names of films that tell one from another: those that do not stand in several folders."""
    folders = defaultdict(set)
    for path in paths:
        folders[film_name(path)].add(os.path.dirname(path))
    return {name for name, where in folders.items() if len(where) == 1}


def find(
    benchmark: Benchmark,
    trained: Trained,
    *,
    source: str | None = None,
    films: str = "auto",
    distance: int = film_hash.DISTANCE,
    cache: Path | None = None,
    workers: int = 1,
) -> dict:
    """What the items share with the training studies.

    Args:
        source: id space of the items; by default that of the benchmark's name.
        films: "names" (ids only), "bytes" too, "pixels" too, or "auto": bytes, and pixels where ids cannot be compared.
        distance: bits by which two pixel hashes of one picture may differ.
        cache: JSONL file of pixel hashes, read and continued.

    An item without study and films whose patient is the item itself has no ids to compare.

    Returns {"benchmark", "train", "ids_compared", "films_compared", "items", "patients", "overlapping_items",
    "by_level": {level: {"items", "shared"}}, "pairs" of near-identical films, "item_ids": {level: [...]}, and
    "not_compared": films that are missing on either side}.
    """
    source = source or id_space(benchmark.name)
    comparable = source in trained.sources and any(
        item.study or item.images or item.patient != item.id for item in benchmark.items
    )
    ours = list(dict.fromkeys(film for item in benchmark.items for film in item.images))
    hits: dict[str, set[str]] = {level: set() for level in LEVELS}
    shared: dict[str, set[str]] = {level: set() for level in LEVELS}

    def note(level: str, item: Item, what: str) -> None:
        hits[level].add(item.id)
        shared[level].add(what)

    if comparable:
        names = {name for name in film_names(ours) if (source, name) in trained.names}
        for item in benchmark.items:
            if (source, plain_id(source, item.patient)) in trained.patients:
                note("patient", item, item.patient)
            if item.study and (source, plain_id(source, item.study)) in trained.ids:
                note("study", item, item.study)
            for film in item.images:
                if film_name(film) in names:
                    note("film name", item, film)
    compared = ["names"] if comparable else []
    missing = 0
    pairs: list[dict] = []
    if films != "names":
        here, there = ([path for path in paths if os.path.isfile(path)] for paths in (ours, trained.films))
        missing = len(ours) - len(here) + len(trained.films) - len(there)
        alike: dict[str, set[str]] = {"film bytes": film_hash.same_bytes(here, there), "film pixels": set()}
        if here and there:
            compared.append("bytes")
        if here and there and (films == "pixels" or (films == "auto" and not comparable)):
            compared.append("pixels")
            one, other = (film_hash.pixel_hashes(paths, cache=cache, workers=workers) for paths in (here, there))
            for i, (j, bits) in film_hash.near(one, other, distance).items():
                alike["film pixels"].add(here[i])
                pairs.append({"film": film_name(here[i]), "trained": film_name(there[j]), "bits": bits})
        for level, paths in alike.items():
            for item in benchmark.items:
                for film in paths & set(item.images):
                    note(level, item, film)
    every = set().union(*hits.values())
    return {
        "benchmark": benchmark.name,
        "train": {
            "file": os.path.basename(trained.file),
            "studies": trained.studies,
            "validation": trained.validation,
            "films": len(trained.films),
        },
        "ids_compared": comparable,
        "films_compared": compared,
        "not_compared": missing,
        "items": len(benchmark.items),
        "patients": len({item.patient for item in benchmark.items}),
        "overlapping_items": len(every),
        "by_level": {level: {"items": len(hits[level]), "shared": len(shared[level])} for level in LEVELS},
        "pairs": sorted(pairs, key=lambda pair: (pair["bits"], pair["film"])),
        "item_ids": {level: sorted(hits[level]) for level in LEVELS},
    }


def notes_of(found: Mapping) -> list[str]:
    """What the foot of a table says about an overlap; never "none" where nothing could be compared."""
    known = found["train"]
    validation = f", {known['validation']} of them for validation" if known["validation"] else ""
    where = f"{known['studies']} training studies ({known['file']}{validation})"
    missing = []
    if found["not_compared"]:
        missing.append(f"{found['not_compared']} films are missing and were not compared by their contents")
    if not found["ids_compared"] and not found["films_compared"]:
        return [f"overlap with {where} is unknown: no shared ids, and films were not compared", *missing]
    how = [
        {"names": "ids and film names", "bytes": "film bytes", "pixels": "film pixels"}[one]
        for one in found["films_compared"]
    ]
    levels = ", ".join(
        f"{level} {one['items']} ({one['shared']})" for level, one in found["by_level"].items() if one["items"]
    )
    notes = [
        f"overlap with {where}, compared by {', '.join(how)}: {found['overlapping_items']} of {found['items']} items"
        + (f"; by level, items (shared patients, studies or films): {levels}" if levels else "")
    ]
    if not found["ids_compared"]:
        notes.append("patients and studies could not be compared: the two sets do not share ids")
        if "pixels" not in found["films_compared"]:
            notes.append(
                "films were compared byte for byte only: `python -m eval.leaks` finds scaled or re-encoded ones"
            )
    return notes + missing


def exclude(benchmark: Benchmark, found: Mapping) -> Benchmark:
    """The benchmark without its overlapping items; notes and fingerprint say how many went, the latter of all calls."""
    gone = {id_ for ids in found["item_ids"].values() for id_ in ids}
    kept = tuple(item for item in benchmark.items if item.id not in gone)
    if not kept:
        raise UserError(
            f"{benchmark.name}: every item overlaps with the training studies; nothing is left to score. Leave out "
            "--exclude-overlap, or take another benchmark or split"
        )
    left_out = len(benchmark.items) - len(kept)
    note = f"{left_out} of {len(benchmark.items)} items left out because they overlap with the training studies"
    before = benchmark.fingerprint.get("overlapping_items_excluded", 0)
    fingerprint = benchmark.fingerprint | {"overlapping_items_excluded": before + left_out}
    return dataclasses.replace(benchmark, items=kept, notes=(*benchmark.notes, note), fingerprint=fingerprint)


def checked(
    benchmark: Benchmark, trained: Trained, *, excluded: bool = False, films: str = "bytes", **options
) -> Benchmark:
    """The benchmark with what `find` says in its notes and fingerprint, and without overlapping items if `excluded`.

    By default films are not compared by their pixels, which for a large training set takes longer than an evaluation.
    """
    found = find(benchmark, trained, films=films, **options)
    summary = {key: found[key] for key in ("ids_compared", "films_compared", "overlapping_items")}
    summary["items_by_level"] = {level: one["items"] for level, one in found["by_level"].items()}
    noted = dataclasses.replace(
        benchmark,
        notes=(*benchmark.notes, *notes_of(found)),
        fingerprint=benchmark.fingerprint | {"overlap_with_training": summary},
    )
    return exclude(noted, found) if excluded and found["overlapping_items"] else noted


def render(found: Mapping) -> str:
    """The overlap of one benchmark as lines for a terminal."""
    lines = [f"{found['benchmark']}: {found['items']} items, {found['patients']} patients"]
    for level, one in found["by_level"].items():
        if one["items"]:
            ids = ", ".join(found["item_ids"][level][:SHOWN])
            more = ", ..." if one["items"] > SHOWN else ""
            lines.append(f"  same {level}: {one['items']} items, {one['shared']} shared (items {ids}{more})")
    for pair in found["pairs"][:SHOWN]:
        lines.append(f"  film {pair['film']} looks like training film {pair['trained']} ({pair['bits']} bits differ)")
    return "\n".join([*lines, *(f"  {note}" for note in notes_of(found))])


def load_all(names: Sequence[str], roots: Sequence[str], settings: Sequence[str], image_root: Path | None, seed: int):
    """(benchmark, id space or None) of each name or file on the command line."""
    known = [name for name in names if not os.path.isfile(name)]
    for name in known:
        if name not in benchmarks.BENCHMARKS:
            hint = did_you_mean(name, sorted(benchmarks.BENCHMARKS))
            raise UserError(f"{name}: neither a file of study records nor a benchmark; check the path, or {hint}")
    options, folders = split_settings(settings, known, "--set"), data_roots(roots, known) if known else {}
    for name in names:
        if name in known:
            module = benchmarks.module_of(name)
            yield module.load(name, folders[name], seed=seed, limit=None, options=options[name]), None
        else:
            yield of_studies(Path(name), image_root)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.leaks", description=__doc__.split("\n")[0])
    parser.add_argument("train", type=Path, help="study records that the model was trained on")
    parser.add_argument("benchmark", nargs="+", help="names of benchmarks, or files of study records")
    parser.add_argument("--data-root", action="append", default=[], metavar="DIR", help="as for python -m eval.run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for python -m eval.run")
    parser.add_argument(
        "--split", choices=(*SPLITS, "all"), help="studies of TRAIN that count (default: train, validate)"
    )
    parser.add_argument("--train-images", type=Path, metavar="DIR", help="image root of TRAIN (default: its folder)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="image root of study files given as BENCHMARK")
    parser.add_argument("--films", choices=FILMS, default="auto", help="how films are compared (default: auto)")
    parser.add_argument("--distance", type=int, default=film_hash.DISTANCE, help="bits two hashes of a film may differ")
    parser.add_argument("--cache", type=Path, metavar="FILE", help="pixel hashes, to be kept between runs (JSONL)")
    parser.add_argument("--workers", type=int, default=1, help="threads that read films")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write everything that was found")
    args = parser.parse_args(argv)
    refuse_below_one(args, "workers")
    if not 0 <= args.distance <= film_hash.BITS:
        raise UserError(f"--distance {args.distance}: from 0 to {film_hash.BITS} bits")
    splits = {None: SEEN, "all": SPLITS}.get(args.split, (args.split,))
    if args.cache:
        refuse_input(args.cache, args.train, *args.benchmark, option="--cache")
    if args.out:
        refuse_input(args.out, args.train, *args.benchmark, *filter(None, [args.cache]))
        if args.out.is_dir():
            raise UserError(f"--out {args.out}: is a folder; name a file")
    for option, path in (("--out", args.out), ("--cache", args.cache)):
        if path and (problem := write_problem(option, path.parent)):
            raise UserError(problem)
    trained = read_trained(args.train, splits=splits, image_root=args.train_images)
    how = {"films": args.films, "distance": args.distance, "cache": args.cache, "workers": args.workers}
    everything = []
    for benchmark, source in load_all(args.benchmark, args.data_root, args.set, args.images, 0):
        found = find(benchmark, trained, source=source, **how)
        print(render(found))
        everything.append(found)
    if args.out:
        write_atomic(args.out, json.dumps(everything, indent=2, ensure_ascii=False) + "\n")
        print(f"written: {args.out}")


if __name__ == "__main__":
    run_cli(main)
