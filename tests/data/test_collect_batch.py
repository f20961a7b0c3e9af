"""The batch API behind the same config and store: submitted once, read back once, taken up after any interruption."""

import asyncio
import json

import openai
import pytest

from data.collect import batch as batches
from data.collect.asking import Run
from data.errors import UserError
from data.files import read_jsonl
from tests.data.collect_server import CANARY, EFFUSION, collect, completion, error

BATCH = {"name": "a", "mode": "batch", "batch_poll_s": 0.01}


def count(world, method, path):
    return sum(one["method"] == method and one["path"] == path for one in world.server.requests)


def test_a_batch_fills_the_same_store(world, capsys):
    world.films(5)
    world.server.polls_until_done = 3
    world.write({**BATCH, "batch_requests": 2, "concurrency": 2, "extra": {"seed": 1}}, {"name": "b"})
    assert collect(world) == 0
    assert {t["text"] for t in world.trajectories("a").values()} == {EFFUSION}
    assert len(world.trajectories("a")) == len(world.trajectories("b")) == 5
    assert len(world.server.asked("a")) == 0
    assert count(world, "POST", "/v1/batches") == 3  # of two, two and one
    assert world.server.files == {}  # films are not left with the provider
    assert list((world.store / "batches/a").iterdir()) == []  # nor a second time here
    before = len(world.server.requests)
    assert collect(world) == 0
    assert len(world.server.requests) == before


def test_a_live_answer_serves_a_batch_run_and_the_other_way_round(world, capsys):
    world.films(2)
    world.write({"name": "a"})
    collect(world)
    world.write(BATCH)
    assert collect(world) == 0
    assert count(world, "POST", "/v1/batches") == 0


def test_the_lines_are_the_requests_that_live_mode_sends(world, monkeypatch, capsys):
    world.films(1)
    world.write({"name": "a", "temperature": 0.5})
    collect(world)
    live = world.server.asked()[0]
    lines = []
    world.server.answers["a"] = lambda n, b: (lines.append(b), (200, completion(model="a")))[1]
    world.write({**BATCH, "name": "a", "temperature": 0.5}, store=str(world.folder / "other"))
    assert collect(world) == 0
    assert lines == [live]


def test_answers_of_every_kind_and_failures(world, capsys):
    world.films(6)
    outcomes = [
        (200, completion(finish="length", model="cheap")),
        (400, error("content_filter", CANARY)),
        (400, error("unsupported_parameter")),
        (200, {"error": {"code": "x"}}),
        None,  # no line at all
        (200, completion(CANARY + " " + EFFUSION, model="a")),
    ]
    world.server.answers["a"] = lambda n, b: outcomes[n - 1]
    world.write(BATCH)
    assert collect(world) == 1
    found = {name: one["status"] for name, one in world.trajectories("a").items()}
    assert found == {"s0": "truncated", "s1": "filtered", "s5": "ok"}
    said = capsys.readouterr().out
    assert "3 questions have no answer yet" in said
    assert "1 answers name cheap" in said
    assert [row["what"] for row in world.rows("failures")] == ["batch completed, no answer to this request"] * 3
    assert not any(CANARY.encode() in path.read_bytes() for path in world.folder.rglob("*") if path.is_file())
    world.server.answers.clear()
    assert collect(world) == 0
    assert len(world.trajectories("a")) == 6


STEPS = [("uploaded", "_note"), ("submitted", "_note"), ("read", "_note"), (None, "_read_back")]


@pytest.mark.parametrize(
    ("event", "where"), STEPS, ids=["after upload", "after submission", "after reading", "half read"]
)
def test_a_crash_between_any_two_steps_asks_nothing_twice(world, monkeypatch, capsys, event, where):
    world.films(4)
    world.write(BATCH)

    class Crash(Exception):
        pass

    if where == "_note":
        real = batches._note

        def note(run, batch, name, **more):
            if name == event:  # the server has done its part, this process dies before it notes it
                raise Crash
            real(run, batch, name, **more)

        change = ("_note", note)
    else:
        real_read = batches._read_back

        def half(run, batch, content, by_key):
            real_read(run, batch, b"\n".join(content.split(b"\n")[:2]), by_key)
            raise Crash

        change = ("_read_back", half)
    with monkeypatch.context() as patch:
        patch.setattr(batches, *change)
        with pytest.raises(Crash):
            collect(world)
    assert collect(world) == 0
    assert len(world.trajectories("a")) == 4
    assert count(world, "POST", "/v1/batches") == 1
    keys = [row["key"] for row in world.rows()]
    assert len(keys) == len(set(keys)) == 4


def test_a_batch_of_an_earlier_config_is_read_back_and_kept(world, monkeypatch, capsys):
    world.films(2)
    world.write(BATCH)
    world.server.polls_until_done = 10**9
    stop_at_poll(monkeypatch, world)
    world.server.polls_until_done = 0
    world.write({**BATCH, "temperature": 1})
    assert collect(world) == 0
    assert len(world.rows()) == 4  # what was paid for is not thrown away
    world.write(BATCH)
    before = count(world, "POST", "/v1/batches")
    assert collect(world) == 0
    assert count(world, "POST", "/v1/batches") == before


def stop_at_poll(monkeypatch, world):
    """Run until the batch is submitted, then stop as an interrupt would."""

    async def stop(run, seconds):
        run.stop("interrupted")
        await run.unless_stopped(asyncio.sleep(60))

    with monkeypatch.context() as patch:
        patch.setattr(Run, "sleep", stop)
        assert collect(world) == 1


def test_an_interrupted_poll_goes_on_later(world, monkeypatch, capsys):
    world.films(3)
    world.write(BATCH)
    world.server.polls_until_done = 2
    stop_at_poll(monkeypatch, world)
    assert [row["event"] for _, row in read_jsonl(world.store / "batches/a.jsonl")] == [
        "planned",
        "uploaded",
        "submitted",
    ]
    assert collect(world) == 0
    assert count(world, "POST", "/v1/files") == count(world, "POST", "/v1/batches") == 1


def test_the_budget_limits_a_batch_and_counts_one_under_way(world, monkeypatch, capsys):
    world.films(10)
    priced = {**BATCH, "price_in": 1000.0, "price_out": 1000.0}
    world.write(priced, budget=5.6)  # at worst about 1.7 each, in truth 1.1
    world.server.polls_until_done = 10**9
    stop_at_poll(monkeypatch, world)
    first = count(world, "POST", "/v1/batches")
    world.server.polls_until_done = 0
    assert collect(world) == 1
    spent = sum(row["cost"] for row in world.rows())
    assert first == 1
    assert 3 * 1.1 <= spent <= 5.6
    assert "stopped: the next request might pass the budget" in capsys.readouterr().out
    world.write(priced, budget=500)
    assert collect(world) == 0


def test_a_batch_that_fails_as_a_whole_stops_the_teacher(world, monkeypatch, capsys):
    world.films(2)
    world.write({**BATCH, "batch_requests": 1, "concurrency": 1})
    plain = world.server._batch_object

    def failed(name):
        errors = {"object": "list", "data": [{"code": "token_limit_exceeded", "message": "too many"}]}
        return {**plain(name), "status": "failed", "errors": errors}

    world.server._batch_object = failed
    assert collect(world) == 1
    assert count(world, "POST", "/v1/batches") == 1
    assert "batch-0 failed (token_limit_exceeded)" in capsys.readouterr().out
    world.server._batch_object = plain
    assert collect(world) == 0


def test_a_refused_key_stops_before_a_film_is_uploaded_twice(world, capsys):
    world.films(1)
    world.server._batch = lambda *a: (401, error("invalid_api_key", CANARY))
    world.write(BATCH)
    assert collect(world) == 1
    assert len(world.server.requests) == 1
    said = capsys.readouterr()
    assert "key was refused" in said.out
    assert CANARY not in said.out + said.err


def test_a_damaged_batch_log_is_refused_by_name(world):
    world.films(1)
    world.write(BATCH)
    (world.store / "batches").mkdir(parents=True)
    (world.store / "batches/a.jsonl").write_text(json.dumps({"batch": "x", "event": "read"}) + "\n")
    with pytest.raises(UserError, match=r"a\.jsonl:1: no row of a batch log"):
        collect(world)


def test_the_client_still_has_what_is_used():
    client = openai.AsyncOpenAI(api_key="x", base_url="http://127.0.0.1:1/v1")
    for name in ("batches.create", "batches.retrieve", "batches.list", "files.create", "files.content", "files.delete"):
        part, method = name.split(".")
        assert callable(getattr(getattr(client, part), method))


def test_a_batch_that_the_provider_does_not_know_stops_the_teacher_and_is_not_asked_again(world, monkeypatch, capsys):
    world.films(2)
    world.write(BATCH)
    world.server.polls_until_done = 10**9
    stop_at_poll(monkeypatch, world)
    plain = world.server._poll
    world.server._poll = lambda name: (404, error("not_found"))
    assert collect(world) == 1
    assert "batch batch-0 is not known there; check base_url" in capsys.readouterr().out
    world.server._poll, world.server.polls_until_done = plain, 0
    assert collect(world) == 0
    assert count(world, "POST", "/v1/batches") == 1


def test_request_files_that_belong_to_no_batch_are_removed(world, capsys):
    world.films(1)
    world.write(BATCH)
    left = world.store / "batches/a/stray.jsonl"
    left.parent.mkdir(parents=True)
    left.write_text("a film")
    assert collect(world) == 0
    assert not left.exists()
