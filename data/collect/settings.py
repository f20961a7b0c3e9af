"""The YAML of a collection: read, every name and value checked, and the rule for credentialed films."""

import dataclasses
import ipaddress
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from data.collect.prompts import DIAGNOSES, TEMPLATES
from data.errors import UserError
from data.files import out_file, refuse_input
from data.records import did_you_mean
from scripts.machine import write_problem

MODES = ("live", "batch")
MAX_TOKENS_FIELDS = ("max_tokens", "max_completion_tokens")
WITHOUT_DIAGNOSES = ("error", "skip")
# Set by this program, or a credential: never through `extra`.
NOT_EXTRA = {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "stream", "n", "user"}
# Films under PhysioNet's credentialed licence and what was derived from them; looked for anywhere in a source, without
# case and punctuation: better a free source that must be renamed than a credentialed one that is sent.
CREDENTIALED = (
    *("mimic", "mscxr", "cxrmax", "cxrlt", "cxrpro", "chestimagenome", "reflacx", "egdcxr", "eyegaze", "physionet"),
    "vindr",
)
# And whatever the source is called: the folders of a film of MIMIC-CXR, "p10000032/s50414267/".
_MIMIC_FOLDERS = re.compile(r"(?:^|[/\\])p1\d{7}[/\\]s5\d{7}[/\\]")
RULE = (
    "PhysioNet's data use agreement forbids passing credentialed data to third parties, and its notice of 24 Sep 2025 "
    "(Use of MIMIC Data with Large Language Models and Online Services) demands zero data retention, no training use "
    "and no human review, for MIMIC-CXR and what is derived from it"
)


@dataclass(frozen=True)
class Teacher:
    """One endpoint and how it is asked. Holds the NAME of the key's variable, never the key.

    Sizes are pixels and tokens, times seconds, prices are for a million tokens in the budget's currency.
    """

    name: str
    base_url: str
    model: str
    key_env: str | None = None
    prompt: str = "given_diagnoses"
    image_size: int = 1024
    image_quality: int = 95
    image_tokens: int = 4096
    temperature: float | None = None
    max_tokens: int = 2048
    max_tokens_field: str = "max_tokens"
    extra: dict[str, Any] = field(default_factory=dict)
    requests_per_minute: float = 60
    tokens_per_minute: float | None = None
    concurrency: int = 4
    price_in: float | None = None
    price_out: float | None = None
    zero_retention: bool = False
    plain_http: bool = False
    mode: str = "live"
    batch_requests: int = 500
    batch_poll_s: float = 60
    timeout_s: float = 180
    attempts: int = 6
    backoff_s: float = 1
    stop_after: int = 5

    @property
    def template(self) -> str:
        return TEMPLATES.get(self.prompt, self.prompt)

    @property
    def decoding(self) -> dict[str, Any]:
        """What is sent beside model and messages, as it is sent."""
        sent = {self.max_tokens_field: self.max_tokens, **self.extra}
        # As a float: 0 and 0.0 are one setting and must be one key.
        return sent if self.temperature is None else {"temperature": float(self.temperature), **sent}

    @property
    def local(self) -> bool:
        return is_loopback(self.base_url)


@dataclass(frozen=True)
class Config:
    """A collection: which films, which teachers, where to, for how much."""

    studies: str
    out: str
    store: str
    teachers: tuple[Teacher, ...]
    image_root: str | None = None
    budget: float | None = None
    without_diagnoses: str = "error"


TEACHER_KEYS = tuple(one.name for one in dataclasses.fields(Teacher))
CONFIG_KEYS = ("studies", "image_root", "out", "store", "budget", "without_diagnoses", "defaults", "teachers")


def read_config(path: str | os.PathLike[str], *, out: str | None = None) -> Config:
    """Read and check the YAML of a collection.

    Args:
        out: takes the place of the config's `out`.

    Raises:
        UserError: file, field, what is wrong, remedy. Never shows a value that could be a key.
    """
    raw = _load(path)
    _known(raw, CONFIG_KEYS, str(path))
    for name in ("studies", "teachers"):
        if name not in raw:
            raise UserError(f"{path}: {name} is missing; configs/collect_example.yaml shows a whole file")
    for name in ("studies", "image_root", "out", "store"):
        if raw.get(name) is not None and not (isinstance(raw[name], str) and raw[name].strip()):
            raise UserError(f"{path}: {name} must be a path")
    out = out or raw.get("out")
    if not out:
        raise UserError(f"{path}: no place for the result; set out or give --out STUDIES.jsonl")
    refuse_input(out_file(out), path, raw["studies"], option=f"{path}: out")
    store = raw.get("store") or str(Path(out).with_suffix("")) + ".answers"
    if problem := write_problem(f"{path}: store", Path(store)):
        raise UserError(problem)
    budget = raw.get("budget")
    if budget is not None and not _number(budget, 0):
        raise UserError(f"{path}: budget must be a number of 0 or more, or null for none")
    without = raw.get("without_diagnoses", "error")
    if without not in WITHOUT_DIAGNOSES:
        raise UserError(f"{path}: without_diagnoses: {did_you_mean(without, WITHOUT_DIAGNOSES)}")
    teachers = _teachers(raw, path)
    for one in teachers:
        if budget is not None and one.price_in is None and not one.local:
            raise UserError(
                f"{path}: teacher {one.name!r}: a budget needs price_in and price_out; "
                "take them from the provider's price list, or set budget: null"
            )
    return Config(
        studies=raw["studies"],
        out=out,
        store=store,
        teachers=teachers,
        image_root=raw.get("image_root"),
        budget=budget,
        without_diagnoses=without,
    )


def _teachers(raw: dict, path: Any) -> tuple[Teacher, ...]:
    defaults, listed = raw.get("defaults") or {}, raw["teachers"]
    if not isinstance(defaults, dict):
        raise UserError(f"{path}: defaults must be a mapping of teacher fields")
    _known(defaults, TEACHER_KEYS, f"{path}: defaults")
    for name in ("name", "zero_retention"):
        if name in defaults:
            raise UserError(f"{path}: defaults may not set {name}; state it teacher by teacher")
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{path}: teachers must be a list with at least one teacher")
    teachers: list[Teacher] = []
    for place, one in enumerate(listed, 1):
        where = f"{path}: teacher {place}"
        if not isinstance(one, dict):
            raise UserError(f"{where}: must be a mapping of fields")
        _known(one, TEACHER_KEYS, where)
        given = {**defaults, **one}
        for name in ("name", "base_url", "model"):
            if not (isinstance(given.get(name), str) and given[name].strip() == given[name] and given[name]):
                raise UserError(f"{where}: {name} is missing or no plain text; write it in quotes")
        if not given["name"].isprintable():
            raise UserError(f"{where}: name holds control characters; write a plain name")
        where = f"{path}: teacher {given['name']!r}"
        _check_teacher(given, where)
        teachers.append(Teacher(**given))
        if len({t.name.lower() for t in teachers}) < len(teachers):
            raise UserError(f"{where}: comes twice; give each teacher its own name")
    return tuple(teachers)


def _check_teacher(given: dict, where: str) -> None:
    _check_url(given, where)
    _check_key_name(given, where)
    for name, low, whole in (
        ("image_size", 64, True),
        ("image_quality", 1, True),
        ("image_tokens", 1, True),
        ("max_tokens", 1, True),
        ("requests_per_minute", 1e-6, False),
        ("concurrency", 1, True),
        ("batch_requests", 1, True),
        ("batch_poll_s", 1e-3, False),
        ("timeout_s", 1e-3, False),
        ("attempts", 1, True),
        ("backoff_s", 0, False),
        ("stop_after", 1, True),
    ):
        value = given.get(name, getattr(Teacher, name, None))
        if not _number(value, low) or (whole and not isinstance(value, int)):
            raise UserError(f"{where}: {name} must be a {'whole ' if whole else ''}number of at least {low:g}")
    for name, low in (("temperature", 0), ("tokens_per_minute", 1), ("price_in", 0), ("price_out", 0)):
        if given.get(name) is not None and not _number(given[name], low):
            raise UserError(f"{where}: {name} must be a number of at least {low}, or null")
    if given.get("image_quality", 95) > 100:
        raise UserError(f"{where}: image_quality is a JPEG quality of 1 to 100")
    if given.get("batch_requests", 1) > 50_000:
        raise UserError(f"{where}: batch_requests may be 50000 at most, the API's limit")
    if (given.get("price_in") is None) != (given.get("price_out") is None):
        raise UserError(f"{where}: give both price_in and price_out, or neither")
    for name in ("zero_retention", "plain_http"):
        if not isinstance(given.get(name, False), bool):
            raise UserError(f"{where}: {name} must be true or false, without quotes")
    for name, options in (("mode", MODES), ("max_tokens_field", MAX_TOKENS_FIELDS)):
        if given.get(name, options[0]) not in options:
            raise UserError(f"{where}: {name}: {did_you_mean(given[name], options)}")
    prompt = given.get("prompt", "given_diagnoses")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{where}: prompt must be {' or '.join(TEMPLATES)}, or a text of your own")
    if prompt not in TEMPLATES and not re.search(r"\s", prompt.strip()):
        raise UserError(f"{where}: no prompt of that name; {did_you_mean(prompt, TEMPLATES)}")
    for name in re.findall(r"\{\s*\w+\s*\}", prompt):
        if name != DIAGNOSES:
            raise UserError(f"{where}: prompt holds {name[:40]}, which nothing fills in; only {DIAGNOSES} is known")
    extra = given.get("extra", {})
    if not isinstance(extra, dict) or not all(isinstance(name, str) for name in extra):
        raise UserError(f"{where}: extra must be a mapping of request fields")
    for name in extra:
        if name in NOT_EXTRA or re.search(r"key|token$|secret|authorization", name.lower()):
            raise UserError(f"{where}: extra may not hold {name!r}; it has a field of its own or is a credential")
    for name, value in (("model", given["model"]), ("prompt", prompt), ("extra", extra)):
        try:
            # As requests and keys are made of it: YAML also has dates, NaN, half characters and keys of several kinds.
            json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError):
            raise UserError(
                f"{where}: {name} cannot be sent as JSON; use finite numbers, whole characters and quotes around dates"
            ) from None


def _check_url(given: dict, where: str) -> None:
    try:
        url = urlsplit(given["base_url"])
        host, _ = url.hostname, url.port
    except ValueError:
        raise UserError(f"{where}: base_url is no address; write https://HOST/PATH") from None
    if url.scheme not in ("http", "https") or not host:
        raise UserError(f"{where}: base_url must begin with https:// and name a host")
    if url.username or url.password or url.query or url.fragment:
        raise UserError(f"{where}: base_url may hold no user, key or query; the key's variable goes into key_env")
    if url.scheme == "http" and not is_loopback(given["base_url"]) and given.get("plain_http") is not True:
        raise UserError(
            f"{where}: http:// would send key and films unencrypted; use https://, "
            "or set plain_http: true for a server inside your own network"
        )


def _check_key_name(given: dict, where: str) -> None:
    name = given.get("key_env")
    if name is None:
        if not is_loopback(given["base_url"]):
            raise UserError(f"{where}: key_env is missing; name the environment variable that holds the key")
        return
    # A key pasted here by mistake must not be shown: say no more than that it is none.
    if not isinstance(name, str) or not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", name):
        raise UserError(
            f"{where}: key_env must be the NAME of an environment variable in capitals, such as OPENAI_API_KEY; "
            "if that was a key, revoke it: it stands in a file now"
        )


def is_loopback(base_url: str) -> bool:
    """Whether the address is this machine by its own spelling (127.0.0.0/8, ::1, localhost); no name is looked up."""
    host = urlsplit(base_url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_credentialed(study: dict) -> bool:
    """Whether a study's `source` names MIMIC-CXR, data derived from it, or a set of VinDr, or a film lies in folders of
    MIMIC-CXR."""
    plain = re.sub(r"[^a-z0-9]", "", study["source"].lower())
    return any(name in plain for name in CREDENTIALED) or any(map(_MIMIC_FOLDERS.search, study["images"]))


def check_credentialed(teacher: Teacher, studies: list[dict]) -> None:
    """Refuse to send credentialed films to an endpoint that is not this machine and not attested.

    Raises:
        UserError: names the rule, the teacher and how many studies.
    """
    found = [study for study in studies if is_credentialed(study)]
    if not found or teacher.local:
        return
    first = f"first {found[0]['id']!r}, source {found[0]['source']!r}"
    what = f"teacher {teacher.name!r}: {len(found)} studies ({first}) are of VinDr or come from MIMIC-CXR. {RULE}"
    if not teacher.zero_retention:
        raise UserError(
            f"{what}. Use a local model on a loopback address, leave the teacher out, or, if your contract with the "
            "provider says so, attest it with zero_retention: true (the responsibility is yours)"
        )
    if teacher.mode == "batch":
        raise UserError(
            f"{what}. A batch lies in files at the provider until they are deleted, which is retention whatever the "
            "contract says of live requests; set mode: live"
        )


def read_key(teacher: Teacher) -> str | None:
    """The teacher's key from the environment, or None where it has no `key_env`.

    Raises:
        UserError: the variable is not set, empty, or holds what no header can carry. The value is never shown.
    """
    if teacher.key_env is None:
        return None
    key = os.environ.get(teacher.key_env, "")
    if not key:
        raise UserError(f"teacher {teacher.name!r}: variable {teacher.key_env} is not set; export it before the run")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"teacher {teacher.name!r}: variable {teacher.key_env} holds blanks, line breaks or non-ASCII")
    return key


def _load(path: Any) -> dict:
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a collect YAML") from error
    try:
        raw = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        # PyYAML's own message quotes the line, which might hold a key.
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML; check indentation, quotes and names that stand twice") from None
    except (RecursionError, ValueError):  # ValueError: 2024-13-45 is a date to YAML
        raise UserError(f"{path}: not YAML that can be read; check dates and nesting") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must be a mapping; configs/collect_example.yaml shows a whole file")
    return raw


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, where YAML would keep the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "key stands twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _known(given: dict, keys: tuple[str, ...], where: str) -> None:
    for name in given:
        if name not in keys:
            hint = "name the key's variable in key_env, never the key" if "key" in str(name).lower() else None
            shown = ascii(str(name)[:40])
            raise UserError(f"{where}: unknown field {shown}; {hint or did_you_mean(name, keys)}")


def _number(value: Any, low: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= low
