"""Films as they are sent: scaled, encoded anew (which drops metadata), hashed; with a cache for the next run."""

import base64
import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL
from PIL import Image, features

from data.errors import Problems, UserError
from data.files import dump_line, read_jsonl, write_atomic
from data.images import decode_problem, file_problem

# The same film and settings give other bytes under another encoder, and so another key.
ENCODER = f"Pillow {PIL.__version__}, JPEG {features.version_codec('jpg')}"


def encode(path: str, size: int, quality: int) -> bytes:
    """The film as JPEG, RGB, its longer side at most `size` pixels (never enlarged). No metadata goes along."""
    with Image.open(path) as image:
        film = image.convert("RGB")
    film.thumbnail((size, size), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    film.save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()


def data_url(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def digest(jpeg: bytes) -> str:
    return hashlib.sha256(jpeg).hexdigest()


def hash_films(
    paths: Iterable[str],
    settings: Iterable[tuple[int, int]],
    *,
    root: str,
    cache: Path,
    keep: bool = True,
    allow_outside: bool = False,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[tuple[str, int, int], str]:
    """Check and encode every film once for each (size, quality); return {(path, size, quality): SHA-256 as sent}.

    Args:
        cache: JSONL of earlier hashes, used where path, length and modification time of the file are the same. What
            is then sent is hashed again, so a stale entry cannot send one film under another's key.
        keep: write the cache.
        allow_outside: take films that links lead to outside `root`.
        tell: called with (films done, films in all) now and then.

    Raises:
        UserError: lists the films that cannot be used: missing, empty, damaged, 16 bits and so on.
    """
    paths, settings = list(dict.fromkeys(paths)), sorted(set(settings))
    known = dict(_read_cache(cache))
    problems, found, fresh = Problems(root), {}, {}

    def one(path: str) -> tuple[str | None, dict[tuple, str]]:
        problem = file_problem(path, os.sep if allow_outside else root)
        if problem:
            return problem, {}
        stat = os.stat(path)
        names = {s: (os.path.relpath(path, root), stat.st_size, stat.st_mtime_ns, *s, ENCODER) for s in settings}
        if all(name in known for name in names.values()):
            return None, {name: known[name] for name in names.values()}
        problem = decode_problem(path)
        if problem:
            return problem, {}
        return None, {name: known.get(name) or digest(encode(path, *s)) for s, name in names.items()}

    # Pillow decodes and encodes without the interpreter lock.
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        for done, (path, (problem, hashes)) in enumerate(zip(paths, pool.map(one, paths), strict=True), 1):
            if problem:
                problems.add(f"image {path} {problem}")
            for name, value in hashes.items():
                found[path, name[3], name[4]] = value
                fresh[name] = value
            tell(done, len(paths))
    finally:
        # Without cancelling, Ctrl-C would wait for every film that is queued.
        pool.shutdown(cancel_futures=True)
    problems.refuse()
    if keep and any(name not in known for name in fresh):
        write_atomic(cache, b"".join(dump_line([*name, value]) for name, value in (known | fresh).items()))
    return found


class FilmChanged(Exception):
    """A film is not the one that was hashed when the run began."""


@functools.lru_cache(maxsize=64)  # the teachers ask for the same film at about the same time
def encode_checked(path: str, size: int, quality: int, expected: str) -> bytes:
    """The film as `encode` gives it.

    Raises:
        FilmChanged: it cannot be read any more, or its bytes do not have the SHA-256 `expected`.
    """
    try:
        jpeg = encode(path, size, quality)
    except (OSError, ValueError):
        raise FilmChanged(f"image {path} can no longer be read") from None
    if digest(jpeg) != expected:
        raise FilmChanged(f"image {path} has changed since it was checked")
    return jpeg


def _read_cache(path: Path) -> Iterator[tuple[tuple, str]]:
    if path.exists():
        for line, row in read_jsonl(path, torn="drop"):
            if not isinstance(row, list) or len(row) != 7:
                raise UserError(f"{path}:{line}: no row of a film cache; remove the file, it is made anew")
            yield tuple(row[:-1]), row[-1]
