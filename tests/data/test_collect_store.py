"""Keys, films as sent, answers on disk, money."""

import asyncio
import io
import json
import os

import pytest
from PIL import Image

from data.collect import films
from data.collect.classify import Usage
from data.collect.money import Ledger, OverBudget, price, worst_usage
from data.collect.settings import Teacher
from data.collect.store import Answer, Store, answer_key, file_name
from data.errors import UserError

TEACHER = Teacher("a", "http://127.0.0.1:1/v1", "m", price_in=2.0, price_out=10.0, temperature=0)


def answer(key, cost=0.5, text="x"):
    return Answer(key, "ok", text, "stop", None, "m", 10, 5, cost, True)


def test_the_key_depends_on_everything_an_answer_depends_on():
    keys = {
        answer_key(Teacher(**{**vars(TEACHER), **change}), prompt, some)
        for change, prompt, some in [
            ({}, "p", ["f"]),
            ({"name": "b"}, "p", ["f"]),
            ({"model": "n"}, "p", ["f"]),
            ({"temperature": 1}, "p", ["f"]),
            ({"temperature": None}, "p", ["f"]),
            ({"max_tokens": 7}, "p", ["f"]),
            ({"extra": {"seed": 1}}, "p", ["f"]),
            ({}, "q", ["f"]),
            ({}, "p", ["g"]),
            ({}, "p", ["f", "f"]),
        ]
    }
    assert len(keys) == 10
    # What changes no answer changes no key, or a resumed run would pay again.
    changed = {**vars(TEACHER), "concurrency": 9, "price_in": 3.0, "attempts": 1, "base_url": "http://127.0.0.1:2/v1"}
    assert answer_key(Teacher(**changed), "p", ["f"]) == answer_key(TEACHER, "p", ["f"])


def test_films_are_scaled_down_only_and_carry_no_metadata(tmp_path):
    image = Image.new("L", (300, 200), 90)
    exif = Image.Exif()
    exif[0x010E] = "DOE^JANE"
    image.save(tmp_path / "film.jpg", exif=exif)
    assert b"DOE^JANE" in (tmp_path / "film.jpg").read_bytes()
    small, large = films.encode(str(tmp_path / "film.jpg"), 100, 95), films.encode(str(tmp_path / "film.jpg"), 900, 95)
    assert Image.open(io.BytesIO(small)).size == (100, 67)
    assert Image.open(io.BytesIO(large)).size == (300, 200)
    assert b"DOE^JANE" not in small + large
    assert films.encode(str(tmp_path / "film.jpg"), 100, 30) != small


def hashes(tmp_path, paths, **more):
    return films.hash_films(paths, [(64, 90)], root=str(tmp_path), cache=tmp_path / "cache.jsonl", **more)


def test_hashes_are_of_the_bytes_sent_and_the_cache_sees_a_changed_film(tmp_path, monkeypatch):
    path = str(tmp_path / "film.png")
    Image.new("L", (80, 80), 1).save(path)
    first = hashes(tmp_path, [path, path])
    assert first == {(path, 64, 90): films.digest(films.encode(path, 64, 90))}
    with monkeypatch.context() as patch:
        patch.setattr(films, "encode", lambda *a: pytest.fail("encoded again in spite of the cache"))
        assert hashes(tmp_path, [path]) == first
    Image.new("L", (80, 80), 200).save(path)
    os.utime(path, ns=(1, 1))
    assert hashes(tmp_path, [path]) != first


def test_films_that_cannot_be_used_are_listed_and_nothing_is_cached(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_bytes(b"no film")
    Image.new("I;16", (80, 80)).save(tmp_path / "deep.png")
    paths = [str(tmp_path / name) for name in ("empty.png", "text.png", "deep.png", "none.png")]
    with pytest.raises(UserError, match="4 problems") as found:
        hashes(tmp_path, paths)
    for word in ("0 bytes", "not an image", "more than 8 bits", "missing"):
        assert word in str(found.value)
    assert not (tmp_path / "cache.jsonl").exists()


def test_an_answer_is_read_back_with_its_cost_and_a_torn_one_is_not(tmp_path, capsys):
    store = Store(tmp_path)
    for key in ("k1", "k2"):
        store.add(TEACHER, "s", answer(key), '{"raw": "\\ud800"}')
    store.fail(TEACHER, "s", "k3", cost=0.25, what="no answer")
    path = store.path("answers", "a")
    path.write_bytes(path.read_bytes()[:-9])
    again = Store(tmp_path)
    assert again.get("a", "k1") == answer("k1")
    assert again.get("a", "k2") is None
    assert again.spent == 0.75
    assert "cut off by an interruption" in capsys.readouterr().err
    again.add(TEACHER, "s", answer("k2", text="y"), "{}")
    assert Store(tmp_path).get("a", "k2").text == "y"


ROW = {"teacher": "a", **answer("k")._asdict()}


@pytest.mark.parametrize("row", [{"key": "x"}, {**ROW, "cost": "1"}, {**ROW, "key": ["k"]}, {**ROW, "status": "fine"}])
def test_a_foreign_file_in_the_store_is_refused(tmp_path, row):
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers/a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="no row of an answer store"):
        Store(tmp_path)


def test_two_runs_cannot_hold_one_store(tmp_path):
    with Store(tmp_path).locked(), pytest.raises(UserError, match="another run"), Store(tmp_path).locked():
        pass


def test_file_names_keep_teachers_apart():
    assert file_name("gpt-4.1") == "gpt-4.1"
    names = {file_name(name) for name in ("a b", "a/b", "A_B", "a_b", "..", "../a", "é", "è")}
    assert len(names) == 8
    assert not any("/" in name or name.startswith(".") for name in names)


def test_price_and_worst_case():
    assert price(TEACHER, Usage(1_000_000, 100_000)) == pytest.approx(3.0)
    assert price(Teacher("a", "http://127.0.0.1:1", "m"), Usage(10, 10)) == 0
    assert worst_usage(TEACHER, "é" * 10, 2) == (20 + 2 * 4096 + 64, 2048)


def test_the_ledger_waits_for_requests_under_way_and_then_gives_up():
    async def story():
        ledger = Ledger(10.0, spent=4.0)
        await ledger.reserve(5.0)
        second = asyncio.ensure_future(ledger.reserve(5.0))
        await asyncio.sleep(0)
        assert not second.done()
        ledger.settle(5.0, 1.0)  # cheaper than feared: the second fits now
        await second
        with pytest.raises(OverBudget):
            third = asyncio.ensure_future(ledger.reserve(0.5))
            await asyncio.sleep(0)
            ledger.settle(5.0, 5.0)
            await third
        assert ledger.spent == 10.0
        await ledger.reserve(0.0)  # what costs nothing always fits

    asyncio.run(story())


def test_what_costs_nothing_fits_a_budget_that_is_overdrawn():
    assert Ledger(1.0, spent=2.0).fits(0.0) and not Ledger(1.0, spent=2.0).fits(0.1)


def test_of_two_answers_under_one_key_the_first_stays_and_both_were_paid(tmp_path):
    store = Store(tmp_path)
    for text in ("first", "second"):
        store.add(TEACHER, "s", answer("k", text=text), "{}")
    again = Store(tmp_path)
    assert again.get("a", "k").text == "first" and again.spent == 1.0


def test_the_cache_sees_a_film_of_equal_size_and_another_encoder(tmp_path, monkeypatch):
    path = str(tmp_path / "film.bmp")
    Image.new("L", (80, 80), 1).save(path)
    first, size = hashes(tmp_path, [path]), os.path.getsize(path)
    Image.new("L", (80, 80), 200).save(path)
    os.utime(path, ns=(1, 1))
    second = hashes(tmp_path, [path])
    assert os.path.getsize(path) == size and second != first
    seen, real = [], films.encode
    monkeypatch.setattr(films, "encode", lambda *a: seen.append(a) or real(*a))
    monkeypatch.setattr(films, "ENCODER", "another")
    assert hashes(tmp_path, [path]) == second and len(seen) == 1
