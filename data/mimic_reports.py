"""Finds and opens the reports of MIMIC-CXR: one text file a study, in a folder or in the zip as it was downloaded."""

import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable

from data.errors import UserError
from data.files import StrPath
from data.mimic_sections import report_text

ARCHIVE = "mimic-cxr-reports.zip"
# What zipfile raises for altered bytes, besides its own error: NotImplementedError (a RuntimeError) for a version, flag
# or compression it does not know, RuntimeError for one that says encrypted, ValueError for a name that is not UTF-8.
DAMAGED = (OSError, EOFError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error)

_REPORT = re.compile(r"(?:^|/)p1\d/p1\d{7}/s\d+\.txt$")


def find_reports(root: StrPath) -> str | None:
    """The reports of a MIMIC-CXR-JPG folder, by default: mimic-cxr-reports.zip in it, or mimic-cxr-reports/."""
    for name in (ARCHIVE, ARCHIVE.removesuffix(".zip")):
        path = os.path.join(root, name)
        if os.path.exists(path):
            return path
    return None


def open_reports(path: StrPath) -> Callable[[int, int], str | None]:
    """A function (subject_id, study_id) -> what the report says was seen ("" if no section does), or None: no file.

    Args:
        path: mimic-cxr-reports.zip, or a folder that holds files/p10/p1xxxxxxx/s5xxxxxxx.txt (or p10/... itself).

    Raises:
        UserError: no such file or folder, or it holds no report at such a place.
    """
    if os.path.isdir(path):
        for base in (os.path.join(path, "files"), str(path)):
            if os.path.isdir(base) and any(name.startswith("p1") for name in os.listdir(base)):
                return lambda subject, study: _read_file(os.path.join(base, *_parts(subject, study)), study)
        raise UserError(f"{path}: holds no files/p10/...; name the folder that mimic-cxr-reports.zip was unpacked into")
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGED as error:
        raise UserError(
            f"{path}: cannot be read as a zip file ({getattr(error, 'strerror', None) or 'damaged or cut off'}); "
            f"name {ARCHIVE} or the folder it was unpacked into"
        ) from error
    names = set(archive.namelist())
    # Not "__MACOSX/.../._s5xxxxxxx.txt", which the archiver of a Mac adds.
    first = next((name for name in archive.namelist() if _REPORT.search(name)), None)
    if first is None:
        raise UserError(f"{path}: holds no p10/.../s5xxxxxxx.txt; name {ARCHIVE}")
    prefix = first[: f"/{first}".index("/p1")]

    def read(subject: int, study: int) -> str | None:
        name = prefix + "/".join(_parts(subject, study))
        if name not in names:
            return None
        try:
            raw = archive.read(name)
        except DAMAGED as error:
            raise UserError(f"{path}: report of study s{study} is damaged; download {ARCHIVE} again") from error
        return _seen(raw, study)

    return read


def _parts(subject: int, study: int) -> tuple[str, str, str]:
    return f"p{str(subject)[:2]}", f"p{subject}", f"s{study}.txt"


def _read_file(path: str, study: int) -> str | None:
    try:
        with open(path, "rb") as source:
            return _seen(source.read(), study)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"report of study s{study}: cannot be read ({error.strerror}); mend its permissions") from error


def _seen(raw: bytes, study: int) -> str:
    try:
        return report_text(raw.decode("utf-8")).replace("\0", "")
    except UnicodeDecodeError as error:
        raise UserError(f"report of study s{study}: not UTF-8; unpack {ARCHIVE} again") from error
