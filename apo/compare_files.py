"""The files of a compare run beside its output: finished rows, and the parts of processes side by side."""

import glob
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from data import manifest
from data.files import dump_line, read_jsonl, write_atomic
from data.records import read_studies, write_studies


def store_of(out: Path) -> Path:
    """The finished rows of a run that writes `out`."""
    return out.with_name(out.name + ".partial.jsonl")


def gather_rows(out: Path) -> None:
    """Put the finished rows that processes side by side left into the command's own, whatever they were made with."""
    parts = sorted(out.parent.glob(f"{glob.escape(out.name)}.part-*.jsonl.partial.jsonl"))
    if parts:
        stores = [path for path in (store_of(out), *parts) if path.exists()]
        rows = [row for path in stores for _, row in read_jsonl(path, torn="drop")]
        write_atomic(store_of(out), b"".join(map(dump_line, rows)))
    for part in parts:
        part.unlink()


def put_together(out: Path, parts: Sequence[Path]) -> int:
    """Write the processes' studies to `out` in the order of the file, remove the parts; how many studies."""

    def studies() -> Iterator[dict]:
        for group in zip_longest(*map(read_studies, parts)):
            yield from (study for study in group if study is not None)

    count = write_studies(out, studies())
    remove_parts(out)
    return count


def remove_parts(out: Path) -> None:
    for part in out.parent.glob(f"{glob.escape(out.name)}.part-*.jsonl"):
        part.unlink()
        manifest.sidecar(part).unlink(missing_ok=True)
