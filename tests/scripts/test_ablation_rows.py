import pytest
import yaml

from data.errors import UserError
from scripts import ablation_rows
from scripts.ablation_rows import FOLDER, GROUPS, Sizes, before, digest, find_row, merged, read_row, read_rows, resolved
from scripts.plan import ROOT
from scripts.settings import read_config

GOOD = {"question": "q", "group": "main", "launcher": "apo", "consensus": "vote"}


def write(folder, name="row", **changes):
    content = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


FULL = Sizes()


def config(path, sizes=FULL):
    return digest(resolved(read_row(path), sizes, {}))


def test_every_shipped_row_reads_and_opens_with_its_command():
    rows = read_rows()
    wanted = {
        "learn",
        "sft_consensus_samples",
        "sft_consensus_flops",
        "dpo_seven_pairs",
        "dpo_one_pair",
        "pl",
        "pl_nll",
    }
    wanted |= {"pl_length", "pl_refusals", "pl_random_film", "pl_conflicting", "pl_consensus_style", "pl_weighted"}
    wanted |= {"consensus_vote", "consensus_medoid", "consensus_oracle", "two_rounds", *(f"n{k}" for k in range(1, 7))}
    assert wanted <= rows.keys()
    assert {row.group for row in rows.values()} == set(GROUPS)
    for name in rows:
        text = (FOLDER / f"{name}.yaml").read_text()
        assert f"#     bash scripts/ablate.sh --world published --seed 0 configs/ablation/{name}.yaml\n" in text
    hashes = {name: digest(resolved(row, Sizes(), rows)) for name, row in rows.items()}
    assert hashes.pop("pl_nll_again") == hashes["pl_nll"], "the one row that repeats another"
    assert len(set(hashes.values())) == len(hashes), "two rows that are the same run"


def test_only_the_oracle_and_rows_that_say_so_look_at_the_truth():
    rows = read_rows()
    assert [name for name, row in rows.items() if row.consensus == "oracle"] == ["consensus_oracle"]
    told = [name for name, row in rows.items() if row.labels]
    assert told == ["compare_labels", "n1_labels", "two_rounds_n1_labels"]
    assert all(f"{row.labels} " in row.question and "label" in row.question for row in map(rows.get, told))


def test_settings_lie_over_the_phantom_config():
    row = read_rows()["dpo_seven_pairs"]
    settings = merged(row)
    base = merged(read_rows()["pl_nll"])
    assert settings["loss_type"] == "pairwise" and settings["rpo_alpha"] == "0"
    assert {k for k in base if base[k] != settings[k]} == {"loss_type", "rpo_alpha"}
    assert not settings.keys() & {"model", "dataset", "output_dir", "image_root", "seed"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"consensus": "votes"}, "consensus is 'votes'; did you mean 'vote'"),
        ({"launcher": None}, "launcher is None"),
        ({"setings": {}}, "unknown key setings; did you mean 'settings'"),
        ({"question": None}, "no question"),
        ({"settings": {"betta": 1}}, "settings: betta; did you mean beta"),
        ({"settings": {"seed": 1}}, "settings: seed; it is set by scripts/ablate.py"),
        ({"settings": [1]}, "settings must hold"),
        ({"variant": {"negatives": "first-0"}}, "negatives first-0"),
        ({"variant": {"films": 0}}, "variant: films 0"),
        ({"variant": {"films": "300"}}, "variant: films '300'"),
        ({"variant": {"negative": "all"}}, "variant: unknown key negative"),
        ({"launcher": "none", "settings": {"beta": 1}}, "launcher none trains nothing"),
        ({"launcher": "compare", "settings": {"beta": 1}}, "launcher compare trains nothing"),
        ({"launcher": "compare", "consensus": "self"}, "launcher compare has no student"),
        ({"launcher": "compare", "best_of": "pl"}, "launcher compare has no student"),
        ({"launcher": "compare", "student": "taught"}, "launcher compare has no student"),
        ({"value": "x"}, "must be a number"),
        ({"labels": 20}, "labels: a consensus of vote takes none"),
        ({"labels": 0, "consensus": "dawid_skene"}, "labels 0; write a number from 1"),
        ({"labels": "20", "consensus": "dawid_skene"}, "labels '20'; write a number from 1"),
        ({"best_of": "pl"}, "best_of takes another row's student; write launcher none"),
        ({"student": "clever"}, "write taught, plain, seeing"),
    ],
)
def test_a_bad_row_is_refused_with_its_file(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as caught:
        read_row(path)
    assert str(caught.value).startswith(str(path))


def test_a_row_that_is_not_there_is_said_with_the_one_that_may_be_meant(tmp_path):
    with pytest.raises(UserError, match=r"pl_nll: no such row; did you mean configs/ablation/pl_nll.yaml"):
        read_row(tmp_path / "pl_nll")
    with pytest.raises(UserError, match=r"pl_nl.yaml: no such row; did you mean 'pl_nll'"):
        read_row(tmp_path / "pl_nl.yaml")


def test_a_consensus_alone_does_not_hang_on_any_training(tmp_path, monkeypatch):
    rows = read_rows()
    row = read_row(write(tmp_path, launcher="compare", settings=None))
    first = resolved(row, Sizes(), rows)
    monkeypatch.setattr(ablation_rows, "read_config", None)
    assert resolved(row, Sizes(), rows) == first and first["consensus"] == "vote"
    assert digest(first) != digest(resolved(row._replace(consensus="medoid"), Sizes(), rows))
    with pytest.raises(UserError, match="trains nothing; name a row that does in after"):
        before(rows["pl"]._replace(after="compare_vote"), rows)


def test_the_hash_follows_what_decides_the_numbers_and_nothing_else(tmp_path):
    path = write(tmp_path)
    first = config(path)
    path.write_text("# another comment\n" + path.read_text())
    assert config(path) == first
    assert config(write(tmp_path, "other", question="another question", group="beta", value=1)) == first
    assert config(write(tmp_path, "b", settings={"beta": 0.1})) == first, "the value that the phantom config has"
    changed = [
        {"settings": {"beta": 0.2}},
        {"consensus": "medoid"},
        {"variant": {"negatives": "one"}},
        {"after": "pl_nll"},
    ]
    assert len({first, *(config(write(tmp_path, "c", **one)) for one in changed)}) == 5
    assert config(path, Sizes(train=100)) != first


def test_equal_flops_follow_the_critique(monkeypatch):
    rows = read_rows()
    names = ("sft_consensus_flops", "sft_consensus_flops_best", "n1_flops", "sft_consensus_samples")
    before = [digest(resolved(rows[name], Sizes(), rows)) for name in names]
    real = ablation_rows.read_config
    monkeypatch.setattr(
        ablation_rows,
        "read_config",
        lambda stage, path: real(stage, path) | ({"num_train_epochs": "20"} if stage == "critique" else {}),
    )
    after = [digest(resolved(rows[name], Sizes(), rows)) for name in names]
    assert [a != b for a, b in zip(before, after, strict=True)] == [True, True, True, False]


def test_the_hash_follows_what_a_student_is_taught_first(monkeypatch):
    rows = read_rows()
    names = ("seeing_pl_nll", "seeing_learn", "consensus_self", "pl_nll", "pl_content_reference")
    before = [digest(resolved(rows[name], Sizes(), rows)) for name in names]
    more = {student: settings | {"learning_rate": "1"} for student, settings in ablation_rows.LESSONS.items()}
    monkeypatch.setattr(ablation_rows, "LESSONS", more)
    after = [digest(resolved(rows[name], Sizes(), rows)) for name in names]
    assert [a != b for a, b in zip(before, after, strict=True)] == [True, True, True, False, False]


def test_after(tmp_path):
    rows = read_rows()
    assert [row.name for row in before(rows["two_rounds"], rows)] == ["pl_nll"]
    assert find_row("pl_nll", {}).name == "pl_nll"
    loop = read_rows([write(tmp_path, "a", after="b"), write(tmp_path, "b", after="a")])
    with pytest.raises(UserError, match="comes back to itself"):
        before(loop["a"], loop)
    with pytest.raises(UserError, match="learn.yaml: trains nothing; name a row that does in after"):
        before(read_row(write(tmp_path, "c", after="learn")), rows)
    with pytest.raises(UserError, match=r"c.yaml: after pl_nl: .*pl_nl.yaml: no such row; did you mean 'pl_nll'"):
        before(read_row(write(tmp_path, "c", after="pl_nl")), rows)
    assert [row.name for row in before(rows["three_rounds"], rows)] == ["pl_nll", "two_rounds"]


def test_best_of(tmp_path):
    rows = read_rows()
    assert [row.name for row in before(rows["two_rounds_n1_best"], rows)] == ["n1", "two_rounds_n1"]
    best, last = (resolved(rows[name], Sizes(), rows) for name in ("pl_nll_best", "pl_nll"))
    assert best["best_of"] == "pl_nll" and "best_of" not in last
    with pytest.raises(UserError, match="learn.yaml: trains nothing; name a row that does in best_of"):
        before(read_row(write(tmp_path, "c", launcher="none", best_of="learn", settings=None)), rows)
    with pytest.raises(UserError, match="d.yaml: student is None, that of best_of few_sft is seeing; write the same"):
        before(read_row(write(tmp_path, "d", launcher="none", best_of="few_sft", settings=None)), {})
    with pytest.raises(UserError, match="e.yaml: consensus is vote, that of best_of pl_nll is dawid_skene; write"):
        before(read_row(write(tmp_path, "e", launcher="none", best_of="pl_nll", consensus="vote", settings=None)), {})


def test_as_critique_takes_the_value_of_the_critiques_config(tmp_path):
    critique = read_config("critique", ROOT / "configs/apo_phantom.yaml")
    settings = read_rows()["sft_consensus_samples"].settings
    for key in ("num_train_epochs", "effective_batch_size", "learning_rate"):
        assert settings[key] == critique[key]
    with pytest.raises(UserError, match="share_prefix as_critique; configs/apo_phantom.yaml has no such key"):
        read_row(write(tmp_path, launcher="sft", settings={"share_prefix": "as_critique"}))


def test_two_rows_of_one_name_are_refused(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="given already"):
        read_rows([write(tmp_path), write(tmp_path / "x")])
