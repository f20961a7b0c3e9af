"""Which column of an unknown table is what: guessed by name, or told by --columns, for tables of either shape.

The shapes: one row a (study, teacher); or one row a study with a column a teacher, or with one object, or list of
objects, for all teachers. Names are compared without case, blanks, hyphens and underscores.
"""

import ast
import contextlib
import json
import re
from functools import lru_cache
from typing import Any, NamedTuple

from data.answers import SNAPSHOT
from data.cxr_source import KEY
from data.errors import UserError, show_columns
from data.findings_lexicon import LABELS
from data.records import SPLITS, did_you_mean

# The seven of CXR-MAX, as named on its published samples.
TEACHERS = (
    "Claude Sonnet-4",
    "GPT-5-nano",
    "GLM-4.5V",
    "Gemini-2.5-flash-lite",
    "Moonshot-v1",
    "Qwen-VL-Max",
    "Grok-4",
)
VENDORS = ("claude", "sonnet", "gpt", "glm", "gemini", "moonshot", "kimi", "qwen", "grok")

# In order of preference.
GUESSES = {
    "teacher": "teacher teachermodel teachername modelname model modelid mllm vlm llm agent expert source provider",
    "text": "trajectory trajectories reasoningtrajectory text response responses reasoning reasoningtext answer "
    "answers modelresponse output outputs completion rationale explanation analysis thinking cot content prediction "
    "generated teachers models messages conversations",
    "dicom": "dicomid dicom",
    "image": "image images imagepath imagepaths imagefile imagename imageid path filepath filename file img",
    "study": "studyid study",
    "labels": "labels label diagnoses diagnosis diagnosesgiven givendiagnoses diseases disease findings finding "
    "pathologies pathology conditions classes",
    "finish": "finishreason stopreason",
}
# Told, never guessed: a column of this name may mean something else.
ONLY_TOLD = ("prompt", "split")
FIELDS = (*GUESSES, *ONLY_TOLD)
FILM = ("dicom", "image", "study")
PLACES = ("@file", "@folder")  # a teacher that the name of the file, or of its folder, says
EXAMPLE = "--columns teacher=model,text=response,image=dicom_id,labels=diagnoses"
WIDE_EXAMPLE = "--columns text=claude+gpt5+grok,study=study_id"


class NoColumns(UserError):
    """A file in which no trajectories can be found: may be another table of the same data set."""


class Columns(NamedTuple):
    """Columns of one file.

    Several of `text`: each is a teacher's, and `finishes` has the column of its finish reason, where it has one of its
    own. label_columns: label -> column of its state. unread: a teacher's columns that hold no text.
    """

    film: tuple[str, ...]
    text: tuple[str, ...]
    wide: bool
    teacher: str | None
    labels: str | None
    label_columns: dict[str, str]
    finish: str | None
    prompt: str | None
    split: str | None
    finishes: dict[str, str]
    unread: tuple[str, ...]


def plain(name: object) -> str:
    """A name without case, blanks and punctuation."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def parse_columns(option: str | None) -> dict[str, str]:
    """{"teacher": "model", ...} from "teacher=model,text=response"; UserError for an unknown field."""
    told: dict[str, str] = {}
    for part in filter(None, (one.strip() for one in (option or "").split(","))):
        field, sign, column = (piece.strip() for piece in part.partition("="))
        if not sign or not column:
            raise UserError(f"--columns: {part!r} is not FIELD=COLUMN; for example {EXAMPLE}")
        if field not in FIELDS:
            raise UserError(f"--columns: no field {field!r}; {did_you_mean(field, FIELDS)}")
        if field in told:
            raise UserError(f"--columns: {field} is given twice; keep one")
        told[field] = column
    return told


def find_columns(name: str, rows: list[dict], told: dict[str, str]) -> Columns:
    """Decide by the first rows of a file and by what the user told.

    Raises:
        UserError: a told column is not there, or none could be found for what is needed; lists the columns found, the
            fields missing and an example.
    """
    found = list(dict.fromkeys(key for row in rows for key in row))
    by_plain: dict[str, str] = {}
    for column in found:
        by_plain.setdefault(plain(column), column)

    def pick(field: str) -> str | None:
        if field in told:
            return _told(name, field, told[field], found, by_plain)
        for guess in GUESSES.get(field, "").split():
            column = by_plain.get(guess)
            if column is not None and not (guess == "source" and _names_data_set(rows, column)):
                return column
        return None

    told_film = [field for field in FILM if field in told]
    if told_film:
        film = [pick(field) for field in told_film]
    else:
        # A column called "id" or "file" counts only when it looks like MIMIC-CXR's film or study.
        names = [guess for field in FILM for guess in GUESSES[field].split()] + ["id", plain(KEY)]
        film = [by_plain[guess] for guess in names if guess in by_plain]
        film = [column for column in film if any(film_of(row.get(column)) != (None, None) for row in rows)]
    teacher = pick("teacher")
    text, wide = _text(name, told, found, by_plain, pick, teacher)
    # An object or a list names its teachers itself; a conversation does not.
    values = [row.get(column) for row in rows for column in text]
    nested = any(isinstance(value, (dict, list)) and chat_text(value) is None for value in values)
    if not wide and not nested and teacher is None:
        teacher = next((place for place in PLACES if is_vendor(from_name(name, place) or "")), None)
    missing = [field for field, there in (("image (or dicom, study)", film), ("text", text)) if not there]
    if text and not wide and not nested and teacher is None:
        missing.append("teacher")
    if missing:
        raise NoColumns(
            f"{name}: columns found: {show_columns(found)}; no column for: "
            f"{', '.join(missing)}; say which they are, for example {EXAMPLE} (one row a teacher; teacher=@file takes "
            f"the name of the file) or {WIDE_EXAMPLE} (a column a teacher)"
        )
    # A column a label says more than any one column (what is absent), and "findings" beside them may be a report.
    by_label = {} if "labels" in told else _label_columns(rows, by_plain)
    finishes = _finishes(text, by_plain) if wide else {}
    read = {*text, *told.values(), *finishes.values()}
    return Columns(
        tuple(dict.fromkeys(film)),
        tuple(text),
        wide,
        teacher,
        None if by_label else pick("labels"),
        by_label,
        pick("finish"),
        pick("prompt"),
        pick("split"),
        finishes,
        tuple(column for column in found if _tells_of_text(column) and column not in read) if wide else (),
    )


def adds_only(old: Columns, new: Columns) -> bool:
    """Whether rows without the columns that `new` knows and `old` does not are read alike by both."""
    texts = set(old.text) <= set(new.text) if old.wide and new.wide else (old.wide, old.text) == (new.wide, new.text)
    kept = all(getattr(old, name) in (None, getattr(new, name)) for name in ("teacher", "labels", "finish"))
    by_label = old.label_columns.items() <= new.label_columns.items() and not (old.labels and new.label_columns)
    return texts and kept and by_label and set(old.film) <= set(new.film)


def _label_columns(rows: list[dict], by_plain: dict[str, str]) -> dict[str, str]:
    """label -> its column; {} where at most half of the labels have one, or all are blank in these rows."""
    found = {label: by_plain[plain(label)] for label in LABELS if plain(label) in by_plain}
    filled = any(str(row.get(column)).lower() not in ("", "none", "nan") for row in rows for column in found.values())
    return found if filled and len(found) > len(LABELS) // 2 else {}


def _told(name: str, field: str, column: str, found: list[str], by_plain: dict[str, str]) -> str:
    if field == "teacher" and column in PLACES:
        return column
    if column in found:
        return column
    if plain(column) in by_plain:
        return by_plain[plain(column)]
    raise NoColumns(f"{name}: no column {column!r} for {field}; columns found: {show_columns(found)}")


def _text(
    name: str, told: dict, found: list[str], by_plain: dict[str, str], pick: Any, teacher: str | None
) -> tuple[list[str], bool]:
    """(columns of text, whether each of them is a teacher's)."""
    if "text" in told and "+" in told["text"] and told["text"] not in found:
        return [_told(name, "text", one.strip(), found, by_plain) for one in told["text"].split("+")], True
    by_vendor = [column for column in found if is_vendor(column) and not _tells_of_text(column)]
    if teacher is None and "text" not in told and len(by_vendor) > 1:
        return by_vendor, True
    column = pick("text")
    return ([column], False) if column is not None else (by_vendor, bool(by_vendor))


# What a column beside a teacher's text is called by: "gpt-5-nano_finish_reason", "Grok-4 tokens".
_OF_TEXT = re.compile(
    rf"(?:{'|'.join(GUESSES['finish'].split())}|tokens?|usage|cost|price|scores?|latency|seconds|duration|status|"
    r"error|labels?|prompt|id)$"
)


def _tells_of_text(column: object) -> bool:
    return is_vendor(str(column)) and bool(_OF_TEXT.search(plain(column)))


def _finishes(text: list[str], by_plain: dict[str, str]) -> dict[str, str]:
    """Column of a teacher's text -> column of its own finish reason."""
    found = {}
    for column in text:
        names = [plain(column), *(plain(column).removesuffix(word) for word in GUESSES["text"].split())]
        others = [by_plain.get(name + guess) for name in names for guess in GUESSES["finish"].split()]
        if any(others):
            found[column] = next(filter(None, others))
    return found


def _names_data_set(rows: list[dict], column: str) -> bool:
    """Whether a column "source" says where films come from and not who wrote."""
    return not any(is_vendor(str(row.get(column))) for row in rows)


def is_vendor(name: str) -> bool:
    """Whether a name speaks of one of the published teachers' vendors."""
    return any(vendor in plain(name) for vendor in VENDORS)


# What may follow a teacher's name and leave it the same teacher: what a column or file is called by besides, the
# context and kind of Moonshot-v1 that sees images, and the newest snapshot. Not thinking or reasoning: other models.
_AFTER_NAME = sorted(
    {*GUESSES["text"].split(), *GUESSES["teacher"].split(), *SPLITS, "val", "valid", "validation", "data", "latest"}
    - {"thinking", "reasoning", "cot"}
)
_SAME_TEACHER = re.compile(rf"(?:{'|'.join(_AFTER_NAME)}|[0-9]+k|visionpreview){{0,3}}")
_NO_NAME = re.compile(rf"{SNAPSHOT.pattern}|-[0-9]+-of-[0-9]+")  # a date, or a part of a table in several files
# Each name with or without a hyphen between any two characters.
_NAMED = {teacher: re.compile("-?".join(plain(teacher))) for teacher in TEACHERS}


@lru_cache(4096)
def teacher_name(name: object) -> str:
    """The published name of a teacher for any spelling, alone or inside a column's or file's name; else as it is.

    A date or a word such as "response" may follow the name; a version or a variant (claude-sonnet-4-5, grok-4-fast) is
    another teacher.
    """
    text = " ".join(str(name).split())
    hyphened = re.sub(r"[^a-z0-9]+", "-", text.lower())
    found = [(teacher, match) for teacher, pattern in _NAMED.items() if (match := pattern.search(hyphened))]
    if len(found) != 1:
        return text
    ((teacher, match),) = found
    after = plain(_NO_NAME.sub("", hyphened[match.end() :]))
    return teacher if _SAME_TEACHER.fullmatch(after) else text


DICOM = re.compile(r"(?<![0-9a-f])[0-9a-f]{8}(?:-[0-9a-f]{8}){4}(?![0-9a-f-])", re.IGNORECASE)
STUDY = re.compile(r"(?<![a-z0-9])s?(5\d{7})(?:\.0)?(?![0-9])", re.IGNORECASE)


def film_of(value: Any) -> tuple[int | None, str | None]:
    """(study_id, dicom_id) as far as a value says them: a number, an id, a path, a list or an {"path": ...} of such."""
    if isinstance(value, dict):
        value = value.get("path")
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
        if isinstance(value, dict):
            value = value.get("path")
    if value is None or isinstance(value, (bool, bytes)):
        return None, None
    text = str(value)
    dicom, rest = DICOM.search(text), text
    if dicom:
        rest = text[: dicom.start()] + text[dicom.end() :]
    study = STUDY.search(rest)
    return int(study[1]) if study else None, dicom[0].lower() if dicom else None


def chat_text(value: Any) -> str | None:
    """The last answer of a conversation as ms-swift, OpenAI or LLaVA write it, or None when it is none."""
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(turn, dict) for turn in value):
        return None
    for turn in reversed(value):
        role = str(turn.get("role", turn.get("from", ""))).lower()
        text = turn.get("content", turn.get("value"))
        if role in ("assistant", "gpt") and isinstance(text, str):
            return text
    return None


def list_in(text: str) -> list | None:
    """The list that a text is, as JSON or Python write it; None for any other text."""
    if not text.strip().startswith("["):
        return None
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = read(text.strip())
            return value if isinstance(value, list) else None
    return None


def texts_of(row: dict, columns: Columns, where: str, file: str) -> list[tuple[str, Any, Any]]:
    """(teacher, text, finish reason) of one row; text None where the row has none for that teacher."""
    finish = row.get(columns.finish) if columns.finish else None
    if columns.wide:
        own = {column: row.get(other) for column, other in columns.finishes.items()}
        return [(teacher_name(column), row.get(column), own.get(column, finish)) for column in columns.text]
    value = row.get(columns.text[0])
    # A table of plain text holds a conversation as text.
    chat = chat_text(list_in(value) if isinstance(value, str) and value.lstrip().startswith("[{") else value)
    if chat is not None:
        value = chat
    if isinstance(value, dict):
        return [(teacher_name(teacher), *_inner(one, finish)) for teacher, one in value.items()]
    if isinstance(value, (list, tuple)):
        return [_of_list(one, where) for one in value]
    if columns.teacher is None:
        raise UserError(f"{where}: no teacher for its text; {EXAMPLE}")
    if columns.teacher in PLACES:
        teacher = from_name(file, columns.teacher)
        if teacher is None:
            raise UserError(f"{where}: its file has no {columns.teacher[1:]} to take the teacher from; {EXAMPLE}")
    else:
        teacher = row.get(columns.teacher)
        if teacher is None or isinstance(teacher, (list, dict)) or not str(teacher).strip():
            raise UserError(f"{where}: names no teacher in column {columns.teacher!r}; mend the row")
    return [(teacher_name(teacher), value, finish)]


def from_name(file: str, place: str) -> str | None:
    """What "@file" or "@folder" says for a file of the source, or for a split of the Hub ("owner/name[split]")."""
    if file.endswith("]"):
        return file[file.rindex("[") + 1 : -1] if place == "@file" else None
    parts = re.split(r"[/\\]", file)
    if place == "@file":
        return re.sub(r"\.(jsonl|ndjson|json|csv|tsv|parquet)(\.gz)?$", "", parts[-1])
    return parts[-2] if len(parts) > 1 else None


def _of_list(one: Any, where: str) -> tuple[str, Any, Any]:
    if isinstance(one, dict):
        teacher, text, finish = (_key(one, field) for field in ("teacher", "text", "finish"))
        if teacher and text and not isinstance(one[teacher], (list, dict)):
            return teacher_name(one[teacher]), one[text], one.get(finish) if finish else None
    raise UserError(
        f"{where}: a list of trajectories whose entries do not name teacher and text; write one row a (study, teacher)"
    )


def _inner(value: Any, finish: Any) -> tuple[Any, Any]:
    """(text, finish reason) of {"TEACHER": {"text": ..., "finish_reason": ...}}; other values, and the row's reason
    where there is none inside, as they are."""
    text = _key(value, "text") if isinstance(value, dict) else None
    if text is None:
        return value, finish
    inside = _key(value, "finish")
    return value[text], value[inside] if inside else finish


def _key(value: dict, field: str) -> str | None:
    """The key of an object that is called like a field."""
    by_plain = {plain(key): key for key in value}
    return next((by_plain[guess] for guess in GUESSES[field].split() if guess in by_plain), None)
