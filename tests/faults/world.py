"""A miniature world: films, teachers behind a local server, a tiny student, and what the stages make undisturbed."""

import contextlib
import hashlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from data.files import read_jsonl
from data.phantom import cohort
from data.phantom.student import SHAPES, build_student, training_texts
from data.records import write_studies
from tests.data.collect_server import Server, completion, error

TEACHERS = ("a", "b", "c", "d")
SENTENCES = ("Kein Erguß; small left effusion ≥ 2 cm.", "No edema – none.", "Clear lungs.", "Right pneumothorax.")


class World:
    """The folder of a fault run; `trial()` gives fresh folders below it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.cohort, self.student = folder / "cohort", folder / "student"
        self.studies, self.consensus = self.cohort / "studies.jsonl", folder / "consensus.jsonl"
        self.manifest = folder / "manifest.jsonl"
        self._count, self._lock = 0, threading.Lock()
        self._servers: list[Server] = []

    def trial(self, name: str) -> Path:
        """A new, empty folder."""
        with self._lock:
            self._count += 1
            folder = self.folder / f"{self._count:03d}-{name}"
        folder.mkdir()
        return folder

    def collect_config(self, folder: Path) -> Path:
        """A configuration of Collect in `folder`, with a server of its own; the same file when asked again."""
        path = folder / "collect.yaml"
        if path.exists():
            return path
        server = Server()
        self._servers.append(server)
        common = {
            "base_url": server.url,
            "key_env": "CANARY_KEY",
            "prompt": "open",
            "requests_per_minute": 100000,
            "backoff_s": 0.01,
            "image_tokens": 1000,
            "max_tokens": 200,
            "concurrency": 2,
        }
        teachers = [{"name": name, "model": name, **common} for name in TEACHERS]
        teachers[-1] |= {"mode": "batch", "batch_poll_s": 0.1, "batch_requests": 6}
        server.answers = dict.fromkeys(TEACHERS, _answer)
        whole = {"studies": str(self.manifest), "image_root": str(self.cohort), "teachers": teachers}
        path.write_text(yaml.safe_dump(whole), encoding="utf-8")
        return path

    def close(self) -> None:
        for server in self._servers:
            server.close()


@contextlib.contextmanager
def world_in(folder: Path) -> Iterator[World]:
    """Draw 12 + 6 films and build the student; the servers of its trials run while the block does."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun with & or nohup: what we start would ignore it, too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    folder.mkdir(parents=True, exist_ok=True)
    world = World(folder)
    try:
        cohort.build(world.cohort, seed=0, train=12, validate=0, test=6, size=112)
        studies = [study for _, study in read_jsonl(world.studies)]
        write_studies(world.manifest, [{**study, "trajectories": []} for study in studies])
        for study in studies:  # text that ASCII cannot hold, on its way through every stage
            study["trajectories"][0]["text"] += f" {SENTENCES[0]}"
        write_studies(world.studies, studies)
        build_student(world.student, seed=0, texts=training_texts(world.studies), shape=SHAPES["tiny"])
        for study in studies:
            study["consensus"] = {"text": f"No pneumothorax. {SENTENCES[0]}", "strategy": "self"}
        write_studies(world.consensus, studies)
        yield world
    finally:
        world.close()


def _answer(number: int, body: dict):
    """The same question, the same answer; every ninth request of a live teacher fails at first."""
    if body["model"] != TEACHERS[-1]:
        time.sleep(0.02)
        if number % 9 == 0:
            return 500, error("server_error")
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
    text = " ".join(SENTENCES[byte % len(SENTENCES)] for byte in digest[:2])
    return 200, completion(text, model=body["model"])
