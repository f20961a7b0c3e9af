"""The reference cache: exact, resumable, and never silently wrong."""

import copy
import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from apo import reference_cache
from apo.reference_cache import ReferenceCache, config_digest, reference_parameters, response_keys, weights_digest
from tests.apo.cases import ROOT, column, make_many_rows, train, write_rows

IDENTITY = {"weights": "abc", "dtype": "float32"}
KEYS, LOGPS, COUNTS = ["k1", "k2", "k3"], [-1.25, -300.123456789012345, -2.0], [3, 90, 4]


def filled(folder):
    cache = ReferenceCache(folder, IDENTITY)
    cache.append(KEYS, LOGPS, COUNTS)
    return cache


def test_numbers_come_back_exactly_and_in_another_process(tmp_path):
    filled(tmp_path)
    assert ReferenceCache(tmp_path, IDENTITY).lookup(KEYS[::-1], COUNTS[::-1]) == LOGPS[::-1]


def test_one_missing_response_means_the_micro_batch_is_computed(tmp_path):
    assert filled(tmp_path).lookup([*KEYS, "new"], [*COUNTS, 1]) is None


def test_ranks_see_each_others_records(tmp_path):
    one, two = filled(tmp_path), ReferenceCache(tmp_path, IDENTITY)
    one.append(["late"], [-7.5], [2])
    assert two.lookup(["late"], [2]) == [-7.5]


def test_foreign_cache_is_an_error_that_names_the_difference(tmp_path):
    filled(tmp_path)
    with pytest.raises(ValueError, match="dtype: cache float32, run bfloat16"):
        ReferenceCache(tmp_path, {**IDENTITY, "dtype": "bfloat16"})


def test_missing_from_a_complete_cache_is_an_error(tmp_path):
    filled(tmp_path).mark_complete()
    again = ReferenceCache(tmp_path, IDENTITY)
    assert again.lookup(KEYS, COUNTS) == LOGPS
    with pytest.raises(ValueError, match=r"complete, yet 1 response\(s\)"):
        again.lookup(["other"], [1])


def test_other_number_of_tokens_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="recorded with 3 tokens"):
        filled(tmp_path).lookup(["k1"], [4])


def test_torn_last_line_is_computed_again_and_the_rest_kept(tmp_path):
    filled(tmp_path)
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-5])
    cache = ReferenceCache(tmp_path, IDENTITY)
    assert cache.lookup(KEYS[:2], COUNTS[:2]) == LOGPS[:2]
    assert cache.lookup(KEYS, COUNTS) is None


def test_damage_in_the_middle_names_the_file(tmp_path):
    filled(tmp_path)
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"k2"', b"nonsense"))
    with pytest.raises(ValueError, match=path.name):
        ReferenceCache(tmp_path, IDENTITY)


@pytest.mark.parametrize("text", ["", "{"])
def test_a_damaged_identity_names_the_file(tmp_path, text):
    filled(tmp_path)
    (tmp_path / "identity.json").write_text(text)
    with pytest.raises(ValueError, match=r"identity.json: is damaged; delete that folder"):
        ReferenceCache(tmp_path, IDENTITY)


def test_ranks_of_two_nodes_may_share_a_process_id(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 7)
    founded, others = [], []

    def founding(partial, path, link=os.link):
        founded.append(partial)
        if len(founded) == 1:  # while this rank is about to found the folder, another one does, and tidies up
            others.append(ReferenceCache(tmp_path, IDENTITY))
        link(partial, path)

    monkeypatch.setattr(os, "link", founding)
    ReferenceCache(tmp_path, IDENTITY).append(["a"], [-1.0], [1])
    others[0].append(["b"], [-2.0], [1])
    assert len(set(founded)) == 2 and ReferenceCache(tmp_path, IDENTITY).logps.keys() == {"a", "b"}


def test_a_full_disk_leaves_no_half_record(tmp_path):
    """In a process of its own: the limit on a file's size is a process's."""
    code = (
        "import resource, signal, sys\n"
        "from apo.reference_cache import ReferenceCache\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "cache = ReferenceCache(sys.argv[1], {'weights': 'abc', 'dtype': 'float32'})\n"
        "cache.append(['whole'], [-1.0], [1])\n"
        "_, most = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))\n"
        "try:\n"
        "    cache.append([f'k{number}' for number in range(9)], [-123.456789] * 9, [9] * 9)\n"
        "    sys.exit('no error')\n"
        "except OSError:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))\n"
        "cache.append(['after'], [-2.0], [2])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0
    assert ReferenceCache(tmp_path, IDENTITY).logps == {"whole": (-1.0, 1), "after": (-2.0, 2)}


def test_a_home_folder_may_be_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ReferenceCache("~/cache", IDENTITY).folder == tmp_path / "cache"


def test_keys_depend_on_prompt_film_and_response():
    def keys(**changes):
        group = {"input_ids": [1, 2], "responses": [[3], [4, 5]], "pixel_values": torch.zeros(2, 2)}
        return response_keys(group | changes)

    plain = keys()
    assert plain == keys()
    assert len(set(plain)) == 2
    assert not set(plain) & set(keys(input_ids=[1, 3]))
    assert not set(plain) & set(keys(pixel_values=torch.full((2, 2), 1e-7)))
    assert not set(plain) & set(keys(pixel_values=torch.zeros(4, 1)))
    assert keys(responses=[[3], [4, 6]])[0] == plain[0]
    assert keys(responses=[[3], [4, 6]])[1] != plain[1]


def test_weights_digest_sees_a_single_changed_bit():
    model = nn.Linear(4, 4).bfloat16()
    before = weights_digest(model.named_parameters())
    assert before == weights_digest(model.named_parameters())
    model.weight.data.view(torch.int16)[2, 3] ^= 1
    assert weights_digest(model.named_parameters()) != before


def test_partitioned_weights_are_refused():
    with pytest.raises(ValueError, match="ZeRO-3"):
        weights_digest([("weight", torch.empty(0))])


def test_lora_and_full_copies_of_one_model_are_the_same_reference():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4), nn.Linear(4, 8))
    plain = weights_digest(reference_parameters(model, None))
    for more in ({}, {"modules_to_save": ["2"]}, {"use_dora": True}, {"trainable_token_indices": {"0": [1]}}):
        adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=["1"], **more))
        assert weights_digest(reference_parameters(adapted, None)) == plain, more
        names = [name for name, _ in reference_parameters(adapted, None)]
        assert names == [name for name, _ in model.named_parameters()], "a cache of an earlier version is still read"


def test_config_digest_sees_settings_and_no_names(student_dir):
    from transformers import AutoConfig

    def digest(**changes):
        model = nn.Linear(1, 1)
        model.config = AutoConfig.from_pretrained(student_dir)
        for path, value in changes.items():
            *parents, name = path.split("__")
            at = model.config
            for parent in parents:
                at = getattr(at, parent)
            setattr(at, name, value)
        return config_digest(model, None)

    plain = digest()
    assert plain == digest(name_or_path="elsewhere", use_cache=False, text_config__use_cache=False)
    assert plain != digest(text_config__rms_norm_eps=1e-5)
    assert plain != digest(text_config__rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert plain != digest(vision_config__window_size=224)


def test_config_digest_sees_the_scale_of_a_reference_adapter():
    from peft import LoraConfig, get_peft_model

    def digest(alpha):
        model = nn.Sequential(nn.Linear(4, 4))
        model.config = LoraConfig()
        settings = LoraConfig(r=2, lora_alpha=alpha, target_modules=["0"])
        return config_digest(get_peft_model(model, settings, adapter_name="ref_adapter"), None)

    assert digest(4) == digest(4) != digest(8)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    rows = make_many_rows(folder, 2, studies=4, negatives=(7, 1, 3, 5), films=(1, 2, 1, 1))
    return write_rows(folder / "rows.jsonl", rows)


def run(student_dir, studies, out, cache=None, only=False, **flags):
    options = {"apo_cache_dir": str(cache), "apo_cache_only": only} if cache else None
    settings = {"num_train_epochs": 2, "logging_steps": 1} | flags
    return train(student_dir, studies, out, model_kwargs=options, **settings)[0]


def test_cached_training_equals_live(student_dir, studies, tmp_path):
    live = run(student_dir, studies, tmp_path / "live")
    first = run(student_dir, studies, tmp_path / "first", tmp_path / "cache")
    again = run(student_dir, studies, tmp_path / "again", tmp_path / "cache")
    assert column(first, "loss") == pytest.approx(column(live, "loss"), abs=1e-6)
    assert column(again, "loss") == column(first, "loss")
    records = [json.loads(line) for path in (tmp_path / "cache").glob("*.jsonl") for line in path.open()]
    assert len(records) == len({key for key, _, _ in records}) == 2 * (8 + 2 + 4 + 6), "each response computed once"


def test_cache_only_pass_then_training_with_another_beta(student_dir, studies, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    assert run(student_dir, studies, tmp_path / "fill", cache, only=True) == []
    assert json.loads((cache / "complete.json").read_text()) == {"responses": 40}
    live = run(student_dir, studies, tmp_path / "live", beta=0.5)
    with monkeypatch.context() as patch:
        patch.setattr("apo.trainer.APOTrainer._reference", lambda self: pytest.fail("the reference must not run"))
        cached = run(student_dir, studies, tmp_path / "cached", cache, beta=0.5)
    assert column(cached, "loss") == pytest.approx(column(live, "loss"), abs=1e-6)
    assert cached[0]["loss"] == pytest.approx((math.log(8) + math.log(2)) / 2, abs=1e-5)
    with pytest.raises(ValueError, match="complete, yet"):
        run(student_dir, studies, tmp_path / "pixels", cache, max_pixels=3136)


def test_a_pass_computes_as_training_does(student_dir, studies, tmp_path):
    """Float32 weights under autocast, which only a prepared model has inside."""
    mixed = {"bf16": "true", "fp16": "false", "num_train_epochs": 1, "learning_rate": 0}
    run(student_dir, studies, tmp_path / "a", tmp_path / "filled", only=True, **mixed)
    run(student_dir, studies, tmp_path / "b", tmp_path / "trained", **mixed)
    filled, trained = (ReferenceCache(tmp_path / name, identity_of(tmp_path / name)) for name in ("filled", "trained"))
    assert identity_of(filled.folder) == identity_of(trained.folder) and filled.logps == trained.logps
    run(student_dir, studies, tmp_path / "c", tmp_path / "plain", only=True)
    plain = ReferenceCache(tmp_path / "plain", identity_of(tmp_path / "plain"))
    assert plain.logps.keys() == filled.logps.keys() and plain.logps != filled.logps, "and autocast is seen"
    mixed, exact = identity_of(filled.folder), identity_of(plain.folder)
    assert {key for key in mixed if mixed[key] != exact[key]} == {"autocast"}
    of_all = {"weights", "config", "dtype", "autocast", "attention", "template", "torch", "transformers"}
    assert mixed.keys() == exact.keys() == of_all


def test_a_pass_believes_only_what_is_on_the_disk(student_dir, studies, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr(ReferenceCache, "_write", lambda self, whole: None)
    with pytest.raises(ValueError, match=r"40 response\(s\) not found again"):
        run(student_dir, studies, tmp_path / "a", cache, only=True)
    assert not (cache / "complete.json").exists()


def test_a_pass_over_a_stream_is_refused(student_dir, studies, tmp_path):
    with pytest.raises(ValueError, match="leave --streaming out"):
        run(student_dir, studies, tmp_path / "a", tmp_path / "cache", only=True, streaming="true", max_steps=2)


def test_an_interrupted_pass_goes_on_where_it_was(student_dir, studies, tmp_path, monkeypatch):
    cache, whole = tmp_path / "cache", tmp_path / "whole"
    append, appended = ReferenceCache.append, []

    def counting(self, keys, logps, counts):
        if len(appended) == 3 and interrupted:
            raise KeyboardInterrupt
        appended.append(len(keys))
        append(self, keys, logps, counts)

    interrupted = True
    monkeypatch.setattr(ReferenceCache, "append", counting)
    with pytest.raises(KeyboardInterrupt):
        run(student_dir, studies, tmp_path / "one", cache, only=True)
    assert not (cache / "complete.json").exists()
    (path,) = cache.glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-9])  # a kill may tear the last line
    interrupted, before = False, sum(appended)
    appended.clear()
    run(student_dir, studies, tmp_path / "two", cache, only=True)
    assert 0 < before < 40 and before + sum(appended) < 40 + 16, "only what was missing, in whole micro-batches"
    assert sum(appended) < 40
    run(student_dir, studies, tmp_path / "three", whole, only=True)
    mended, undisturbed = (ReferenceCache(folder, identity_of(folder)) for folder in (cache, whole))
    assert mended.complete
    assert mended.logps == undisturbed.logps


def identity_of(folder):
    return json.loads((folder / "identity.json").read_text())


def test_records_survive_a_kill(tmp_path):
    """A process that is killed without warning leaves every record that `append` returned for."""
    code = (
        "import os, signal, sys\n"
        "from apo.reference_cache import ReferenceCache\n"
        "cache = ReferenceCache(sys.argv[1], {'weights': 'abc', 'dtype': 'float32'})\n"
        "for number in range(50):\n"
        "    cache.append([f'k{number}'], [-float(number)], [number])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    cache = ReferenceCache(tmp_path, IDENTITY)
    assert cache.logps == {f"k{number}": (-float(number), number) for number in range(50)}


def test_stale_rows_and_films_are_an_error_after_a_complete_pass(student_dir, studies, tmp_path):
    """A changed prompt, answer or film: never a silent miss."""
    cache = tmp_path / "cache"
    run(student_dir, studies, tmp_path / "fill", cache, only=True)
    rows = [json.loads(line) for line in studies.read_text().splitlines()]
    for name, change in {
        "answer": lambda row: row["negative_messages"][0][0].update(content="no effusion is seen."),
        "prompt": lambda row: row["messages"][0].update(content=row["messages"][0]["content"] + " The heart?"),
        "film": lambda row: row.update(images=rows[-1]["images"][:1] * len(row["images"])),
    }.items():
        changed = json.loads(json.dumps(rows))
        change(changed[0])
        path = write_rows(tmp_path / f"{name}.jsonl", changed)
        with pytest.raises(ValueError, match="complete, yet"):
            run(student_dir, path, tmp_path / name, cache)


def test_cache_of_another_student_is_refused(student_dir, studies, tmp_path):
    from data.phantom.student import Shape, build_student
    from tests.apo.cases import PROMPT

    cache = tmp_path / "cache"
    run(student_dir, studies, tmp_path / "fill", cache, only=True)
    shape = Shape(hidden=64, layers=2, vision_hidden=32, vision_depth=2, vocab=600)
    build_student(tmp_path / "other", seed=1, texts=[PROMPT], shape=shape)
    with pytest.raises(ValueError, match="belongs to another reference .*weights"):
        run(tmp_path / "other", studies, tmp_path / "out", cache)


def test_weights_digest_sees_names_types_and_borders_and_no_order():
    one, two = torch.zeros(2, 2), torch.ones(4)
    plain = weights_digest([("a", one), ("b", two)])
    assert plain == weights_digest([("b", two), ("a", one)])
    assert plain != weights_digest([("a", one), ("c", two)])
    assert plain != weights_digest([("a", one.int()), ("b", two)]), "the same bytes as another type"
    assert reference_cache._digest([b"ab", b"c"]) != reference_cache._digest([b"a", b"bc"])


def test_a_field_that_only_one_identity_has_is_a_difference(tmp_path):
    filled(tmp_path)
    for other in ({**IDENTITY, "template": "x"}, {"weights": "abc"}):
        with pytest.raises(ValueError, match="belongs to another reference"):
            ReferenceCache(tmp_path, other)


def test_what_is_saved_beside_an_adapter_is_no_part_of_the_reference():
    class Model:
        def named_parameters(self):
            for name in ("head.original_module", "head.modules_to_save.default", "head.modules_to_save.ref_adapter"):
                yield f"base_model.model.{name}.weight", torch.zeros(1)

    names = [name for name, _ in reference_parameters(Model(), None)]
    assert names == ["head.weight", "head.modules_to_save.ref_adapter.weight"]
    names = [name for name, _ in reference_parameters(Model(), "default")]
    assert names == ["head.weight", "head.modules_to_save.default.weight"]


def test_config_digest_sees_rank_and_scaling_rule_of_a_reference_adapter():
    import types

    def digest(**changes):
        own = types.SimpleNamespace(**{"r": 2, "lora_alpha": 4, "use_rslora": False, **changes})
        model = nn.Linear(1, 1)
        model.config, model.peft_config = types.SimpleNamespace(to_dict=dict), {"ref_adapter": own}
        return config_digest(model, None)

    assert len({digest(), digest(r=4), digest(use_rslora=True), digest(lora_alpha=8)}) == 4
