"""The batch API behind the same config and store: submitted once, read back once, taken up after any interruption."""

import asyncio
import contextlib
import json

import openai
import pytest

from data.collect import batch as batches
from data.collect.asking import Run
from data.errors import UserError
from data.files import read_jsonl
from tests.data.collect_server import CANARY, EFFUSION, Server, collect, completion, error

BATCH = {"name": "a", "mode": "batch", "batch_poll_s": 0.01}
PRICES = {"price_in": 1000.0, "price_out": 1000.0}  # a request costs 1.67 at worst, an answer 1.1
OTHERS = {"findings": {"Edema": {"state": "present"}}}  # another prompt, hence other questions


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
    none, broken = "batch completed, no answer to this request", "the response holds an error under HTTP 200"
    assert [row["what"] for row in world.rows("failures")] == [none, broken, none]
    assert not any(CANARY.encode() in path.read_bytes() for path in world.folder.rglob("*") if path.is_file())
    world.server.answers.clear()
    assert collect(world) == 0
    assert len(world.trajectories("a")) == 6


@pytest.mark.parametrize("same_config", [True, False], ids=["asked for", "of an earlier config"])
def test_what_came_broken_is_booked_at_its_worst_case_as_in_live_mode(world, monkeypatch, capsys, same_config):
    world.films(4)
    world.server.answers["a"] = lambda n, b: (200, completion(finish="network_error"))
    world.write({"name": "a", "attempts": 1, **PRICES}, budget=100, store=str(world.folder / "live"))
    collect(world)
    live = [row["cost"] for _, row in read_jsonl(world.folder / "live/failures/a.jsonl")]
    outcomes = [
        (200, completion(finish="network_error")),
        (200, None),
        (429, error("rate_limit")),
        None,
    ]
    world.server.answers["a"] = lambda n, b: outcomes[n - 1]
    world.write({**BATCH, **PRICES}, budget=100)
    if not same_config:
        submit_and_stop(monkeypatch, world)
        world.films(1, **OTHERS)
    assert collect(world) == 1
    rows = world.rows("failures")[:4]
    assert [row["cost"] for row in rows] == [*live[:2], 0, 0]
    assert [row["what"] for row in rows[:2]] == ["finish_reason network_error", "the response is not a JSON object"]
    assert "network_error" in rows[0]["raw"]
    spent = sum(row["cost"] for row in world.rows("failures"))
    assert json.loads((world.store / "summary.json").read_text())["spent"] == pytest.approx(spent) and spent > 3.2


def test_an_answer_without_token_counts_to_an_earlier_config_is_booked_at_what_was_held(world, monkeypatch, capsys):
    world.films(2)
    world.server.answers["a"] = lambda n, b: (200, completion(usage=None))
    world.write({**BATCH, **PRICES}, budget=100)
    submit_and_stop(monkeypatch, world)
    held = next(row for row in world.rows("batches") if row["event"] == "planned")["worst"]
    world.films(1, **OTHERS)
    collect(world)
    costs = {row["key"]: row["cost"] for row in world.rows()}
    assert held.items() <= costs.items() and min(held.values()) > 1.6


class Crash(Exception):
    pass


def crash_at(monkeypatch, world, event):
    """Run until this step is to be noted: the server has done its part, this process dies before it notes it."""
    real = batches._note

    def note(run, batch, name, **more):
        if name == event:
            raise Crash
        real(run, batch, name, **more)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "_note", note)
        with pytest.raises(Crash):
            collect(world)


def crash_half_read(monkeypatch, world):
    real = batches._read_back

    def half(run, batch, content, by_key):
        real(run, batch, b"\n".join(content.split(b"\n")[:2]), by_key)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(batches, "_read_back", half)
        with pytest.raises(Crash):
            collect(world)


@pytest.mark.parametrize("event", ["uploaded", "submitted", "read", "half read"])
def test_a_crash_between_any_two_steps_asks_nothing_twice(world, monkeypatch, capsys, event):
    world.films(4)
    world.write(BATCH)
    if event == "half read":
        crash_half_read(monkeypatch, world)
    else:
        crash_at(monkeypatch, world, event)
    assert collect(world) == 0
    assert len(world.trajectories("a")) == 4
    assert count(world, "POST", "/v1/batches") == 1
    keys = [row["key"] for row in world.rows()]
    assert len(keys) == len(set(keys)) == 4


def test_a_broken_answer_is_booked_once_whatever_crashes(world, monkeypatch, capsys):
    world.films(2)
    world.server.answers["a"] = lambda n, b: (200, completion(finish="network_error"))
    world.write({**BATCH, **PRICES}, budget=100)
    crash_at(monkeypatch, world, "read")
    before = world.rows("failures")
    assert collect(world) == 1
    assert world.rows("failures") == before and len(before) == 2 and all(row["cost"] > 0 for row in before)
    spent = json.loads((world.store / "summary.json").read_text())["spent"]
    assert spent == pytest.approx(sum(row["cost"] for row in before))


def test_a_batch_of_an_earlier_config_is_read_back_and_kept(world, monkeypatch, capsys):
    world.films(2)
    world.write(BATCH)
    submit_and_stop(monkeypatch, world)
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


def submit_and_stop(monkeypatch, world):
    """Leave a batch under way at the provider, which answers it at the next look."""
    world.server.polls_until_done = 10**9
    stop_at_poll(monkeypatch, world)
    world.server.polls_until_done = 0


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
    priced = {**BATCH, **PRICES}
    world.write(priced, budget=5.6)
    submit_and_stop(monkeypatch, world)
    first = count(world, "POST", "/v1/batches")
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


@pytest.mark.parametrize("mode", ["batch", "live"])
def test_a_result_file_that_is_gone_stops_the_teacher_with_what_to_do(world, monkeypatch, capsys, mode):
    world.films(2)
    world.write(BATCH)
    submit_and_stop(monkeypatch, world)
    batch = world.rows("batches")[0]["batch"]
    plain = world.server._batch
    world.server._batch = lambda *a: (404, error("not_found")) if a[1].endswith("/content") else plain(*a)
    world.write({**BATCH, "mode": mode})
    capsys.readouterr()
    assert collect(world) == 1
    said = capsys.readouterr().out
    log = world.store / "batches/a.jsonl"
    assert "stopped: HTTP 404: file out-batch-0 of batch batch-0 is not known there; check base_url, or, " in said
    assert f"if it is gone for good, take the lines of {batch} out of {log}\n" in said
    assert world.server.asked() == [] and count(world, "POST", "/v1/batches") == 1
    log.write_text("".join(line for line in log.read_text().splitlines(True) if batch not in line))
    world.server._batch = plain
    assert collect(world) == 0


def test_an_uploaded_file_that_is_gone_stops_the_teacher_with_what_to_do(world, capsys):
    world.films(2)
    world.write(BATCH)
    plain = world.server._batch
    world.server._batch = lambda *a: (404, error("not_found")) if a[:2] == ("POST", "/v1/batches") else plain(*a)
    assert collect(world) == 1 and collect(world) == 1
    batch, log = world.rows("batches")[0]["batch"], world.store / "batches/a.jsonl"
    told = "HTTP 404: uploaded file file-0 (or the batch API itself) is not known there; check base_url, or, if it is "
    assert f"{told}gone for good, take the lines of {batch} out of {log}\n" in capsys.readouterr().out
    assert count(world, "POST", "/v1/files") == 1
    log.write_text("")
    world.server._batch = plain
    assert collect(world) == 0


@pytest.mark.parametrize(("status", "unclear"), [(502, True), (429, False)])
def test_an_upload_that_may_have_arrived_twice_names_its_file(world, capsys, status, unclear):
    world.films(2)
    plain, tries = world.server._batch, []

    def refuse_once(method, path, *more):
        if (method, path) != ("POST", "/v1/files") or tries:
            return plain(method, path, *more)
        tries.append(path)
        if unclear:
            plain(method, path, *more)
        return status, error("bad_gateway")

    world.server._batch = refuse_once
    world.write(BATCH)
    assert collect(world) == 0
    name = f"{world.rows('batches')[0]['batch']}.jsonl"
    said = capsys.readouterr().err
    assert said.count(f"an upload of {name} failed and may have arrived") == unclear
    assert len(world.server.files) == unclear


@pytest.mark.parametrize(("status", "told"), [(404, None), (403, "HTTP 403"), (405, "HTTP 405")])
def test_a_file_that_cannot_be_deleted_is_named_and_stops_nothing(world, capsys, status, told):
    world.films(2)
    plain = world.server._batch

    def refuse(method, path, *more):
        return (status, error(None)) if method == "DELETE" and "file-" in path else plain(method, path, *more)

    world.server._batch = refuse
    world.write({**BATCH, "batch_requests": 1, "concurrency": 1})
    assert collect(world) == 0
    said = capsys.readouterr()
    assert "stopped" not in said.out + said.err
    assert set(world.server.deleted) == {"out-batch-0", "out-batch-1"}
    for name in [one for one in world.server.files if one.startswith("file-")]:
        left = f"a: could not delete at the provider: {name} ({told}"
        assert (left in said.err) == bool(told) and ("they hold films or answers\n" in said.err) == bool(told)


def test_request_files_that_belong_to_no_batch_are_removed(world, capsys):
    world.films(1)
    world.write(BATCH)
    left = world.store / "batches/a/stray.jsonl"
    left.parent.mkdir(parents=True)
    left.write_text("a film")
    assert collect(world) == 0
    assert not left.exists()
    assert "no upload of stray.jsonl was noted" in capsys.readouterr().err


def test_a_file_that_was_not_uploaded_goes_nowhere_later(world, capsys):
    world.films(2, source="mimic-cxr")  # loopback: allowed
    plain = world.server._batch
    world.server._batch = lambda *a: (404, error("not_found"))
    world.write(BATCH)
    assert collect(world) == 1
    assert [row["event"] for row in world.rows("batches")] == ["planned"]
    old = next((world.store / "batches/a").iterdir()).read_bytes()
    world.server._batch = plain
    world.films(2, source="hannover", **OTHERS)
    with contextlib.closing(Server()) as elsewhere:
        world.write({**BATCH, "base_url": elsewhere.url})
        assert collect(world) == 0
        sent = b"".join(elsewhere.uploaded).splitlines()
        assert len(sent) == 2 and not set(sent) & set(old.splitlines())
    assert {row["study"] for row in world.rows()} == {"s0", "s1"} and len(world.rows()) == 2
    assert list((world.store / "batches/a").iterdir()) == []


@pytest.mark.parametrize("mode", ["batch", "live"])
@pytest.mark.parametrize("event", ["uploaded", "submitted"])
def test_a_batch_at_another_address_is_neither_sent_nor_forgotten(world, monkeypatch, capsys, event, mode):
    world.films(2)
    world.write(BATCH)
    world.server.polls_until_done = 10**9
    if event == "uploaded":
        crash_at(monkeypatch, world, "submitted")
    else:
        stop_at_poll(monkeypatch, world)
    log = (world.store / "batches/a.jsonl").read_bytes()
    assert list((world.store / "batches/a").iterdir()) == []  # films are not kept here longer than needed
    with contextlib.closing(Server()) as elsewhere:
        world.write({**BATCH, "mode": mode, "base_url": elsewhere.url})
        told = f"a.jsonl: batch .* of teacher 'a' is at {world.server.url}, not at {elsewhere.url}.*set base_url back"
        with pytest.raises(UserError, match=told):
            collect(world)
        assert collect(world, "--dry-run") == 0
        assert "the run itself would end here" in capsys.readouterr().out
        assert elsewhere.requests == []
    assert (world.store / "batches/a.jsonl").read_bytes() == log
    world.server.polls_until_done = 0
    world.write({**BATCH, "mode": mode, "base_url": world.server.url + "/"})
    assert collect(world) == 0
    assert count(world, "POST", "/v1/batches") == 1 and world.server.asked() == []


@pytest.mark.parametrize("event", ["uploaded", "read"])
def test_a_log_of_an_earlier_version_is_taken_up(world, monkeypatch, capsys, event):
    world.films(2)
    world.server.answers["a"] = lambda n, b: (200, completion(finish="network_error") if n == 1 else completion())
    world.write({**BATCH, **PRICES}, budget=100)
    crash_at(monkeypatch, world, event)
    path = world.store / "batches/a.jsonl"
    planned, *others = [row for _, row in read_jsonl(path)]
    del planned["base_url"]
    planned["worst"] = sum(planned["worst"].values())
    path.write_text("".join(json.dumps(row) + "\n" for row in [planned, *others]))
    for left in (world.store / "failures").glob("*"):
        left.unlink()
    assert collect(world) == 1
    assert count(world, "POST", "/v1/batches") == 1
    assert count(world, "POST", "/v1/files") == (2 if event == "uploaded" else 1)
    assert [row["cost"] for row in world.rows("failures")] == [pytest.approx(planned["worst"] / 2)]


def test_live_mode_reads_a_batch_back_and_does_not_pay_twice(world, monkeypatch, capsys):
    world.films(3)
    world.write({**BATCH, **PRICES}, budget=10)
    submit_and_stop(monkeypatch, world)
    world.films(4)
    world.write({"name": "a", **PRICES}, budget=6)
    assert collect(world) == 0
    assert len(world.server.asked()) == 1
    assert len(world.rows()) == len(world.trajectories("a")) == 4
    assert world.server.files == {}
    assert "1 to ask (live, prompt given_diagnoses), 0 in the store, 3 in batches" in capsys.readouterr().out


def test_live_mode_leaves_a_batch_under_way_alone_and_holds_its_worst_case(world, monkeypatch, capsys):
    world.films(3)
    world.write({**BATCH, **PRICES}, budget=10)
    submit_and_stop(monkeypatch, world)
    world.server.polls_until_done = 10**9
    world.films(5)
    world.write({"name": "a", **PRICES}, budget=6)  # 5.01 are held
    assert collect(world) == 1
    assert world.server.asked() == []
    said = capsys.readouterr()
    assert "at most 5.01 in batches of earlier runs" in said.out and "next request might pass the budget" in said.out
    assert "batch batch-0 is in_progress: its 3 requests are not asked live" in said.err
    world.write({"name": "a", **PRICES}, budget=10)
    assert collect(world) == 1
    assert len(world.server.asked()) == len(world.rows()) == 2
    world.server.polls_until_done = 0
    assert collect(world) == 0
    assert len(world.server.asked()) == 2 and len(world.rows()) == 5


def test_the_budget_holds_batches_of_teachers_that_are_not_in_the_config(world, monkeypatch, capsys):
    world.films(3)
    world.write({**BATCH, **PRICES}, budget=10)
    submit_and_stop(monkeypatch, world)
    world.write({"name": "b", **PRICES}, budget=6)
    assert collect(world) == 1
    assert world.server.asked() == []


def test_what_a_batch_left_open_is_asked_live_at_once(world, monkeypatch, capsys):
    world.films(3)
    world.server.answers["a"] = lambda n, b: None
    world.write(BATCH)
    submit_and_stop(monkeypatch, world)
    plain = world.server._batch_object
    world.server._batch_object = lambda name: {**plain(name), "status": "cancelled"}
    del world.server.answers["a"]
    world.server.polls_until_done = 10**9
    world.write({"name": "a"})
    assert collect(world) == 0
    assert len(world.server.asked()) == 3


def test_live_mode_deletes_an_upload_that_became_no_batch(world, capsys):
    world.films(2)
    plain = world.server._batch
    world.server._batch = lambda *a: (400, error("no")) if a[:2] == ("POST", "/v1/batches") else plain(*a)
    world.write({**BATCH, **PRICES}, budget=4)
    assert collect(world) == 1
    assert len(world.server.files) == 1
    world.server._batch = plain
    world.write({"name": "a", **PRICES}, budget=4)  # enough only where nothing is held any more
    assert collect(world) == 0
    assert world.server.files == {} and len(world.server.asked()) == 2
    assert count(world, "POST", "/v1/batches") == 1


def test_live_mode_reads_a_batch_back_also_where_it_has_nothing_to_ask(world, monkeypatch, capsys):
    world.films(1, **OTHERS)
    world.write({"name": "a"})
    assert collect(world) == 0
    world.films(2)
    world.write(BATCH)
    submit_and_stop(monkeypatch, world)
    world.films(1, **OTHERS)
    world.write({"name": "a"})
    assert collect(world) == 0
    assert len(world.rows()) == 3 and world.server.files == {}
    assert len(world.server.asked()) == 1


def test_errors_in_a_file_of_their_own_are_read_and_deleted(world, capsys):
    """As OpenAI gives them; the server of these tests puts all lines into one file."""
    world.films(2)
    world.server.answers["a"] = lambda n, b: (400, error("content_filter")) if n == 1 else (200, completion(model="a"))
    files, plain = world.server.files, world.server._batch_object

    def split(name):
        one, errors = plain(name), f"errors-{name}"
        lines = files.get(one["output_file_id"], b"").splitlines(keepends=True)
        bad = [line for line in lines if json.loads(line)["response"]["status_code"] != 200]
        if bad:
            files[errors] = b"".join(bad)
            files[one["output_file_id"]] = b"".join(line for line in lines if line not in bad)
        return {**one, "error_file_id": errors if errors in files else None}

    world.server._batch_object = split
    world.write(BATCH)
    assert collect(world) == 0
    assert [one["status"] for one in world.trajectories("a").values()] == ["filtered", "ok"]
    assert files == {}


def test_a_batch_is_no_larger_than_the_api_takes(world, monkeypatch, capsys):
    monkeypatch.setattr(batches, "MAX_BYTES", 1)
    world.films(3)
    world.write(BATCH)
    assert collect(world) == 0
    assert count(world, "POST", "/v1/batches") == 3


def test_a_batch_without_any_answer_stops_the_teacher(world, capsys):
    world.films(3)
    world.server.answers["a"] = lambda n, b: None
    world.write({**BATCH, "batch_requests": 1, "concurrency": 1})
    assert collect(world) == 1
    assert count(world, "POST", "/v1/batches") == 1
    assert "without an answer; the next run asks its films again" in capsys.readouterr().out


def test_an_expired_batch_is_read_back_and_not_waited_for(world, monkeypatch, capsys):
    async def wait(run, seconds):
        pytest.fail("it has ended")

    world.films(2)
    world.server.polls_until_done = 0
    plain = world.server._batch_object
    world.server._batch_object = lambda name: {**plain(name), "status": "expired"}
    monkeypatch.setattr(Run, "sleep", wait)
    world.write(BATCH)
    assert collect(world) == 0
    assert len(world.trajectories("a")) == 2
