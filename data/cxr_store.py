"""The texts of a source between reading and writing: a temporary SQLite file beside the output.

A study's rows may stand anywhere in the source, and memory does not grow with the texts.
"""

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import UserError
from data.files import StrPath
from data.mimic_tables import studies_of_films


class Text(NamedTuple):
    """A row of the store: what one row of the source holds of one teacher. None where it holds nothing."""

    number: int  # in the order in which they were read
    study: int | None  # study_id
    dicom: str | None
    teacher: str
    text: str
    status: str
    place: str  # file and row, for messages
    labels: str | None  # JSON, see cxr_fill.py
    prompt: str | None
    split: str | None


@contextlib.contextmanager
def temporary_store(out: StrPath) -> Iterator[sqlite3.Connection]:
    """An empty table of texts in a temporary folder beside `out`: patients' data stay on the disk chosen for them."""
    folder = Path(os.path.realpath(out)).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=folder, prefix=".cxr_max.", ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another place") from error
    with temporary as inside:
        store = sqlite3.connect(os.path.join(inside, "texts.sqlite"), isolation_level=None)
        try:
            _sort_in(store, inside)
            store.execute("PRAGMA journal_mode = OFF")
            store.execute("PRAGMA synchronous = OFF")
            store.execute("PRAGMA cache_size = -32768")  # 32 MiB
            kinds = {"number": "INTEGER PRIMARY KEY", "study": "INTEGER"}
            columns = ", ".join(f"{name} {kinds.get(name, 'TEXT')}" for name in Text._fields)
            store.execute(f"CREATE TABLE texts ({columns})")
            yield store
        except sqlite3.OperationalError as error:
            raise UserError(f"{out}: temporary file beside it: {error}; make room or choose another place") from error
        finally:
            with contextlib.suppress(sqlite3.OperationalError):
                store.execute("PRAGMA temp_store_directory = ''")
            store.close()


def add_texts(store: sqlite3.Connection, rows: Iterable[tuple]) -> None:
    """Append rows, each the fields of a `Text` behind its number, which the store gives."""
    store.executemany(f"INSERT INTO texts VALUES (NULL{', ?' * (len(Text._fields) - 1)})", rows)


def texts_by_study(store: sqlite3.Connection) -> Iterator[tuple[int, list[Text]]]:
    """(study_id, its rows in the order in which they were read), in the order of study_id."""
    rows = store.execute("SELECT * FROM texts WHERE study IS NOT NULL ORDER BY study, number")
    for number, group in groupby(map(Text._make, rows), key=attrgetter("study")):
        yield number, list(group)


def _sort_in(store: sqlite3.Connection, folder: str) -> None:
    """Let sorting spill into `folder` and not into the system's temporary folder.

    Not by SQLITE_TMPDIR: SQLite reads it when Python imports it, long before. A build without the pragma, which is
    deprecated, sorts in memory.
    """
    quoted = folder.replace("'", "''")
    store.execute(f"PRAGMA temp_store_directory = '{quoted}'")
    if store.execute("PRAGMA temp_store_directory").fetchone() != (folder,):
        store.execute("PRAGMA temp_store = MEMORY")


def resolve_films(store: sqlite3.Connection, metadata: Path, counts: dict[str, Any]) -> None:
    """Give rows that only name a film their study, by the metadata table."""
    dicoms = {dicom for (dicom,) in store.execute("SELECT DISTINCT dicom FROM texts WHERE study IS NULL")}
    if not dicoms:
        return
    found = studies_of_films(metadata, dicoms)
    store.execute("CREATE TEMP TABLE films (dicom TEXT PRIMARY KEY, study INTEGER)")
    store.executemany("INSERT INTO films VALUES (?, ?)", found.items())
    store.execute(
        "UPDATE texts SET study = (SELECT study FROM films WHERE films.dicom = texts.dicom) WHERE study IS NULL"
    )
    counts["unknown_films"] = len(dicoms) - len(found)
