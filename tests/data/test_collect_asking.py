"""Asking live: every fault of an endpoint, limits, budget, resume, output. The server is on loopback."""

import asyncio
import base64
import gc
import io
import json
import threading
import time

import pytest
from PIL import Image

from data.collect.__main__ import _error_of
from data.collect.endpoint import backoff
from data.collect.settings import Teacher
from data.errors import UserError
from tests.data.collect_server import CANARY, EFFUSION, collect, completion, error


def ok(number, body):
    return 200, completion(model=body["model"])


def test_every_teacher_answers_every_study(world, capsys):
    world.films(3)
    world.write({"name": "a", "temperature": 0, "extra": {"seed": 7}}, {"name": "b", "prompt": "open"})
    assert collect(world) == 0
    assert [s["id"] for s in world.result()] == ["s0", "s1", "s2"]
    for study in world.result():
        assert study["trajectories"] == [{"teacher": t, "text": EFFUSION, "status": "ok"} for t in ("a", "b")]
    sent = world.server.asked("a")[0]
    assert {k: sent[k] for k in ("model", "temperature", "max_tokens", "seed")} == {
        "model": "a",
        "temperature": 0,
        "max_tokens": 200,
        "seed": 7,
    }
    text, image = sent["messages"][0]["content"]
    assert "diagnoses of this study are: Pleural Effusion." in text["text"]
    prefix, data = image["image_url"]["url"].split(",")
    assert prefix == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (80, 64)
    assert "Effusion" not in world.server.asked("b")[0]["messages"][0]["content"][0]["text"]
    assert "temperature" not in world.server.asked("b")[0]
    row = world.rows()[0]
    assert json.loads(row["raw"])["choices"][0]["message"]["content"] == EFFUSION
    assert (row["tokens_in"], row["tokens_out"], row["attempts"]) == (1000, 100, 1)
    assert world.server.requests[0]["headers"]["authorization"] == f"Bearer {CANARY}"


def test_a_finished_job_asks_nothing_again_even_without_the_key(world, monkeypatch, capsys):
    world.films(3)
    world.write({"name": "a"}, {"name": "b"})
    assert collect(world) == 0
    before, asked = world.out.read_bytes(), len(world.server.requests)
    monkeypatch.delenv("CANARY_KEY")
    world.out.unlink()
    assert collect(world) == 0
    assert len(world.server.requests) == asked == 6
    assert world.out.read_bytes() == before


def test_only_what_changed_is_asked_again(world, capsys):
    world.films(3)
    world.write({"name": "a"}, {"name": "b"})
    collect(world)
    Image.new("L", (80, 64), 222).save(world.folder / "films/1.png")
    world.write({"name": "a"}, {"name": "b", "temperature": 1})
    assert collect(world) == 0
    assert len(world.server.asked("a")) == 3 + 1
    assert len(world.server.asked("b")) == 3 + 3


def test_two_studies_with_one_film_are_asked_once(world, capsys):
    world.films(2)
    (world.folder / "films/1.png").write_bytes((world.folder / "films/0.png").read_bytes())
    world.write({"name": "a"})
    assert collect(world) == 0
    assert len(world.server.asked()) == 1
    assert len(world.trajectories("a")) == 2
    assert "1 with the same films and prompt as another" in capsys.readouterr().out


def test_dry_run_sends_and_writes_nothing(world, monkeypatch, capsys):
    world.films(2)
    world.write({"name": "a", "price_in": 1000.0, "price_out": 0.0})
    monkeypatch.delenv("CANARY_KEY")
    assert collect(world, "--dry-run") == 0
    assert world.server.requests == []
    assert not world.out.parent.exists()
    said = capsys.readouterr().out
    assert "2 to ask (live, prompt given_diagnoses)" in said
    assert "the run itself would end here: teacher 'a': variable CANARY_KEY is not set" in said
    # Two films of 1000 tokens and the text, at 1000 a million: a little over 2.
    assert 2.0 < float(said.split("at most ")[1].split(",")[0]) < 4.0


def test_answers_that_are_not_ok_are_counted_and_kept_apart(world, capsys):
    films = [
        (200, completion(finish="length", model="a")),
        (200, completion(finish="content_filter", model="a")),
        (200, completion("I'm sorry, I can't interpret medical images.", model="a")),
        (200, completion("", model="a")),
        (400, error("content_filter", "blocked")),
        (200, completion(model="a")),
    ]
    world.films(len(films))
    world.server.answers["a"] = lambda number, body: films[number - 1]
    world.write({"name": "a", "concurrency": 1})
    assert collect(world) == 0
    found = [world.trajectories("a")[f"s{n}"]["status"] for n in range(len(films))]
    assert found == ["truncated", "filtered", "refused", "empty", "filtered", "ok"]
    assert len(world.server.asked()) == len(films)  # a filtered request is never sent again
    said = capsys.readouterr().out
    assert "a: 1 ok, 1 truncated, 2 filtered, 1 refused, 1 empty" in said
    assert "5 of them without an ok trajectory" in said
    assert json.loads((world.store / "summary.json").read_text())["teachers"]["a"]["statuses"]["filtered"] == 2


@pytest.mark.parametrize(
    "fault",
    [
        lambda: (500, error("oops")),
        lambda: (529, b"overloaded"),
        lambda: "cut",
        lambda: (200, b'{"choices": ['),
        lambda: (200, error("upstream")),
        lambda: (200, completion(finish="network_error")),
        lambda: (429, error("rate_limit_exceeded"), {"Retry-After": "0"}),
        lambda: (408, b""),
    ],
    ids=["500", "529", "cut", "half a JSON", "error under 200", "network_error", "429", "408"],
)
def test_passing_faults_are_asked_again(world, capsys, fault):
    world.films(1)
    world.server.answers["a"] = lambda number, body: fault() if number < 3 else ok(number, body)
    world.write({"name": "a"})
    assert collect(world) == 0
    assert len(world.server.asked()) == 3
    assert world.rows()[0]["attempts"] == 3
    assert [row["attempt"] for row in world.rows("failures")] == [1, 2]


def test_retries_end_and_the_question_is_left_for_the_next_run(world, capsys):
    world.films(2)
    broken = [True]
    world.server.answers["a"] = lambda n, b: (503, b"") if broken else ok(n, b)
    world.write({"name": "a", "attempts": 3}, {"name": "b"})
    assert collect(world) == 1
    assert len(world.server.asked("a")) == 2 * 3
    assert world.trajectories("a") == {} and len(world.trajectories("b")) == 2
    assert "2 questions have no answer yet" in capsys.readouterr().out
    broken.clear()
    assert collect(world) == 0
    assert len(world.trajectories("a")) == 2
    assert len(world.server.asked("b")) == 2


def test_retry_after_holds_back_the_whole_teacher(world, capsys):
    world.films(4)

    both, held_back_at = threading.Event(), []

    def answer(number, body):
        if number == 1:
            both.wait(60)
            held_back_at.append(time.monotonic())
            return 429, b"", {"Retry-After": "1.5"}
        if number == 2:  # the other worker gets its answer after the 429, and would go on at once
            both.set()
            time.sleep(0.3)
        return ok(number, body)

    world.server.answers["a"] = answer
    world.write({"name": "a", "concurrency": 2}, {"name": "b"})
    assert collect(world) == 0
    times = sorted(one["at"] for one in world.server.requests if one["body"]["model"] == "a")
    assert len(times) == 5
    assert times[2] - held_back_at[0] >= 1.5
    other = [one["at"] for one in world.server.requests if one["body"]["model"] == "b"]
    assert len(other) == 4


def test_retry_after_of_a_day_stops_the_teacher(world, capsys):
    world.films(3)
    world.server.answers["a"] = lambda n, b: (429, b"", {"Retry-After": "86400"})
    world.write({"name": "a", "concurrency": 1})
    assert collect(world) == 1
    assert len(world.server.asked()) == 1
    assert "asks to wait 86400 s" in capsys.readouterr().out


def test_backoff_doubles_up_to_its_cap_and_gives_way_to_the_server():
    teacher = Teacher("a", "http://127.0.0.1:1", "m", backoff_s=2)
    assert 1.5 <= backoff(teacher, 1, None) <= 2.5
    assert 6 <= backoff(teacher, 3, None) <= 10
    assert backoff(teacher, 30, None) <= 75
    assert backoff(teacher, 1, 17.0) == 17.0


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "key was refused; check the key in CANARY_KEY"),
        (403, "key was refused"),
        (404, "check base_url and model"),
    ],
)
def test_a_refused_key_stops_that_teacher_alone(world, capsys, status, words):
    world.films(6)
    world.server.answers["a"] = lambda n, b: (status, error("invalid", f"Incorrect key {CANARY[:8]}***"))
    world.write({"name": "a", "concurrency": 1}, {"name": "b"})
    assert collect(world) == 1
    assert len(world.server.asked("a")) == 1
    assert len(world.trajectories("b")) == 6
    said = capsys.readouterr()
    assert words in said.out and words in said.err
    assert CANARY[:8] not in said.out + said.err


def test_a_redirect_is_not_followed(world, capsys):
    world.films(1)
    world.server.answers["a"] = lambda n, b: (307, b"", {"Location": world.server.url + "/elsewhere"})
    world.write({"name": "a"})
    assert collect(world) == 1
    assert [one["path"] for one in world.server.requests] == ["/v1/chat/completions"]
    assert "redirects" in capsys.readouterr().out


def test_requests_that_are_wrong_are_not_repeated_and_stop_the_teacher_in_the_end(world, capsys):
    world.films(9)
    world.server.answers["a"] = lambda n, b: (400, error("unsupported_parameter"))
    world.write({"name": "a", "concurrency": 1, "stop_after": 3})
    assert collect(world) == 1
    assert len(world.server.asked()) == 3
    said = capsys.readouterr().out
    assert "3 requests in a row failed, the last with HTTP 400 unsupported_parameter" in said


def test_a_server_that_drips_meets_the_time_limit(world, capsys):
    world.films(1)
    release = threading.Event()
    world.server.answers["a"] = lambda n, b: release.wait(20) and ok(n, b) if n == 1 else ok(n, b)
    world.write({"name": "a", "timeout_s": 0.5, "price_in": 1000.0, "price_out": 0.0})
    assert collect(world) == 0
    release.set()
    (failure,) = world.rows("failures")
    assert failure["what"] == "no answer within 0.5 s"
    assert failure["cost"] > 1.0  # the provider may bill it: the budget counts it


def test_another_model_than_asked_for_is_recorded_and_told(world, capsys):
    world.films(3)
    world.server.answers["a"] = lambda n, b: (200, completion(model="a-2026-01-01" if n > 1 else "cheap"))
    world.write({"name": "a", "concurrency": 1})
    assert collect(world) == 0
    assert "warning: a: asked a, but 1 answers name cheap (1)" in capsys.readouterr().out
    assert sorted(row["echoed"] for row in world.rows()) == ["a-2026-01-01", "a-2026-01-01", "cheap"]


def test_a_slow_teacher_holds_up_only_itself(world, capsys):
    world.films(3)
    others_done = threading.Event()

    def slow(number, body):
        assert others_done.wait(20)
        return ok(number, body)

    def quick(number, body):
        if number == 3:
            others_done.set()
        return ok(number, body)

    world.server.answers.update(a=slow, b=quick)
    world.write({"name": "a", "concurrency": 1}, {"name": "b", "concurrency": 1})
    assert collect(world) == 0


def test_concurrency_and_request_rate_are_kept(world, capsys):
    world.films(9)
    three = threading.Barrier(3)

    def in_threes(number, body):
        three.wait(20)
        return ok(number, body)

    world.server.answers["a"] = in_threes
    world.write({"name": "a", "concurrency": 3})
    assert collect(world) == 0
    assert world.server.most_open == 3
    world.write({"name": "b", "concurrency": 9, "requests_per_minute": 600})
    assert collect(world) == 0
    times = sorted(one["at"] for one in world.server.requests if one["body"]["model"] == "b")
    assert times[-1] - times[0] >= 0.7  # nine requests, a tenth of a second apart


def test_the_token_rate_is_kept(world, capsys):
    world.films(3)
    # A request has more than 1600 tokens at worst; 4500 (ten seconds' worth) may come at once, then 450 a second.
    world.write({"name": "a", "tokens_per_minute": 27000})
    assert collect(world) == 0
    times = sorted(one["at"] for one in world.server.requests)
    assert times[-1] - times[0] >= (3 * 1600 - 4500) / 450 * 0.9


def test_the_budget_is_never_passed_and_a_larger_one_goes_on(world, capsys):
    world.films(12)
    # An answer costs 1.0 + 0.1; at worst, with image_tokens 1000, somewhat more than 1.2.
    teacher = {"name": "a", "price_in": 1000.0, "price_out": 1000.0, "concurrency": 8}
    world.write(teacher, {"name": "free"}, budget=5.0)
    free = {"name": "free", "price_in": 0.0, "price_out": 0.0}
    world.write(teacher, free, budget=5.0)
    assert collect(world) == 1
    spent = sum(row["cost"] for row in world.rows())
    asked = len(world.server.asked("a"))
    assert 2.2 <= spent <= 5.0
    assert spent == pytest.approx(1.1 * asked)
    assert len(world.trajectories("free")) == 12
    assert "stopped: the next request might pass the budget" in capsys.readouterr().out
    assert collect(world) == 1  # what was spent before counts
    assert len(world.server.asked("a")) == asked
    world.write(teacher, free, budget=500.0)
    assert collect(world) == 0
    assert len(world.server.asked("a")) == 12


def test_answers_without_token_counts_are_priced_at_their_upper_bound(world, capsys):
    world.films(1)
    world.server.answers["a"] = lambda n, b: (200, completion(model="a", usage=None))
    world.write({"name": "a", "price_in": 1000.0, "price_out": 1000.0}, budget=50)
    assert collect(world) == 0
    assert world.rows()[0]["cost"] > 1.2
    assert "1 without token counts" in capsys.readouterr().out


def test_more_tokens_than_allowed_for_are_told(world, capsys):
    world.films(1)
    world.server.answers["a"] = lambda n, b: (200, completion(model="a", usage=(9000, 10)))
    world.write({"name": "a"})
    assert collect(world) == 0
    assert "was billed more tokens than image_tokens" in capsys.readouterr().out


def test_mimic_is_refused_before_anything_is_sent(world, capsys):
    world.films(2, source="mimic-cxr-jpg")
    outside = {"name": "b", "base_url": "https://api.example.org/v1"}
    world.write({"name": "a"}, outside)
    with pytest.raises(UserError, match="teacher 'b'.*PhysioNet"):
        collect(world)
    assert world.server.requests == []
    assert not world.out.parent.exists()
    world.write({"name": "a"})  # loopback is this machine
    assert collect(world) == 0


def test_missing_keys_are_all_named_before_anything_is_sent(world, capsys):
    world.films(1)
    world.write({"name": "a"}, {"name": "b", "key_env": "NOT_SET_B"}, {"name": "c", "key_env": "NOT_SET_C"})
    with pytest.raises(UserError, match="2 problems") as found:
        collect(world)
    assert "NOT_SET_B" in str(found.value) and "NOT_SET_C" in str(found.value)
    assert world.server.requests == []


def test_a_loopback_server_needs_no_key(world, capsys):
    world.films(1)
    world.write({"name": "a", "key_env": None})
    assert collect(world) == 0


def test_an_unreadable_film_is_refused_before_anything_is_sent(world):
    world.films(2)
    (world.folder / "films/1.png").write_bytes(b"")
    world.write({"name": "a"})
    with pytest.raises(UserError, match=r"1\.png is empty"):
        collect(world)
    assert world.server.requests == []


def test_a_film_that_changes_under_way_is_not_sent_under_the_old_key(world, capsys):
    world.films(2)

    def answer(number, body):
        Image.new("L", (80, 64), 250).save(world.folder / "films/1.png")
        return ok(number, body)

    world.server.answers["a"] = answer
    world.write({"name": "a", "concurrency": 1})
    assert collect(world) == 1
    assert len(world.server.asked()) == 1
    assert "has changed since it was checked" in world.rows("failures")[0]["what"]
    assert collect(world) == 0


def test_studies_without_a_diagnosis_are_refused_or_left_out_and_counted(world, capsys):
    world.films(2, findings=None)
    world.write({"name": "a"}, {"name": "b", "prompt": "open"})
    with pytest.raises(UserError, match=r"studies.*\.jsonl: study '.*': findings mark no diagnosis present"):
        collect(world)
    world.write({"name": "a"}, {"name": "b", "prompt": "open"}, without_diagnoses="skip")
    assert collect(world) == 0
    assert world.trajectories("a") == {} and len(world.trajectories("b")) == 2
    assert (
        "a: 0 to ask (live, prompt given_diagnoses), 0 in the store, 2 without a diagnosis" in capsys.readouterr().out
    )


def test_trajectories_that_are_there_stay_and_a_second_of_a_teacher_is_refused(world, capsys):
    world.films(1, trajectories=[{"teacher": "old", "text": EFFUSION, "status": "ok"}])
    world.write({"name": "a"})
    assert collect(world) == 0
    assert [one["teacher"] for one in world.result()[0]["trajectories"]] == ["old", "a"]
    world.write({"name": "old"})
    with pytest.raises(UserError, match="has a trajectory of 'old' already"):
        collect(world)


def test_no_other_providers_identifiers_are_sent(world, monkeypatch, capsys):
    world.films(1)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-secret")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nothing listens: through it, the request would fail
    world.write({"name": "a", "attempts": 1})
    assert collect(world) == 0
    assert "secret" not in str(world.server.requests[0]["headers"])


def test_no_key_in_any_file_or_output(world, capsys):
    """The server quotes the key in its errors and its answers."""
    world.films(4)
    faults = {
        1: (500, error("x", f"key {CANARY}")),
        2: (400, error("bad", CANARY)),
        3: (400, error("content_filter", CANARY)),
    }
    world.server.answers["a"] = lambda n, b: faults.get(n, (200, completion(f"{EFFUSION} {CANARY}", model=CANARY)))
    world.server.answers["b"] = lambda n, b: (401, error("x", f"Incorrect API key: {CANARY}"))
    world.write({"name": "a", "concurrency": 1}, {"name": "b"})
    assert collect(world) == 1
    assert any(one["headers"]["authorization"].endswith(CANARY) for one in world.server.requests)
    said = capsys.readouterr()
    assert CANARY not in said.out + said.err
    written = [path for path in world.folder.rglob("*") if path.is_file()]
    assert len(written) > 8
    assert [path for path in written if CANARY.encode() in path.read_bytes()] == []
    assert "[key removed]" in world.trajectories("a")["s3"]["text"]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_full_disk_ends_the_run_with_one_line_and_loses_no_answer(world, monkeypatch, capsys, concurrency):
    from data.collect import store

    world.films(8)
    under_way, failed = threading.Barrier(2 * concurrency), threading.Event()

    def answer(number, body):
        """The requests of both teachers are all under way when the first answer cannot be written."""
        if number <= concurrency:
            under_way.wait(10)
        if (body["model"], number) != ("a", 1):
            failed.wait(10)
            time.sleep(0.2)
        return ok(number, body)

    world.server.answers |= {"a": answer, "b": answer}
    world.write({"name": "a", "concurrency": concurrency}, {"name": "b", "concurrency": concurrency})
    real = store.append_jsonl

    def full(path, row):
        if not failed.is_set():
            failed.set()
            raise UserError(f"{path}: cannot be appended to (No space left on device)")
        real(path, row)

    with monkeypatch.context() as patch:
        patch.setattr(store, "append_jsonl", full)
        with pytest.raises(UserError, match="No space left"):
            collect(world)
    asked = len(world.server.asked())
    assert asked == 2 * concurrency
    assert len(world.rows()) == asked - 1 and world.rows("failures") == []
    assert collect(world) == 0
    assert len(world.server.asked()) == asked + 16 - (asked - 1)


def test_errors_of_several_teachers_are_told_once_and_a_defect_first(caplog):
    async def fail(error):
        raise error

    async def run(*errors):
        jobs = [asyncio.create_task(fail(error)) for error in errors]
        await asyncio.wait(jobs)
        return str(_error_of(jobs))

    full = ExceptionGroup("teacher", [UserError("disk full"), UserError("disk full")])
    assert asyncio.run(run(full, UserError("disk full, too"))) == "disk full"
    assert asyncio.run(run(full, ExceptionGroup("teacher", [KeyError("defect")]))) == "'defect'"
    gc.collect()  # asyncio logs an error that nobody has looked at when its task goes
    assert caplog.text == ""


def test_every_film_of_a_study_is_sent(world, capsys):
    world.films(1)
    world.films(2, images=["films/0.png", "films/1.png"], prompt="What is seen? <image><image>")
    world.write({"name": "a"})
    assert collect(world) == 0
    sent = [part["image_url"]["url"] for part in world.server.asked()[0]["messages"][0]["content"][1:]]
    assert len(set(sent)) == 2
    Image.new("L", (80, 64), 222).save(world.folder / "films/1.png")
    assert collect(world) == 0
    assert len(world.server.asked()) == 2, "the second film is a part of the key, too"


def test_failures_that_do_not_follow_each_other_stop_nothing(world, capsys):
    world.films(6)
    world.server.answers["a"] = lambda n, b: (400, error("bad")) if n % 2 else ok(n, b)
    world.write({"name": "a", "concurrency": 1, "stop_after": 2})
    assert collect(world) == 1
    assert len(world.server.asked()) == 6 and len(world.trajectories("a")) == 3


def test_the_worst_case_grows_with_what_was_billed(world, capsys):
    world.films(3)
    # 1.67 at worst by the config, but 9.2 are billed: a second such answer would pass the budget.
    world.server.answers["a"] = lambda n, b: (200, completion(model="a", usage=(9000, 200)))
    world.write({"name": "a", "price_in": 1000.0, "price_out": 1000.0, "concurrency": 1}, budget=12.0)
    assert collect(world) == 1
    assert len(world.server.asked()) == 1


def test_an_error_costs_nothing_and_a_filtered_prompt_what_it_holds(world, capsys):
    world.films(2)
    faults = {1: (500, error("x")), 2: (400, error("content_filter"))}
    world.server.answers["a"] = lambda n, b: faults.get(n) or ok(n, b)
    world.write({"name": "a", "price_in": 1000.0, "price_out": 1000.0, "concurrency": 1}, budget=50)
    assert collect(world) == 0
    assert [row["cost"] for row in world.rows("failures")] == [0]
    costs = {row["status"]: row["cost"] for row in world.rows()}
    assert costs["ok"] == pytest.approx(1.1) and 1.0 < costs["filtered"] < 1.6, "the prompt, without an answer"


def test_a_shorter_wait_does_not_cut_a_longer_one():
    from types import SimpleNamespace

    from data.collect.asking import Run
    from data.collect.endpoint import Fault

    async def waits():
        run, found = SimpleNamespace(not_before=0.0), []
        for seconds in (50.0, 1.0):
            Run.note_fault(run, Fault("again", "HTTP 429", retry_after=seconds))
            found.append(run.not_before)
        return found

    longer, after = asyncio.run(waits())
    assert after == longer


@pytest.mark.parametrize(
    ("status", "headers", "kind", "billed", "wait"),
    [
        (402, {}, "stop", False, None),
        (504, {}, "again", True, None),
        (500, {}, "again", False, None),
        (429, {"Retry-After-Ms": "1500"}, "again", False, 1.5),
        (429, {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}, "stop", False, None),
        (422, {}, "give_up", False, None),
    ],
)
def test_what_the_status_of_a_response_means(status, headers, kind, billed, wait):
    import httpx2
    import openai

    from data.collect.endpoint import fault_of

    body = json.dumps(error("a secret of the prompt", CANARY)).encode()
    response = httpx2.Response(
        status, headers=headers, content=body, request=httpx2.Request("POST", "http://127.0.0.1:1/v1")
    )
    teacher = Teacher("a", "http://127.0.0.1:1/v1", "m")
    fault = fault_of(openai.APIStatusError("x", response=response, body=None), teacher, CANARY)
    assert (fault.kind, fault.billed, fault.retry_after) == (kind, billed, wait)
    assert "secret" not in fault.what and CANARY not in fault.raw


def test_a_request_that_was_never_sent_is_not_billed():
    import httpx2
    import openai

    from data.collect.endpoint import fault_of

    request, teacher = httpx2.Request("POST", "http://127.0.0.1:1/v1"), Teacher("a", "http://127.0.0.1:1/v1", "m")
    for cause, billed in ((httpx2.ConnectError("x"), False), (httpx2.ReadError("x"), True)):
        told = openai.APIConnectionError(request=request)
        told.__cause__ = cause
        assert fault_of(told, teacher, None).billed is billed
