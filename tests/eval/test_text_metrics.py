"""Report metrics against the packages that define them, and the traps of those definitions."""

import os
import random

import nltk.translate.bleu_score
import numpy as np
import pytest
import sacrebleu
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer

from data.errors import UserError
from eval import text_metrics
from eval.text_cleaning import findings_text, r2gen_answer
from eval.text_metrics import COCO, ROUGE, SACRE, count, metrics

WORDS = ("the", "heart", "is", "normal", "no", "pleural", "effusion", ".", "lungs", "are", "clear", "left", "small")
java = pytest.mark.skipif(not text_metrics.have_java(), reason="METEOR 1.5 is a Java program; no java on PATH")


@pytest.fixture(scope="module")
def texts():
    """References and answers that share most words; one answer is empty, one a copy, one short."""
    draw = random.Random(0)
    references = [" ".join(draw.choices(WORDS, k=draw.randrange(4, 30))) for _ in range(40)]
    answers = [
        " ".join(word if draw.random() < 0.8 else draw.choice(WORDS) for word in text.split() if draw.random() < 0.9)
        for text in references
    ]
    answers[3], answers[4], answers[5] = "", references[4], "lungs"
    return references, answers


def as_coco(texts):
    return {i: [text] for i, text in enumerate(texts)}


def drawn(texts, weights):
    return [text for text, n in zip(texts, weights, strict=True) for _ in range(n)]


def test_numbers_are_those_of_the_packages(texts):
    references, answers = texts
    found = metrics(count(references, answers))
    truth, said = as_coco(references), as_coco(answers)
    bleu = Bleu(4).compute_score(truth, said, verbose=0)[0]
    assert [found[f"{COCO}/BLEU-{n}"] for n in (1, 2, 3, 4)] == pytest.approx(bleu, abs=1e-12)
    assert found[f"{COCO}/ROUGE-L"] == pytest.approx(Rouge().compute_score(truth, said)[0], abs=1e-12)
    assert found[f"{COCO}/CIDEr"] == pytest.approx(Cider().compute_score(truth, said)[0], abs=1e-12)
    assert found[f"{SACRE}/BLEU-4"] == pytest.approx(sacrebleu.corpus_bleu(answers, [references]).score, abs=1e-9)
    one = sacrebleu.BLEU(max_ngram_order=1).corpus_score(answers, [references]).score
    assert found[f"{SACRE}/BLEU-1"] == pytest.approx(one, abs=1e-9)
    scorer = RougeScorer(["rougeL"])
    f1 = np.mean([scorer.score(r, a)["rougeL"].fmeasure for r, a in zip(references, answers, strict=True)])
    assert found[f"{ROUGE}/ROUGE-L"] == pytest.approx(f1, abs=1e-12)
    assert list(found) == [
        *(f"{COCO}/{name}" for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")),
        f"{SACRE}/BLEU-1",
        f"{SACRE}/BLEU-4",
        f"{ROUGE}/ROUGE-L",
    ]


def test_bleu_agrees_with_nltk_and_with_sacrebleu_without_its_tokeniser(texts):
    # nltk counts an answer of fewer than n words as one n-gram.
    long = [(reference, answer) for reference, answer in zip(*texts, strict=True) if len(answer.split()) >= 4]
    references, answers = map(list, zip(*long, strict=True))
    found = metrics(count(references, answers))
    split = [[text.split()] for text in references], [text.split() for text in answers]
    for order in (1, 2, 3, 4):
        nltks = nltk.translate.bleu_score.corpus_bleu(*split, weights=[1 / order] * order)
        theirs = sacrebleu.BLEU(tokenize="none", max_ngram_order=order, smooth_method="none", force=True)
        assert found[f"{COCO}/BLEU-{order}"] == pytest.approx(nltks, abs=1e-4)
        assert found[f"{COCO}/BLEU-{order}"] == pytest.approx(
            theirs.corpus_score(answers, [references]).score / 100, abs=1e-4
        )


def test_corpus_bleu_is_not_the_mean_of_sentence_bleu(texts):
    references, answers = texts
    sentences = Bleu(4).compute_score(as_coco(references), as_coco(answers), verbose=0)[1]
    corpus = metrics(count(references, answers))[f"{COCO}/BLEU-4"]
    assert abs(np.mean(sentences[3]) - corpus) > 0.01


def test_a_resample_equals_the_packages_on_the_drawn_texts(texts):
    references, answers = texts
    counts = count(references, answers)
    weights = np.random.default_rng(1).integers(0, 4, len(references))
    found = metrics(counts, weights)
    truth, said = drawn(references, weights), drawn(answers, weights)
    bleu = Bleu(4).compute_score(as_coco(truth), as_coco(said), verbose=0)[0]
    assert [found[f"{COCO}/BLEU-{n}"] for n in (1, 2, 3, 4)] == pytest.approx(bleu, abs=1e-12)
    assert found[f"{COCO}/ROUGE-L"] == pytest.approx(Rouge().compute_score(as_coco(truth), as_coco(said))[0])
    assert found[f"{SACRE}/BLEU-4"] == pytest.approx(sacrebleu.corpus_bleu(said, [truth]).score, abs=1e-9)
    # CIDEr's document frequencies stay those of all references: the mean of the texts' own numbers.
    assert found[f"{COCO}/CIDEr"] == pytest.approx(np.average(counts.cider, weights=weights))
    assert abs(found[f"{COCO}/CIDEr"] - Cider().compute_score(as_coco(truth), as_coco(said))[0]) > 0.01


def test_rouge_l_with_beta_1_2_and_with_beta_1():
    # 3 of 4 reference words in order, 3 of 6 words of the answer.
    found = metrics(count(["a b c d"], ["a x b y c z"]))
    precision, recall, weight = 3 / 6, 3 / 4, 1.2**2
    assert found[f"{COCO}/ROUGE-L"] == pytest.approx(
        (1 + weight) * precision * recall / (recall + weight * precision), abs=1e-12
    )
    assert found[f"{ROUGE}/ROUGE-L"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_sacrebleu_smooths_and_keeps_case():
    found = metrics(count(["A left effusion is seen."], ["a left effusion, large."]))
    theirs = sacrebleu.corpus_bleu(["a left effusion, large."], [["A left effusion is seen."]]).score
    assert found[f"{SACRE}/BLEU-4"] == pytest.approx(theirs) and theirs > 1
    assert found[f"{COCO}/BLEU-4"] < 1e-3


def test_rouge_score_without_its_stemmer():
    assert metrics(count(["Effusions."], ["effusion"]))[f"{ROUGE}/ROUGE-L"] == 0
    assert metrics(count(["Effusion."], ["effusion"]))[f"{ROUGE}/ROUGE-L"] == 1


def test_rouge_l_takes_a_double_blank_for_a_word_which_both_cleanings_prevent():
    reference = "the lungs are clear"
    assert Rouge().calc_score(["the  lungs  are  clear"], [reference]) < 0.8
    assert Rouge().calc_score([""], [""]) == 1.0
    for clean in (findings_text, r2gen_answer):
        found = metrics(count([clean(reference)], [clean("the  lungs  are  clear")]))
        assert found[f"{COCO}/ROUGE-L"] == pytest.approx(1)


def test_cider_depends_on_the_set():
    assert metrics(count(["the lungs are clear"], ["the lungs are clear"]))[f"{COCO}/CIDEr"] == 0
    longer = ["the lungs are clear", "a small left effusion is seen", "no change since then at all"]
    assert metrics(count(longer, longer))[f"{COCO}/CIDEr"] == pytest.approx(10)
    short = [*longer, "normal heart size"]  # no 4-gram: a copy scores 7.5
    assert metrics(count(short, short))[f"{COCO}/CIDEr"] == pytest.approx((3 * 10 + 7.5) / 4)


def test_r2gens_full_stops_alone_raise_bleu_and_rouge():
    references = ["The heart is normal. There is no effusion.", "Lungs are clear. No pneumothorax."]
    answers = ["The heart is large. A left effusion.", "Right opacity. No pneumothorax."]
    plain = metrics(
        count([t.lower().replace(".", "") for t in references], [t.lower().replace(".", "") for t in answers])
    )
    r2gen = metrics(count([r2gen_answer(t) for t in references], [r2gen_answer(t) for t in answers]))
    for name in ("BLEU-1", "ROUGE-L"):
        assert r2gen[f"{COCO}/{name}"] > plain[f"{COCO}/{name}"] + 0.04


@java
def test_meteor_is_that_of_the_program_also_in_a_resample(texts):
    references, answers = texts
    weights = np.random.default_rng(2).integers(0, 3, len(references))
    with text_metrics.meteor_program() as program:
        counts = count(references, answers, program)
        whole = metrics(counts, meteor=program)[f"{COCO}/METEOR"]
        some = metrics(counts, weights, program)[f"{COCO}/METEOR"]
    meteor = Meteor()
    assert whole == pytest.approx(meteor.compute_score(as_coco(references), as_coco(answers))[0], abs=1e-9)
    theirs = meteor.compute_score(as_coco(drawn(references, weights)), as_coco(drawn(answers, weights)))[0]
    assert some == pytest.approx(theirs, abs=1e-9)


@java
def test_meteor_survives_line_breaks_and_its_own_separator():
    with text_metrics.meteor_program() as program:
        counts = count(["lungs\nare clear", "a ||| b"], ["lungs are\nclear", "a ||| c"], program)
        plain = count(["lungs are clear", "a b"], ["lungs are clear", "a c"], program)
        assert 0 < metrics(counts, meteor=program)[f"{COCO}/METEOR"] < 1
    assert counts.meteor.tolist() == plain.meteor.tolist()


def test_meteor_asks_for_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not text_metrics.have_java()
    message = r"no java is on PATH; install a Java runtime.*--set meteor=no"
    with pytest.raises(UserError, match=message), text_metrics.meteor_program():
        pass


def test_a_java_that_ends_at_once_is_told(monkeypatch, tmp_path):
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    with pytest.raises(UserError, match="METEOR's Java program ended"), text_metrics.meteor_program() as program:
        count(["a b"], ["a b"], program)


def test_missing_package_names_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(UserError, match=r"package sacrebleu is not installed.*scripts/setup.sh --reports"):
        text_metrics.check_packages()


def test_no_texts_is_refused():
    with pytest.raises(UserError, match="no text to score"):
        count([], [])


def test_numbers_of_single_texts_add_up(texts):
    references, answers = texts
    counts = count(references, answers)
    found = text_metrics.per_text(counts)
    n = len(references[4].split())
    assert found[4][f"{COCO}/ROUGE-L"] == pytest.approx(1)
    assert found[4][f"{COCO}/BLEU-1"] == [n, n, n, n]
    assert found[4][f"{COCO}/BLEU-4"] == [n, n, n, n - 1, n - 2, n - 3, n, n - 1, n - 2, n - 3]
    whole = metrics(counts)
    for name in ("BLEU-1", "BLEU-4"):
        sums = np.sum([one[f"{COCO}/{name}"] for one in found], axis=0)
        assert text_metrics.coco_bleu(sums)[-1] == pytest.approx(whole[f"{COCO}/{name}"], abs=1e-12)


def test_every_mean_over_texts_follows_the_weights(texts):
    counts = count(*texts)
    weights = np.random.default_rng(1).integers(0, 4, len(texts[0]))
    assert metrics(counts, weights)[f"{ROUGE}/ROUGE-L"] == pytest.approx(
        np.average(counts.rouge_score, weights=weights)
    )
