"""A chat-completions server on loopback that fails on demand, its batch endpoints, and films and configs for it."""

import contextlib
import json
import re
import threading
import time
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml
from PIL import Image

from data.collect.__main__ import main
from data.files import read_jsonl
from data.records import write_studies

EFFUSION = "There is a small left pleural effusion. No pneumothorax is seen."
CANARY = "sk-canary-0123456789abcdef"


def completion(text=EFFUSION, *, finish="stop", model=None, usage=(1000, 100), **message):
    """A chat completion; usage None leaves it out."""
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
        ],
    }
    if usage:
        body["usage"] = dict(
            zip(("prompt_tokens", "completion_tokens", "total_tokens"), [*usage, sum(usage)], strict=True)
        )
    return body


def error(code, message="no", kind=None):
    return {"error": {"message": message, "code": code, "type": kind}}


class Server:
    """`answers`: model -> function (number of the request from 1, body) -> (status, body[, headers]) or "cut"."""

    def __init__(self):
        self.answers = {}
        self.requests = []
        self.files, self.batches, self.deleted, self.uploaded = {}, {}, [], []
        self.polls_until_done = 1
        self.lock = threading.Lock()
        self.open = self.most_open = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_POST(self):
                data = self.rfile.read(int(self.headers["Content-Length"]))
                outer._handle(self, "POST", data)

            def do_GET(self):
                outer._handle(self, "GET", b"")

            def do_DELETE(self):
                outer._handle(self, "DELETE", b"")

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *args: None  # clients that are killed or hang up are part of the tests
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def asked(self, model=None):
        """Bodies of the chat requests, of one model or of all."""
        with self.lock:
            found = [one["body"] for one in self.requests if one["path"].endswith("/chat/completions")]
        return [body for body in found if model in (None, body["model"])]

    def _handle(self, handler, method, data):
        path = handler.path.split("?")[0]
        is_json = handler.headers.get("Content-Type", "").startswith("application/json")
        body = json.loads(data) if data and is_json else None
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self.lock:
            self.requests.append(
                {"path": path, "method": method, "headers": headers, "body": body, "at": time.monotonic()}
            )
            model = body.get("model") if body else None
            number = sum(bool(one["body"]) and one["body"].get("model") == model for one in self.requests)
            self.open += 1
            self.most_open = max(self.most_open, self.open)
        try:
            if path.endswith("/chat/completions"):
                outcome = self._complete(number, body)
            else:
                outcome = self._batch(method, path, body, data, handler.headers)
        finally:
            with self.lock:
                self.open -= 1
        with contextlib.suppress(OSError):
            self._reply(handler, outcome)

    def _complete(self, number, body):
        return self.answers.get(body["model"], lambda n, b: (200, completion(model=b["model"])))(number, body)

    def _reply(self, handler, outcome):
        if outcome == "cut":
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", "5000")
            handler.end_headers()
            handler.wfile.write(b'{"choices": [{"mess')
            handler.close_connection = True
            return
        status, body, *rest = outcome
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(raw)))
        for name, value in (rest[0] if rest else {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(raw)

    def _batch(self, method, path, body, data, headers):
        with self.lock:
            if method == "POST" and path == "/v1/files":
                head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
                parts = BytesParser().parsebytes(head + data).get_payload()
                content = next(part.get_payload(decode=True) for part in parts if part.get_filename())
                name = f"file-{len(self.files)}"
                self.files[name] = content
                self.uploaded.append(content)
                return 200, {"id": name, "object": "file", "bytes": len(content), "created_at": 0, "purpose": "batch"}
            if method == "POST" and path == "/v1/batches":
                name = f"batch-{len(self.batches)}"
                self.batches[name] = {"polls": 0, "metadata": body.get("metadata"), "input": body["input_file_id"]}
                return 200, self._batch_object(name)
            if method == "GET" and path == "/v1/batches":
                return 200, {"object": "list", "data": [self._batch_object(name) for name in self.batches]}
            found = re.fullmatch(r"/v1/batches/([\w-]+)", path)
            if found:
                return self._poll(found[1])
            found = re.fullmatch(r"/v1/files/([\w-]+)(/content)?", path)
            if found and found[1] in self.files and method == "GET":
                return 200, self.files[found[1]]
            if found and method == "DELETE":
                self.deleted.append(found[1])
                self.files.pop(found[1])
                return 200, {"id": found[1], "object": "file", "deleted": True}
        return 404, error("not_found")

    def _poll(self, name):
        batch = self.batches[name]
        batch["polls"] += 1
        if batch["polls"] > self.polls_until_done and "output" not in batch:
            lines = []
            for number, raw in enumerate(self.files[batch["input"]].splitlines(), 1):
                line = json.loads(raw)
                default = lambda n, b: (200, completion(model=b["model"]))  # noqa: E731
                outcome = self.answers.get(line["body"]["model"], default)(number, line["body"])
                if outcome is not None:
                    lines.append(
                        {
                            "id": "r",
                            "custom_id": line["custom_id"],
                            "response": {"status_code": outcome[0], "request_id": "q", "body": outcome[1]},
                            "error": None,
                        }
                    )
            self.files[f"out-{name}"] = "".join(json.dumps(one) + "\n" for one in lines).encode()
            batch["output"] = f"out-{name}"
        return 200, self._batch_object(name)

    def _batch_object(self, name):
        batch = self.batches[name]
        return {
            "id": name,
            "object": "batch",
            "completion_window": "24h",
            "created_at": 0,
            "endpoint": "/v1/chat/completions",
            "input_file_id": batch["input"],
            "status": "completed" if "output" in batch else "in_progress",
            "output_file_id": batch.get("output"),
            "metadata": batch["metadata"],
        }


class World:
    """A folder with films, a manifest and a config for the server."""

    def __init__(self, folder, server):
        self.folder, self.server = folder, server
        self.config = folder / "collect.yaml"
        self.out = folder / "out" / "studies.jsonl"
        self.store = folder / "out" / "studies.answers"

    def films(self, count, **changes):
        (self.folder / "films").mkdir(exist_ok=True)
        studies = []
        for number in range(count):
            Image.new("L", (80, 64), number % 256).save(self.folder / f"films/{number}.png")
            studies.append(
                {
                    "id": f"s{number}",
                    "patient": f"p{number}",
                    "source": "test",
                    "split": "train",
                    "images": [f"films/{number}.png"],
                    "prompt": "What is seen? <image>",
                    "trajectories": [],
                    "findings": {"Pleural Effusion": {"state": "present"}, "Edema": {"state": "absent"}},
                    **changes,
                }
            )
        write_studies(self.folder / "manifest.jsonl", studies)
        return studies

    def write(self, *teachers, **changes):
        """Write the config; each teacher is a mapping of the fields that matter to the test."""
        base = {
            "base_url": self.server.url,
            "key_env": "CANARY_KEY",
            "requests_per_minute": 100000,
            "backoff_s": 0.01,
            "image_tokens": 1000,
            "max_tokens": 200,
            "timeout_s": 20,
        }
        listed = [{**base, "model": one["name"], **one} for one in teachers]
        whole = {"studies": str(self.folder / "manifest.jsonl"), "out": str(self.out), "teachers": listed, **changes}
        self.config.write_text(yaml.safe_dump(whole))
        return self.config

    def rows(self, kind="answers"):
        """All rows of a kind in the store."""
        return [row for path in sorted(self.store.glob(f"{kind}/*.jsonl")) for _, row in read_jsonl(path, torn="drop")]

    def result(self):
        return [study for _, study in read_jsonl(self.out)]

    def trajectories(self, teacher):
        """{study id: trajectory} of one teacher in the result."""
        return {s["id"]: t for s in self.result() for t in s["trajectories"] if t["teacher"] == teacher}


def collect(world, *words):
    """Run the command on the world's config; returns its status."""
    return main([str(world.config), *words])
