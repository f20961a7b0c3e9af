"""Rows of a data set whose files nobody here has seen: JSON, JSON Lines, CSV, TSV, Parquet, or what the Hub serves.

Every reader yields dictionaries, one in memory at a time (Parquet: one batch). Errors name file and row, never a value.
"""

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from data.errors import UserError
from data.files import half_character, open_text

KINDS = {".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
# Files of a data set's repository that hold no rows.
NO_DATA = {
    "dataset_infos.json",
    "dataset_info.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
    "croissant.json",
}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
BLOCK = 1 << 20
KEY = "_key"  # the name under which a row of {"KEY": {...}} carries its key

Rows = Iterator[tuple[str, dict]]  # ("FILE:ROW", row)


def open_source(source: str, *, streaming: bool = False) -> list[tuple[str, Callable[[], Rows]]]:
    """(name, function that yields its rows) for each file of a local clone, or each split of a data set on the Hub.

    Args:
        source: a folder, a file, or a Hub id ("owner/name").
        streaming: fetch from the Hub only as much as is read, for a trial.

    Raises:
        UserError: nothing is there, no file has a known ending, or a file is a Git LFS pointer.
    """
    if os.path.exists(source):
        return [(str(path), _reader(path)) for path in _data_files(Path(source))]
    if HUB_ID.fullmatch(source):
        return hub_splits(source, streaming=streaming)
    raise UserError(f"{source}: no such file or folder, and no Hub id (owner/name); name the local clone")


def hub_splits(name: str, *, streaming: bool = False) -> list[tuple[str, Callable[[], Rows]]]:
    """`open_source` for a data set that `datasets.load_dataset` finds; images are not decoded."""
    import datasets

    try:
        loaded = datasets.load_dataset(name, streaming=streaming)
    except Exception as error:  # load_dataset raises its own, huggingface_hub's, requests' and the builders' errors
        text = " ".join(str(error).split())[:300]
        raise UserError(
            f"{name}: cannot be loaded from the Hub ({type(error).__name__}: {text}); accept its terms and log in "
            "(hf auth login), or clone it and give the folder"
        ) from error

    def rows_of(split: str) -> Rows:
        part = loaded[split]
        for column, feature in (part.features or {}).items():
            if isinstance(feature, datasets.Image):
                part = part.cast_column(column, datasets.Image(decode=False))
        for number, row in enumerate(part, 1):
            yield f"{name}[{split}]:{number}", row

    return [(f"{name}[{split}]", lambda split=split: rows_of(split)) for split in loaded]


def _data_files(source: Path) -> list[Path]:
    if source.is_file():
        if _kind(source) is None:
            raise UserError(f"{source}: ending not known; use one of {', '.join(KINDS)} (text also with .gz)")
        found = [source]
    else:
        found = sorted(
            path
            for path in source.rglob("*")
            if path.is_file()
            and _kind(path)
            and path.name not in NO_DATA
            and not any(part.startswith(".") for part in path.relative_to(source).parts)
        )
    if not found:
        raise UserError(f"{source}: holds no file of a known kind ({', '.join(KINDS)}); unpack it or name the folder")
    for path in found:
        with open(path, "rb") as start:
            if start.read(40).startswith(b"version https://git-lfs"):
                raise UserError(f"{path}: is a Git LFS pointer, not the data; run git lfs pull in the clone")
    return found


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    kind = KINDS.get(Path(name.removesuffix(".gz")).suffix)
    return None if kind == "parquet" and name.endswith(".gz") else kind


def _reader(path: Path) -> Callable[[], Rows]:
    read = {"lines": _json_lines, "json": _json, "csv": _csv, "tsv": _csv, "parquet": _parquet}[_kind(path)]

    def rows() -> Rows:
        number = 0
        try:
            try:
                for number, row in read(path):
                    if not isinstance(row, dict):
                        raise UserError(f"{path}:{number}: is no object; each row must be an object of named columns")
                    yield f"{path}:{number}", row
            except UnicodeDecodeError as error:
                # Raised while a block is read ahead: which line it was in is looked for.
                with open_text(path, errors="surrogateescape") as source:
                    line = next(n for n, text in enumerate(source, 1) if half_character(text))
                raise UserError(f"{path}:{line}: not UTF-8; mend that line, or save the file as UTF-8") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: cut off or damaged; download it again") from error
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: after row {number}: nested too deeply, or a number too long; mend it") from error

    return rows


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with open_text(path) as source:
        for number, line in enumerate(source, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise _no_json(path, f":{number}", error) from error


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of [{...}, ...] by the element; of {"NAME": [{...}], ...} and {"KEY": {...}, ...} from memory.

    A file named .json that holds one object a line is read as such.
    """
    with open_text(path) as source:
        start = source.read(BLOCK).lstrip()
        if start.startswith("["):
            yield from _array(path, source, start[1:])
            return
        second = start.split("\n", 2)[1:2]
        if second and second[0].lstrip().startswith("{") and start.split("\n", 1)[0].rstrip().endswith("}"):
            source.close()
            yield from _json_lines(path)
            return
        try:
            value = json.loads(start + source.read())
        except json.JSONDecodeError as error:
            raise _no_json(path, "", error) from error
    lists = [part for part in value.values() if isinstance(part, list)] if isinstance(value, dict) else []
    if lists and all(isinstance(row, dict) for part in lists for row in part[:1]):
        yield from enumerate((row for part in lists for row in part), 1)
    elif isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
        yield from enumerate(({KEY: key, **row} for key, row in value.items()), 1)
    else:
        yield 1, value


def _array(path: Path, source: IO[str], buffer: str) -> Iterator[tuple[int, Any]]:
    """Elements of an array that may be larger than memory: where what was read does not parse, more is read.

    Further arrays may follow, as where every line is one; anything else after an array is refused.
    """
    decoder = json.JSONDecoder()
    number = at = 0
    inside, ended = True, False
    while True:
        while at < len(buffer) and buffer[at] in (" \t\r\n," if inside else " \t\r\n"):
            at += 1
        if buffer[at : at + 1] == ("]" if inside else "["):
            inside = not inside
            at += 1
            continue
        if not inside and at < len(buffer):
            raise UserError(
                f"{path}: after row {number}: something stands behind the end of the array; put all rows into one, or "
                "one row a line"
            )
        if not inside and ended:
            return
        whole = False
        if inside:
            try:
                value, after = decoder.raw_decode(buffer, at)
                # A number at the end of what was read may go on.
                whole = after < len(buffer) or ended
            except json.JSONDecodeError as error:
                if ended:
                    raise _no_json(path, f":{number + 1}", error) from error
        if whole:
            number += 1
            at = after
            yield number, value
            continue
        # Twice what is there, so that one long element is not parsed again for each block.
        more = source.read(max(BLOCK, len(buffer) - at))
        ended = not more
        buffer, at = buffer[at:] + more, 0


def _no_json(path: Path, row: str, error: json.JSONDecodeError) -> UserError:
    return UserError(f"{path}{row}: not JSON ({error.msg}); download it again or mend it")


def _csv(path: Path) -> Iterator[tuple[int, dict]]:
    # Reasoning texts may be longer than the csv module's 128 KiB.
    csv.field_size_limit(1 << 30)
    with open_text(path, newline="") as source:
        lines = csv.DictReader(source, delimiter="\t" if _kind(path) == "tsv" else ",")
        try:
            for row in lines:
                if None in row or None in row.values():
                    raise UserError(f"{path}:{lines.line_num}: not as many values as columns; mend the row")
                yield lines.line_num, row
        except csv.Error as error:
            raise UserError(f"{path}:{lines.line_num}: not CSV ({error}); mend the row") from error


def _parquet(path: Path) -> Iterator[tuple[int, dict]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a Parquet file, or damaged; download it again") from error
