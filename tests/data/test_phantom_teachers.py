"""Simulated teachers: realised rates, what the texts say, and what voting can make of them."""

import itertools

import numpy as np
import pytest
from scipy.stats import kstest

from data.findings import is_refusal, read_findings, summarise
from data.findings_lexicon import FIVE
from data.phantom import cohort, styles, teachers

SEED = 3
COUNT = 600


@pytest.fixture(scope="module")
def studies():
    return cohort.plan("test", COUNT, seed=SEED, world="balanced")


def claim(label, state="present", side=None, severity=None):
    return teachers.Statement(label, state, side, severity)


def votes(studies, world):
    """(truth (n, 5), votes (n, 7, 5) with -1 where a teacher refused)."""
    truth = np.array([[s["findings"][label]["state"] == "present" for label in FIVE] for s in studies])
    said = np.full((len(studies), len(teachers.TEACHERS), len(FIVE)), -1)
    for i, study in enumerate(studies):
        told = teachers.answers(study["id"], study["findings"], seed=SEED, world=world)
        for j, name in enumerate(teachers.TEACHERS):
            for one in told[name].claims:
                if one.label in FIVE:
                    said[i, j, FIVE.index(one.label)] = one.state == "present"
    return truth, said


def dawid_skene(said, rounds=40):
    """Posterior of "present" for votes (n, teachers) in {0, 1, -1}, by EM from the share of yes votes."""
    yes, no = said == 1, said == 0
    q = yes.sum(1) / np.maximum(1, (yes | no).sum(1))
    for _ in range(rounds):
        sens = (1 + (yes * q[:, None]).sum(0)) / (2 + ((yes | no) * q[:, None]).sum(0))
        spec = (1 + (no * (1 - q)[:, None]).sum(0)) / (2 + ((yes | no) * (1 - q)[:, None]).sum(0))
        up = np.log(q.mean()) + yes @ np.log(sens) + no @ np.log(1 - sens)
        down = np.log(1 - q.mean()) + no @ np.log(spec) + yes @ np.log(1 - spec)
        q = 1 / (1 + np.exp(down - up))
    return q


@pytest.mark.parametrize("world", list(teachers.WORLDS))
def test_realised_rates_match_the_table(world, studies):
    measured = teachers.measure(studies, seed=SEED, world=world)
    table = teachers.WORLDS[world].rates
    for name, (k, label) in itertools.product(teachers.TEACHERS, enumerate(FIVE)):
        got = measured[name][label]
        for rate, expected in zip(("sensitivity", "specificity"), table[name][k], strict=True):
            # At least 100 films of either kind in 400 or more answers; 4.5 standard errors over 420 comparisons.
            tolerance = 4.5 * np.sqrt(expected * (1 - expected) / 100)
            assert abs(got[rate] - expected) < tolerance, (world, name, label, rate)


def test_published_world_keeps_the_published_accuracies():
    for name, row in teachers.PUBLISHED_ACCURACY.items():
        for label, accuracy, (sens, spec) in zip(FIVE, row, teachers.WORLDS["published"].rates[name], strict=True):
            p = teachers.PREVALENCE[label]
            assert p * sens + (1 - p) * spec == pytest.approx(accuracy)
            assert min(sens, spec) > 0.0199 and max(sens, spec) < 0.9801


def test_no_statement_errs_more_than_always():
    for name, world in teachers.WORLDS.items():
        worst = max(1 - rate for row in world.rates.values() for pair in row for rate in pair)
        assert worst * (1 + world.ramp) <= 1.0, name


def test_votes_beat_the_best_teacher_in_the_balanced_world(studies):
    truth, said = votes(studies, "balanced")
    best = max(np.mean([(said[:, j, k] == truth[:, k])[said[:, j, k] >= 0].mean() for k in range(5)]) for j in range(7))
    told = said >= 0
    share = (said * told).sum(1) / told.sum(1)
    majority = ((share > 0.5) == truth).mean()
    skene = np.mean([((dawid_skene(said[:, :, k]) > 0.5) == truth[:, k]).mean() for k in range(5)])
    assert 0.70 < best < 0.82
    assert majority > 0.85
    assert skene > 0.90
    assert skene > majority > best + 0.05


def test_correlated_teachers_err_on_the_same_films(studies):
    def agreement(world):
        truth, said = votes(studies, world)
        wrong = (said != truth[:, None]) & (said >= 0)
        pairs = itertools.combinations(range(7), 2)
        return np.mean([np.corrcoef(wrong[:, a, k], wrong[:, b, k])[0, 1] for a, b in pairs for k in range(5)])

    # By finding and kind of error a teacher's rate varies, so even independent teachers correlate a little, or oppose.
    assert agreement("correlated") > agreement("balanced") + 0.1


def test_looks_mislead_teachers(studies):
    hard = np.array([[teachers.misleads(study["findings"], label) for label in FIVE] for study in studies])

    def errors(world, there):
        truth, said = votes(studies, world)
        wrong = (said != truth[:, None]) & (said >= 0)
        return [wrong.mean(axis=1)[(truth == there) & chosen].mean() for chosen in (hard, ~hard)]

    for there in (True, False):
        misled, plain = errors("looks", there)
        assert misled > 1.5 * plain
        misled, plain = errors("correlated", there)
        assert misled < 1.2 * plain


def test_a_film_misleads_by_a_small_finding_or_a_look_alike():
    def film(**severities):
        return {label.replace("_", " "): {"state": "present", "severity": one} for label, one in severities.items()}

    assert teachers.misleads(film(Edema="small"), "Edema") and not teachers.misleads(film(Edema="large"), "Edema")
    assert teachers.misleads(film(Support_Devices=None), "Pneumothorax")
    assert not teachers.misleads(film(Support_Devices=None, Pneumothorax="moderate"), "Pneumothorax")
    assert not teachers.misleads(film(Support_Devices=None), "Edema") and not teachers.misleads({}, "Pneumonia")


def test_looks_keep_what_films_have_in_common_standard_normal():
    rng = np.random.default_rng(5)
    told = []
    for present in (True, False):
        share = teachers.SMALL if present else teachers.LOOK_ALIKES["Edema"][1]
        for number, draw in zip(rng.standard_normal(4000), rng.random(4000), strict=True):
            state = "present" if present else "absent"
            severity = ("small" if draw < share else "large") if present else None
            other = "present" if draw < share else "absent"
            findings = {"Edema": {"state": state, "severity": severity}, "Cardiomegaly": {"state": other}}
            told.append(teachers.by_looks("Edema", findings, number))
    assert kstest(told, "norm").pvalue > 0.01


@pytest.mark.parametrize(("world", "growth"), [("balanced", 1.1), ("drift", 2.5)])
def test_errors_grow_along_the_text(world, growth, studies):
    wrong = np.zeros(5)
    for study in studies:
        for answer in teachers.answers(study["id"], study["findings"], seed=SEED, world=world).values():
            for place, one in enumerate(answer.claims[:5]):
                wrong[place] += one.state != study["findings"][one.label]["state"]
    assert wrong[3:].sum() > growth * wrong[:2].sum()


def test_refusals(studies):
    def share(world, name):
        told = [teachers.answers(s["id"], s["findings"], seed=SEED, world=world)[name] for s in studies]
        return np.mean([answer.status == "refused" for answer in told])

    assert share("refusing", "moonshot-v1") == pytest.approx(0.35, abs=0.06)
    assert share("balanced", "moonshot-v1") == pytest.approx(0.10, abs=0.05)
    assert share("balanced", "sonnet-4") == 0
    for text in styles.REFUSALS:
        assert is_refusal(text)
        assert not [one for one in read_findings(text) if one.label in FIVE]


@pytest.mark.parametrize("style", list(styles.STYLES))
def test_texts_say_what_is_claimed(style):
    rng = np.random.default_rng(0)
    for _ in range(60):
        claims = []
        for label in rng.permutation(FIVE):
            if rng.random() < 0.5:
                claims.append(claim(str(label), "absent"))
                continue
            side = "bilateral" if label == "Edema" else str(rng.choice(["left", "right", "bilateral"]))
            claims.append(claim(str(label), "present", side, str(rng.choice(["small", "moderate", "large"]))))
        claims += [claim(label, "present", None, None) for label in ("Cardiomegaly", "Support Devices")]
        claims.append(claim("Atelectasis", "present", "left", "small"))
        text = styles.teacher_text(claims, style, rng)
        read = summarise(read_findings(text))
        for one in claims:
            assert read[one.label] == (one.state, one.side), (style, one)
        for severity in {one.severity for one in claims if one.severity}:
            assert severity in text.lower()
        assert (
            not {label for label, (state, _) in read.items() if state == "present"}
            - {one.label for one in claims}
            - {"Lung Opacity"}
        )


def test_every_trajectory_speaks_of_each_of_the_five(studies):
    lengths = {name: [] for name in teachers.TEACHERS}
    for study in studies[:150]:
        for one in study["trajectories"]:
            if one["status"] == "ok":
                read = summarise(read_findings(one["text"]))
                assert set(FIVE) <= set(read), one["teacher"]
                lengths[one["teacher"]].append(len(one["text"].split()))
    means = {name: np.mean(row) for name, row in lengths.items()}
    assert min(means.values()) < 25 and 1.5 * min(means.values()) < max(means.values()) < 60
    assert max(max(row) for row in lengths.values()) <= 90


def test_teacher_text_takes_the_readers_claims():
    text = styles.teacher_text(
        [claim("Edema", "absent"), claim("Pneumothorax", "present", "left", "large")],
        "grok-4",
        np.random.default_rng(1),
    )
    rewritten = styles.teacher_text(read_findings(text)[:2], "consensus", np.random.default_rng(1))
    assert rewritten == "Left pneumothorax. No pulmonary edema."


def test_wording_varies_with_the_seed_and_not_without():
    claims = [claim(label, "absent") for label in FIVE]
    texts = {styles.teacher_text(claims, "glm-4.5v", np.random.default_rng(k)) for k in range(10)}
    assert len(texts) > 5
    assert styles.teacher_text(claims, "glm-4.5v", np.random.default_rng(1)) in texts


def test_reports_tell_the_truth(studies):
    changed = 0
    for study in studies[:200]:
        read = summarise(read_findings(study["report"].partition(" IMPRESSION: ")[0]))
        for label in FIVE:
            row = study["findings"][label]
            assert read[label] == (row["state"], row["side"]), study["id"]
        changed += "since the prior film" in study["report"]
    assert changed > 10
