"""Films that are the same picture: byte for byte, or after scaling, re-encoding or a change of brightness.

The pixel hash is the usual perceptual one (low frequencies of the cosine transform against their median) with 255 bits
instead of 63: chest films resemble each other, and 61 films of one hospital come as close as 8 of 63 bits, but never
closer than 60 of 255. JPEG at quality 75, halving and scaling to 224 x 224 change at most 10 bits of these films, gamma
0.7 at most 18; histogram equalisation up to 54 and cropping two percent up to 68, which `DISTANCE` misses.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.fft import dctn

from data.errors import UserError
from data.files import append_jsonl, read_jsonl, sha256_file

SIDE, LOW = 64, 16
BITS = LOW * LOW - 1
DISTANCE = 24
BLOCK = 1024


def pixel_hash(path: str) -> bytes:
    """32 bytes that stay nearly the same when a film is scaled or re-encoded; UserError for an unreadable image."""
    try:
        with Image.open(path) as image:
            # 16-bit films would be clipped to white: scale them first, as their conversion to 8 bits does.
            grey = np.asarray(
                image.convert("F") if image.mode.startswith(("I", "F")) else image.convert("L"), np.float32
            )
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise UserError(f"{path}: cannot be read as an image ({type(error).__name__}); download it again") from error
    small = Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BOX)
    low = dctn(np.asarray(small, float), norm="ortho")[:LOW, :LOW].ravel()[1:]
    return np.packbits(low > np.median(low)).tobytes()


def pixel_hashes(paths: Sequence[str], *, cache: Path | None = None, workers: int = 1) -> list[bytes]:
    """The hash of each film; `cache` is a JSONL file that is read and continued, by path, size and time of change."""
    known = dict(_read_cache(cache)) if cache and cache.exists() else {}
    keys = [_key(path) for path in paths]
    todo = [(key, path) for key, path in dict(zip(keys, paths, strict=True)).items() if key not in known]
    with ThreadPoolExecutor(workers) as pool:
        for (key, _), found in zip(todo, pool.map(pixel_hash, [path for _, path in todo]), strict=True):
            known[key] = found
            if cache:
                append_jsonl(cache, {"film": key, "hash": found.hex()})
    return [known[key] for key in keys]


def near(a: Sequence[bytes], b: Sequence[bytes], distance: int = DISTANCE) -> dict[int, tuple[int, int]]:
    """index into `a` -> (index of its nearest hash in `b`, bits that differ), for those within `distance` bits."""
    found: dict[int, tuple[int, int]] = {}
    if not a or not b:
        return found
    left, right = (np.frombuffer(b"".join(one), np.uint64).reshape(len(one), -1) for one in (a, b))
    for start in range(0, len(left), BLOCK):
        block = left[start : start + BLOCK]
        best, where = np.full(len(block), BITS + 1), np.zeros(len(block), int)
        for other in range(0, len(right), BLOCK):
            bits = np.bitwise_count(block[:, None] ^ right[None, other : other + BLOCK]).sum(-1, dtype=int)
            nearest = bits.argmin(1)
            least = bits[np.arange(len(block)), nearest]
            where = np.where(least < best, nearest + other, where)
            best = np.minimum(least, best)
        for i in np.flatnonzero(best <= distance):
            found[start + int(i)] = (int(where[i]), int(best[i]))
    return found


def same_bytes(a: Iterable[str], b: Iterable[str]) -> set[str]:
    """The paths in `a` whose bytes are those of a file in `b`; only files of equal size are read."""
    sizes: dict[int, list[str]] = defaultdict(list)
    for path in dict.fromkeys(b):
        sizes[os.path.getsize(path)].append(path)
    digests: dict[int, set[str]] = {}
    found = set()
    for path in dict.fromkeys(a):
        size = os.path.getsize(path)
        if size not in sizes:
            continue
        if size not in digests:
            digests[size] = {sha256_file(other) for other in sizes[size]}
        if sha256_file(path) in digests[size]:
            found.add(path)
    return found


def _key(path: str) -> str:
    status = os.stat(path)
    return hashlib.sha256(f"{os.path.abspath(path)}\n{status.st_size}\n{status.st_mtime_ns}".encode()).hexdigest()


def _read_cache(cache: Path) -> Iterator[tuple[str, bytes]]:
    for line, row in read_jsonl(cache, torn="drop"):
        try:
            found = bytes.fromhex(row["hash"])
            if len(found) != -(-BITS // 8):
                raise ValueError
            yield row["film"], found
        except (TypeError, KeyError, ValueError):
            raise UserError(f"{cache}:{line}: not a film hash; name another --cache") from None
