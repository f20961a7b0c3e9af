"""Files that survive an interruption: atomic replacement, JSONL by the line, appending one finished row at a time."""

import codecs
import contextlib
import errno
import fcntl
import gzip
import hashlib
import json
import math
import os
import secrets
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

from data.errors import UserError

StrPath = str | os.PathLike[str]


def half_character(text: str) -> bool:
    """Whether a text holds half a surrogate pair, which no UTF-8 has: as JSON may, where an emoji was cut off."""
    return any("\ud800" <= c <= "\udfff" for c in text)


def home(path: StrPath) -> str:
    """`path` with the folder that "~" or "~name" stands for.

    Raises:
        UserError: there is no user of that name.
    """
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise UserError(f"{path}: no user of this name has a home folder here; write the path out") from None


BUFFER = 1 << 20
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


NO_LOCK = "no lock ({}); start no second run here"


@contextlib.contextmanager
def exclusive(path: StrPath, message: str) -> Iterator[None]:
    """Hold the lock file `path`, made if needed, while the block runs; UserError(message) if another process does."""
    try:
        lock = open(path, "a")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(message) from None
        except OSError as error:  # a file system without locks
            print(f"note: {path}: {NO_LOCK.format(error.strerror)}", file=sys.stderr)
        yield


@contextlib.contextmanager
def claimed(out: StrPath) -> Iterator[None]:
    """Keep the output file `out` for this process while the block runs; missing parent folders are made.

    Raises:
        UserError: another process writes it, or the folder cannot be written to.
    """
    path = Path(out)
    lock = path.with_name(f".{path.name[:200]}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another place") from error
    with exclusive(lock, f"{out}: another run is writing it; wait for it, or choose another place"):
        yield


def open_text(path: StrPath, **options: Any) -> IO[str]:
    """Open a text file for reading, also a gzip one by its name; a BOM is left out."""
    opened = gzip.open if os.fspath(path).lower().endswith(".gz") else open
    return opened(path, "rt", encoding="utf-8-sig", **options)


def refuse_input(out: StrPath, *paths: StrPath, option: str = "--out") -> None:
    """Raise UserError when `out`, what `option` names, is one of the files that are read, under whatever name."""
    if os.path.realpath(out) in map(os.path.realpath, paths):
        raise UserError(f"{option} {out}: is the input file; choose another")


def out_file(text: str) -> Path:
    """An argparse type, for a file to write: asked at the start whether that will be possible, not after the work.

    Raises:
        UserError: it is, or ends like, a folder, or nothing can be written where it is to be.
    """
    from scripts.machine import write_problem  # which needs this module itself

    path = Path(text)
    if text.endswith(os.sep) or (path.exists() and not path.is_file()):
        raise UserError(f"{text}: is not a regular file; name a file to write")
    if problem := write_problem(f"{text}: its folder", Path(os.path.realpath(text)).parent):
        raise UserError(problem)
    return path


@contextlib.contextmanager
def atomic_open(path: StrPath) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing bytes; it takes the place of `path` when the block ends well.

    When the block raises, or the disk is full, `path` stays as it was and the temporary file is removed. Missing
    parent folders are made. A symbolic link is followed, so that the file it points to is replaced, not the link.

    Raises:
        UserError: the folder cannot be written to, the disk is full, or `path` is a folder or a device.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise UserError(f"{path}: is not a regular file; name a file to write")
    # The name is cut so that prefix and suffix never push it over the 255 bytes that file systems allow.
    temporary = target.parent / f".{target.name[:40]}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # os.open and not tempfile: the umask then decides who may read the file, as for any other file.
        handle = os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb", buffering=BUFFER)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    try:
        with handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        if target.exists():
            os.chmod(temporary, target.stat().st_mode & 0o7777)
        os.replace(temporary, target)
        _fsync_folder(target.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise UserError(f"{path}: {error.strerror}; make room, the file is unchanged") from error
        raise


def write_atomic(path: StrPath, data: str | bytes) -> None:
    """Replace `path` by `data` (text as UTF-8) at once: a reader sees the old file or the new one, never a part."""
    with atomic_open(path) as out:
        out.write(data.encode("utf-8") if isinstance(data, str) else data)


def dump_line(row: Any) -> bytes:
    """One row as a line of JSONL: UTF-8, newline at the end. NaN and Infinity are no JSON and raise ValueError."""
    return (dump(row) + "\n").encode("utf-8")


def dump(value: Any) -> str:
    """One value as JSON on one line, without a newline; for what `dump_line` refuses see there."""
    return _ENCODER.encode(value)


def append_jsonl(path: StrPath, *rows: Any) -> None:
    """Append finished rows at once and flush them to disk.

    What an interruption left behind is put right first: a torn last line is cut off (that row was never finished), a
    whole one without its newline gets it. Of several rows it may have left the first ones only. For one writer a file:
    give each process its own.
    """
    path = Path(path)
    lines = b"".join(map(dump_line, rows))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as log:
            _mend_last_line(log, path)
            log.write(lines)
            log.flush()
            os.fsync(log.fileno())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be appended to ({error.strerror}); make room or choose another place"
        ) from error


def read_jsonl(
    path: StrPath, *, torn: Literal["error", "drop"] = "error", finite: bool = True
) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, parsed value) for every line of a UTF-8 JSONL file, one line in memory at a time.

    Blank lines are passed over (and counted in the numbering); a byte order mark at the start is ignored.

    Args:
        torn: what to do with a last line that has no newline and does not parse, the trace of an interrupted append.
            "drop" says so on stderr and leaves it out, for files that a resumed run goes on writing; "error" refuses
            it, for files that are input. A last line that merely lacks its newline is read by both.
        finite: False reads NaN, Infinity and numbers too large for a float as Python's, for the logs of a training that
            may have diverged; True refuses them.

    Raises:
        UserError: "FILE:LINE: what; remedy" for a missing or compressed file, bytes that are not UTF-8, a line that is
            not JSON, NaN or Infinity, or a key that stands twice in one object.
    """
    with _open(path) as source:
        for number, raw in enumerate(source, 1):
            if number == 1:
                if raw.startswith(b"\x1f\x8b"):
                    raise UserError(f"{path}: is compressed (gzip); unpack it first (gunzip -k) and name what it holds")
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            try:
                value = parse_line(raw, f"{path}:{number}", finite=finite)
            except UserError as error:
                # Only the last line can lack its newline.
                if raw.endswith(b"\n"):
                    raise
                if torn == "error":
                    raise UserError(f"{error} (it is the last line and has no newline: cut off?)") from error
                print(f"note: {path}:{number}: last line cut off by an interruption; left out", file=sys.stderr)
                return
            yield number, value


def parse_line(raw: bytes, where: str, *, finite: bool = True) -> Any:
    """Parse one line of JSONL strictly; `where` ("FILE:LINE") opens the message of the UserError. `finite`: as in
    `read_jsonl`."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UserError(
                f"{where}: is UTF-16, not UTF-8; save the file as UTF-8 (iconv -f UTF-16 -t UTF-8 converts it)"
            ) from error
        raise UserError(
            f"{where}: byte {error.start + 1} of the line (0x{raw[error.start]:02x}) is not UTF-8; "
            "save the file as UTF-8 (iconv -f WINDOWS-1252 -t UTF-8 converts the usual other encoding)"
        ) from error
    try:
        decoder = _DECODER if finite else _ANY_NUMBER
        return decoder.decode(text.rstrip("\r\n"))  # at the line's end, the column is one of the next line otherwise
    except json.JSONDecodeError as error:
        hint = "write one JSON value on each line"
        if text.strip() in ("[", "{"):
            hint = "the file is one indented JSON document: write one object a line (jq -c '.[]' FILE for an array)"
        raise UserError(f"{where}: not JSON at column {error.colno} ({error.msg}); {hint}") from error
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply to read; write a flat record") from error


@contextlib.contextmanager
def first_places() -> Iterator[Callable[[str, int], int]]:
    """Give a function (name, place) -> the place where that name was first seen, in memory that does not grow.

    What is kept of a name is a hash of 16 bytes, in a temporary database that goes to disk past a few megabytes (to
    SQLITE_TMPDIR, else the system's temporary folder) and is gone afterwards.

    Raises:
        UserError: no room there.
    """
    with contextlib.closing(sqlite3.connect("", isolation_level=None, check_same_thread=False)) as names:

        def run(command: str, values: tuple = ()) -> sqlite3.Cursor:
            try:
                return names.execute(command, values)
            except sqlite3.OperationalError as error:
                raise UserError(
                    f"temporary database of study ids: {error}; make room in the temporary folder or set SQLITE_TMPDIR"
                ) from error

        run("PRAGMA journal_mode = OFF")
        run("PRAGMA cache_size = -4096")  # 4 MiB
        run("CREATE TABLE seen (name BLOB PRIMARY KEY, place INTEGER) WITHOUT ROWID")
        run("BEGIN")

        def first(name: str, place: int) -> int:
            key = hashlib.blake2b(name.encode(), digest_size=16).digest()
            if run("INSERT OR IGNORE INTO seen VALUES (?, ?)", (key, place)).rowcount:
                return place
            return run("SELECT place FROM seen WHERE name = ?", (key,)).fetchone()[0]

        yield first


def sha256_file(path: StrPath) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with _open(path) as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _open(path: StrPath) -> IO[bytes]:
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder; name a file")
    try:
        return open(path, "rb", buffering=BUFFER)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}); check the path") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Python keeps the last of two equal keys; the first would vanish without a word.
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {ascii(twice)[:80]} stands twice in one object; keep one")
    return found


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON; write a number or null")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"number {text[:40]} is too large for a float; write a finite number or null")
    return value


# Built once: json.dumps would build one a row.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False)
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
_ANY_NUMBER = json.JSONDecoder(object_pairs_hook=_object)


def _mend_last_line(log: IO[bytes], path: Path) -> None:
    end = log.seek(0, os.SEEK_END)
    if end == 0:
        return
    log.seek(end - 1)
    if log.read(1) == b"\n":
        return
    start = _start_of_last_line(log, end)
    log.seek(start)
    try:
        parse_line(log.read(), str(path))
    except UserError:
        print(f"note: {path}: last line cut off by an interruption; removed", file=sys.stderr)
        log.truncate(start)
    else:
        log.write(b"\n")


def _start_of_last_line(log: IO[bytes], end: int, block: int = 1 << 16) -> int:
    while end > 0:
        start = max(0, end - block)
        log.seek(start)
        newline = log.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _fsync_folder(folder: Path) -> None:
    # Without it a power cut may undo the renaming. Some network file systems refuse it, which loses nothing more.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
