"""Films that are no films, or that would reach the student as something else; and such as must be taken."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.bad_input.cases import refused, run, study


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (84, 112), np.uint8))
PNG, JPEG = encoded(NOISE), encoded(NOISE, "JPEG")


def bomb():
    """A PNG of a few hundred bytes whose head promises 60,000 x 60,000 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(NOISE, "JPEG", exif=exif)


def frames():
    return encoded(NOISE, "TIFF", save_all=True, append_images=[NOISE])


BAD = {
    "zero bytes": (b"", r"is empty \(0 bytes\); copy or download it again"),
    "truncated PNG": (PNG[: len(PNG) // 2], r"is damaged or cut off \(\w+\); download it again"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], r"is damaged or cut off \(\w+\); download it again"),
    "head of a PNG alone": (PNG[:30], "damaged or cut off|not an image"),
    "16 bits": (encoded(Image.fromarray(np.full((9, 9), 3000, np.uint16))), "has more than 8 bits a pixel"),
    "float TIFF": (
        encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"),
        r"more than 8 bits a pixel \(mode F\)",
    ),
    "decompression bomb": (bomb(), "has more than [0-9,]+ pixels, Pillow's safety limit; scale it down"),
    "SVG named .png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is not an image that Pillow can read"),
    "text named .png": (b"films/1.png\n", "is not an image that Pillow can read"),
    "DICOM named .png": (bytes(128) + b"DICM" + bytes(64), "is a DICOM file, not an image; convert it to 8-bit PNG"),
    "EXIF orientation": (turned(), "is stored turned or mirrored and only its EXIF orientation says so"),
    "several frames": (frames(), "has 2 frames and only the first would be seen"),
    "a strip": (encoded(Image.new("L", (2010, 10))), "longer than 200 to 1"),
}
GOOD = {
    "CMYK": encoded(NOISE.convert("CMYK"), "JPEG"),
    "palette": encoded(NOISE.convert("P")),
    "1 bit": encoded(NOISE.convert("1")),
    "RGBA": encoded(NOISE.convert("RGBA")),
    "progressive": encoded(NOISE, "JPEG", progressive=True),
}
DOORS = {
    "records": lambda w: ["records", w.studies, "--check-images"],
    "rows": lambda w: [
        *("rows", "apo", w.studies, "--split", "train", "--out", w.folder / "rows.jsonl", "--check-images"),
    ],
    "train": lambda w: ["train", "apo", w.config()],
    "compare": lambda w: ["compare", w.student, w.studies, "--out", w.folder / "out.jsonl", "--device", "cpu"],
    "predict": lambda w: [
        *("predict", w.student, "--studies", w.studies, "--out", w.folder / "predictions.jsonl"),
        *("--split", "train", "--device", "cpu", "--overwrite"),
    ],
}


@pytest.mark.parametrize("name", BAD)
def test_film(name, world, monkeypatch):
    content, message = BAD[name]
    (world.folder / "films/1.png").write_bytes(content)
    for door in DOORS.values():
        refused(world, monkeypatch, door(world), rf"study 's1': image .*films/1.png.* {message}")


@pytest.mark.parametrize("name", GOOD)
def test_a_film_that_conversion_leaves_faithful_is_taken(name, world, monkeypatch):
    (world.folder / "films/1.png").write_bytes(GOOD[name])
    for door in ("records", "rows"):
        status, told = run(DOORS[door](world), monkeypatch)
        assert status == 0, told


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"missing or unreadable \(No such file"),
        (lambda path: path.mkdir(), "is not a file"),
        (os.mkfifo, "is not a file"),
        (lambda path: path.symlink_to("/etc/hostname"), "lies outside the image root .*--allow-outside"),
        (lambda path: path.symlink_to(path), "missing or unreadable"),
    ],
    ids=["missing", "folder", "pipe", "link outside", "link to itself"],
)
def test_what_is_no_file_of_the_root(make, message, world, monkeypatch):
    path = world.folder / "films/1.png"
    path.unlink()
    make(path)
    for door in DOORS.values():
        refused(world, monkeypatch, door(world), rf"study 's1': image .*films/1.png {message}")


def test_links_outside_are_taken_when_asked_for(world, tmp_path_factory, monkeypatch):
    away = tmp_path_factory.mktemp("away") / "film.png"
    away.write_bytes(PNG)
    (world.folder / "films/1.png").unlink()
    (world.folder / "films/1.png").symlink_to(away)
    for name in ("records", "rows"):
        assert run([*DOORS[name](world), "--allow-outside"], monkeypatch)[0] == 0
    with pytest.raises(pytest.fail.Exception, match="computing has started"):
        run(["train", "apo", world.config(), "--allow-outside"], monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="computing has started"):
        run([*DOORS["predict"](world), "--allow-outside"], monkeypatch)


def test_collect_sends_no_film_from_outside(world, monkeypatch):
    world.write([study(n, trajectories=[]) for n in range(3)])
    (world.folder / "films/1.png").unlink()
    (world.folder / "films/1.png").symlink_to("/etc/hostname")
    refused(world, monkeypatch, ["collect", world.collect(), "--dry-run"], "films/1.png lies outside the image root")
    refused(world, monkeypatch, ["collect", world.collect(), "--dry-run", "--allow-outside"], "is not an image that")


def test_image_root_that_is_none(world, monkeypatch):
    for words in (
        ["records", world.studies, "--image-root", "nowhere"],
        ["train", "apo", world.config(image_root="nowhere")],
        ["collect", world.collect(image_root="nowhere")],
    ):
        if words[0] == "collect":
            world.write([study(n, trajectories=[]) for n in range(3)])
        refused(world, monkeypatch, words, "nowhere: image root is not a folder")
