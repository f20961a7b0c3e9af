"""Which questions a collection asks: one a (study, teacher), each under the key of all that its answer depends on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data.collect.asking import Task
from data.collect.films import hash_films
from data.collect.prompts import render
from data.collect.settings import Config, Teacher, check_credentialed
from data.collect.store import Store, answer_key
from data.errors import Problems, UserError
from data.records import image_paths, read_studies


@dataclass
class Plan:
    """One teacher's questions. keys: study id -> key; tasks: by key, as two studies may show the same film."""

    teacher: Teacher
    keys: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    skipped: int = 0

    def open(self, store: Store) -> list[Task]:
        """Questions without an answer in the store."""
        return [task for key, task in self.tasks.items() if store.get(self.teacher.name, key) is None]


def read_manifest(config: Config, limit: int | None = None) -> list[dict]:
    """The studies to ask about, checked.

    Raises:
        UserError: no study; a trajectory of one of the config's teachers is there already; credentialed films for an
            endpoint that may not see them.
    """
    studies = []
    names = {teacher.name for teacher in config.teachers}
    for study in read_studies(config.studies):
        if len(studies) == limit:
            break
        twice = names & {one["teacher"] for one in study["trajectories"]}
        if twice:
            raise UserError(
                f"{config.studies}: study {study['id']!r} has a trajectory of {min(twice)!r} already; "
                "take it out of the manifest or the teacher out of the config"
            )
        studies.append(study)
    if not studies:
        raise UserError(f"{config.studies}: holds no study; write one study record a line")
    for teacher in config.teachers:
        check_credentialed(teacher, studies)
    return studies


def make_plans(
    config: Config,
    studies: list[dict],
    root: str,
    *,
    keep_cache: bool,
    allow_outside: bool = False,
    tell: Callable[[int, int], None],
) -> list[Plan]:
    """Check every film and work out every teacher's questions, before anything is sent.

    Raises:
        UserError: lists unusable films, or studies without a diagnosis to give.
    """
    texts = {teacher.name: [render(teacher.template, study) for study in studies] for teacher in config.teachers}
    if config.without_diagnoses == "error":
        _refuse_without_diagnoses(config, studies, texts)
    paths = [image_paths(study, root) for study in studies]
    hashes = hash_films(
        [path for some in paths for path in some],
        [(teacher.image_size, teacher.image_quality) for teacher in config.teachers],
        root=root,
        cache=Path(config.store) / "films.jsonl",
        keep=keep_cache,
        allow_outside=allow_outside,
        tell=tell,
    )
    plans = []
    for teacher in config.teachers:
        plan = Plan(teacher)
        for study, films, text in zip(studies, paths, texts[teacher.name], strict=True):
            if text is None:
                plan.skipped += 1
                continue
            sent = tuple((path, hashes[path, teacher.image_size, teacher.image_quality]) for path in films)
            key = answer_key(teacher, text, [value for _, value in sent])
            plan.keys[study["id"]] = key
            plan.tasks.setdefault(key, Task(key, study["id"], text, sent))
        plans.append(plan)
    return plans


def _refuse_without_diagnoses(config: Config, studies: list[dict], texts: dict[str, list[str | None]]) -> None:
    problems = Problems(config.studies)
    for place, study in enumerate(studies):
        asked = [name for name, some in texts.items() if some[place] is None]
        if asked:
            problems.add(
                f"{config.studies}: study {study['id']!r}: findings mark no diagnosis present, which {asked[0]!r} is "
                "to be given; add findings, choose prompt: open, or leave such studies out by without_diagnoses: skip"
            )
    problems.refuse()
