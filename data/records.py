"""The study record: one JSON object a line. data/README.md describes it for users; this file checks it.

python -m data.records STUDIES.jsonl [--image-root DIR] [--check-images]
"""

import argparse
import difflib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from data.errors import Problems, UserError, run_cli
from data.files import StrPath, atomic_open, dump_line, first_places, read_jsonl
from data.findings_lexicon import LABELS
from data.images import decode_problem, file_problem

SPLITS = ("train", "validate", "test")
STATUSES = ("ok", "truncated", "filtered", "refused", "empty")
VIEWS = ("AP", "PA")
STATES = ("present", "absent", "uncertain")
SIDES = ("left", "right", "bilateral")
SEVERITIES = ("small", "moderate", "large")
PROGRESSIONS = ("improving", "stable", "worsening")

REQUIRED = ("id", "patient", "source", "split", "images", "prompt", "trajectories")
OPTIONAL = ("consensus", "report", "findings", "prior", "view")

IMAGE_TAG = "<image>"
ALLOW_OUTSIDE = "take images that a link inside the image root leads to outside of it"
# What ms-swift replaces in a text (Template.special_tokens) or a tokenizer reads as one special token: inside a text it
# would become an image that is not there, or the end of a turn.
PLACEHOLDER = re.compile(
    r"<(?:image|video|audio|bbox|ref-object|cot-process|start-image|end-image|/?img|IMG_CONTEXT|image_soft_token)>"
    r"|<\|[^|<>\s]{1,40}\|>"
)


def clean(text: str) -> tuple[str, bool]:
    """(text without what a study record may not hold: special tokens, NUL, half surrogates; whether it changed)."""
    if text.isascii() and "<" not in text and "\0" not in text:
        return text, False
    cleaned = text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
    while PLACEHOLDER.search(cleaned):  # taking one out may join another
        cleaned = PLACEHOLDER.sub("", cleaned)
    return cleaned, cleaned != text


def read_studies(path: StrPath, *, image_root: StrPath | None = None, check_images: bool = False) -> Iterator[dict]:
    """Yield the checked study records of a JSONL file, one in memory at a time.

    Args:
        image_root: folder that `images` are relative to; by default the folder of the file.
        check_images: first go through the whole file and decode every image, before the first record is handed out.

    Raises:
        UserError: "FILE:LINE: study ID: what; remedy". With `check_images` one error lists the first ten problems.
    """
    if check_images:
        check_studies(path, image_root=image_root, decode=True)
    for _, study in numbered_studies(path):
        yield study


def numbered_studies(
    path: StrPath, *, on_error: Callable[[UserError], None] | None = None
) -> Iterator[tuple[int, dict]]:
    """Yield (line number, checked record); `on_error` takes a bad record's error instead of having it raised."""
    with first_places() as first_place:
        for number, study in read_jsonl(path):
            where = f"{path}:{number}"
            try:
                check_study(study, where=where)
                first = first_place(study["id"], number)
                if first != number:
                    raise UserError(
                        f"{where}: study {study['id']!r} stands in line {first} already; give each its own id"
                    )
            except UserError as error:
                if on_error is None:
                    raise
                on_error(error)
            else:
                yield number, study


def check_studies(
    path: StrPath, *, image_root: StrPath | None = None, decode: bool = False, allow_outside: bool = False
) -> dict[str, Any]:
    """Check every record and every image of a file and count what is in it.

    Args:
        decode: decode the images too, not only look whether each is there.
        allow_outside: take images that links lead to outside the image root.

    Returns:
        {"studies", "splits": {split: n}, "trajectories": {status: n}, "consensus": n, "images": n}.

    Raises:
        UserError: lists the first ten problems and how many there are.
    """
    root = root_of(path, image_root)
    problems = Problems(path)
    splits, trajectories = Counter(), Counter()
    studies = consensus = images = 0
    for number, study in numbered_studies(path, on_error=problems.add):
        studies += 1
        splits[study["split"]] += 1
        trajectories.update(one["status"] for one in study["trajectories"])
        consensus += study.get("consensus") is not None
        images += len(study["images"])
        for problem in image_problems(study, root, decode=decode, allow_outside=allow_outside):
            problems.add(f"{path}:{number}: {problem}")
    problems.refuse()
    if not studies:
        raise UserError(f"{path}: holds no study; write one JSON object a line")
    return {
        "studies": studies,
        "splits": dict(splits),
        "trajectories": dict(trajectories),
        "consensus": consensus,
        "images": images,
    }


def write_studies(path: StrPath, studies: Iterable[dict]) -> int:
    """Check the records and replace `path` by them at once; return how many. A bad one leaves the old file alone."""
    number = 0
    with first_places() as first_place, atomic_open(path) as out:
        for number, study in enumerate(studies, 1):
            where = f"{path}: record {number} to be written"
            check_study(study, where=where)
            if first_place(study["id"], number) != number:
                raise UserError(f"{where}: study {study['id']!r} comes twice; give each its own id")
            out.write(dump_line(study))
    return number


def root_of(path: StrPath, image_root: StrPath | None = None) -> str:
    """Absolute image root of a study file: `image_root`, or the folder of the file when that is None."""
    if image_root is None:
        return os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(image_root):
        raise UserError(f"{image_root}: image root is not a folder; name the folder that image paths start from")
    return os.path.abspath(image_root)


def tell_root(out: StrPath, studies: StrPath) -> None:
    """Say what --image-root the file `out`, made of `studies`, needs where it is in another folder."""
    root = root_of(studies)
    if root_of(out) != root:
        print(
            f"note: image paths start where those of {studies} do: give later commands the same --image-root "
            f"({root} if it needed none)"
        )


def image_paths(study: dict, root: StrPath) -> list[str]:
    """Absolute paths of a study's images, in the order of its <image> tags."""
    return [os.path.join(os.path.abspath(root), *name.split("/")) for name in study["images"]]


def image_problems(study: dict, root: StrPath, *, decode: bool = False, allow_outside: bool = False) -> Iterator[str]:
    """Yield "study ID: image PATH what; remedy" for each image of a study that cannot be used.

    Args:
        allow_outside: take images that links lead to outside `root`.
    """
    for path in image_paths(study, root):
        problem = file_problem(path, os.sep if allow_outside else root) or (decode_problem(path) if decode else None)
        if problem:
            yield f"study {study['id']!r}: image {path} {problem}"


def require_images(path: StrPath, studies: Sequence[dict], root: StrPath, *, allow_outside: bool = False) -> None:
    """Look for every image of the studies of `path`, and decode those of about 24 studies spread over them.

    Raises:
        UserError: "PATH: study ID: image ..." for the first image that cannot be used.
    """
    step = max(1, len(studies) // 24)
    for place, study in enumerate(studies):
        for problem in image_problems(study, root, decode=place % step == 0, allow_outside=allow_outside):
            raise UserError(f"{path}: {problem}")


def check_study(study: Any, *, where: str = "study record") -> dict:
    """Check one record against data/README.md, images' contents apart, and return it.

    Raises:
        UserError: "WHERE: study ID: what; remedy" for the first thing that is wrong.
    """
    if not isinstance(study, dict):
        raise UserError(
            f"{where}: {_kind(study)} where a study record must be a JSON object; write {{...}} on each line"
        )
    _keys(study, REQUIRED, OPTIONAL, where, "")
    _name(study["id"], where, "id")
    where = f"{where}: study {study['id']!r}"
    _name(study["patient"], where, "patient")
    _name(study["source"], where, "source")
    _choice(study["split"], SPLITS, where, "split")
    _images(study["images"], where)
    _prompt(study["prompt"], len(study["images"]), where)
    _trajectories(study["trajectories"], where)
    if study.get("consensus") is not None:
        _consensus(study["consensus"], where)
    if study.get("report") is not None:
        _text(study["report"], where, "report", special=True)
    if study.get("findings") is not None:
        check_findings(study["findings"], where)
    if study.get("prior") is not None:
        _name(study["prior"], where, "prior")
        if study["prior"] == study["id"]:
            raise UserError(f"{where}: prior names the study itself; name the earlier study or write null")
    if study.get("view") is not None:
        _choice(study["view"], VIEWS, where, "view")
    return study


def did_you_mean(word: object, options: Iterable[str]) -> str:
    """ "did you mean 'X'?" for the closest option, else "use one of A, B, C"."""
    options = list(options)
    by_lower = {option.lower(): option for option in options}
    close = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.5)
    return f"did you mean {by_lower[close[0]]!r}?" if close else f"use one of {', '.join(options)}"


def _images(images: Any, where: str) -> None:
    if not isinstance(images, list) or not images:
        raise UserError(f"{where}: images is {_kind(images)}; write a list with at least one relative path")
    for name in images:
        _string(name, where, "an entry of images")
        if not name.strip():
            raise UserError(f"{where}: images holds an empty path; name the file")
        if "://" in name or name.startswith("data:"):
            raise UserError(f"{where}: images holds an address, not a file; download it and name its path")
        if "\\" in name or name.startswith("/") or re.match(r"[A-Za-z]:", name):
            raise UserError(f"{where}: image path {name!r} must be relative to the image root, with / between folders")
        if ".." in name.split("/"):
            raise UserError(f"{where}: image path {name!r} leaves the image root by '..'; choose a higher image root")


def _prompt(prompt: Any, images: int, where: str) -> None:
    _text(prompt, where, "prompt", special=True)
    tags = prompt.count(IMAGE_TAG)
    if tags != images:
        raise UserError(
            f"{where}: prompt has {tags} {IMAGE_TAG} tag(s) for {images} image(s); "
            f"put one {IMAGE_TAG} into the prompt for each image, or mend the list of images"
        )
    found = PLACEHOLDER.search(prompt.replace(IMAGE_TAG, ""))
    if found:
        raise UserError(f"{where}: prompt holds the special token {found[0]}; take it out")


def _trajectories(trajectories: Any, where: str) -> None:
    if not isinstance(trajectories, list):
        raise UserError(f"{where}: trajectories is {_kind(trajectories)}; write a list ([] before there are any)")
    teachers = set()
    for place, one in enumerate(trajectories, 1):
        here = f"{where}: trajectory {place}"
        if not isinstance(one, dict):
            raise UserError(f"{here}: is {_kind(one)}; write an object with teacher, text and status")
        _keys(one, ("teacher", "text", "status"), (), here, "")
        _name(one["teacher"], here, "teacher")
        here = f"{where}: trajectory of {one['teacher']!r}"
        if one["teacher"] in teachers:
            raise UserError(f"{here}: comes twice; keep one a teacher")
        teachers.add(one["teacher"])
        _choice(one["status"], STATUSES, here, "status")
        if one["status"] == "ok":
            _text(one["text"], here, "text", blank_remedy="set its status to 'empty'")
        else:
            # Kept as it came: what is not ok is counted, never trained on, voted or compared.
            _string(one["text"], here, "text")


def _consensus(consensus: Any, where: str) -> None:
    here = f"{where}: consensus"
    if not isinstance(consensus, dict):
        raise UserError(f"{here}: is {_kind(consensus)}; write an object with text and strategy, or null")
    _keys(consensus, ("text", "strategy"), ("audit",), here, "")
    _text(consensus["text"], here, "text", blank_remedy="leave the consensus out where there is none")
    _name(consensus["strategy"], here, "strategy")
    if consensus.get("audit") is not None:
        _json(consensus["audit"], f"{here} audit")


def check_findings(findings: Any, where: str) -> None:
    """Raise UserError, beginning with `where`, for what is not the `findings` of a study record."""
    if not isinstance(findings, dict):
        raise UserError(f"{where}: findings is {_kind(findings)}; write an object from label to state")
    for label, finding in findings.items():
        if label not in LABELS:
            raise UserError(f"{where}: findings has no label {_short(label)}; {did_you_mean(label, LABELS)}")
        here = f"{where}: finding {label!r}"
        if not isinstance(finding, dict):
            raise UserError(f"{here}: is {_kind(finding)}; write an object with a state")
        _keys(finding, ("state",), ("side", "severity", "progression"), here, "")
        _choice(finding["state"], STATES, here, "state")
        for key, options in (("side", SIDES), ("severity", SEVERITIES), ("progression", PROGRESSIONS)):
            if finding.get(key) is not None:
                _choice(finding[key], options, here, key)


def _keys(record: dict, required: tuple[str, ...], optional: tuple[str, ...], where: str, what: str) -> None:
    unknown = [key for key in record if key not in required and key not in optional]
    if unknown:
        known = (*required, *optional)
        raise UserError(f"{where}: unknown field {_short(unknown[0])}; {did_you_mean(unknown[0], known)}")
    missing = [key for key in required if key not in record]
    if missing:
        raise UserError(f"{where}: field(s) missing: {', '.join(missing)}; data/README.md shows a whole record")


def _name(value: Any, where: str, field: str) -> None:
    _string(value, where, field)
    if not value or value != value.strip() or not value.isprintable():
        raise UserError(f"{where}: {field} is empty, has blanks around it or control characters; write a plain name")


def _choice(value: Any, options: tuple[str, ...], where: str, field: str) -> None:
    if value not in options:
        shown = _short(value) if isinstance(value, str) else _kind(value)
        raise UserError(f"{where}: {field} is {shown}; {did_you_mean(value, options)}")


def _text(
    value: Any, where: str, field: str, *, special: bool = False, blank_remedy: str = "write it or leave it out"
) -> None:
    _string(value, where, field)
    if not value or value.isspace():
        raise UserError(f"{where}: {field} is empty; {blank_remedy}")
    if not special and "<" in value:
        found = PLACEHOLDER.search(value)
        if found:
            raise UserError(f"{where}: {field} holds the special token {found[0]}; take it out of the text")


def _string(value: Any, where: str, field: str) -> None:
    if not isinstance(value, str):
        hint = ' (write it in quotes: "123")' if isinstance(value, int) and not isinstance(value, bool) else ""
        raise UserError(f"{where}: {field} is {_kind(value)}; write a string{hint}")
    if "\0" in value:
        raise UserError(f"{where}: {field} holds a NUL character (\\u0000); take it out")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(
                f"{where}: {field} holds half a surrogate pair (\\ud800 to \\udfff); write whole characters"
            ) from None


def _json(value: Any, where: str) -> None:
    """Check a value of any shape by writing it: only strict JSON of whole characters can be read back by others."""
    try:
        line = dump_line(value)
    except (
        ValueError,
        TypeError,
        RecursionError,
    ) as error:  # UnicodeEncodeError, for half a surrogate, is a ValueError
        raise UserError(
            f"{where}: cannot be written as JSON ({type(error).__name__}); use finite numbers and whole characters"
        ) from error
    if b"\\u0000" in line:
        raise UserError(f"{where}: holds a NUL character (\\u0000); take it out")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (bool, int, float)):
        return "true/false" if isinstance(value, bool) else "a number"
    if isinstance(value, (str, list, dict)) and not value:
        return {str: "an empty string", list: "an empty list", dict: "an empty object"}[type(value)]
    return {str: "a string", list: "a list", dict: "an object"}.get(type(value), type(value).__name__)


def _short(key: str) -> str:
    """A word as it stands; of what may be a text only that it is one, since no message holds a patient's."""
    return ascii(key) if re.fullmatch(r"[\w/ -]{0,30}", key) else f"a text of {len(key)} characters"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.records", description="Check a file of study records.")
    parser.add_argument("studies", help="study records, one JSON object a line")
    parser.add_argument("--image-root", help="folder that image paths start from (default: the folder of STUDIES)")
    parser.add_argument("--check-images", action="store_true", help="decode every image, not only look for the file")
    parser.add_argument("--allow-outside", action="store_true", help=ALLOW_OUTSIDE)
    options = parser.parse_args()
    counts = check_studies(
        options.studies,
        image_root=options.image_root,
        decode=options.check_images,
        allow_outside=options.allow_outside,
    )
    print(f"{options.studies}: {counts['studies']} studies, {counts['images']} images, {counts['consensus']} consensus")
    for name in ("splits", "trajectories"):
        print(f"{name}: " + (", ".join(f"{key} {n}" for key, n in sorted(counts[name].items())) or "none"))


if __name__ == "__main__":
    run_cli(main)
