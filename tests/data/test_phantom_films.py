"""Drawn films: format, seeds, constant anatomy, and each finding on the side it is stated for."""

import numpy as np
import pytest

from data.phantom import anatomy, films, pathology

SIDED = ("Consolidation", "Pleural Effusion", "Pneumonia", "Pneumothorax", "Atelectasis")


def row(side, severity="moderate"):
    return {"state": "present", "side": side, "severity": severity}


def patient(seed=5):
    return anatomy.draw_patient(np.random.default_rng(seed))


def draw(findings=(), *, seed=5, exposure=0, view="PA", size=112):
    rng = np.random.default_rng([seed, exposure])
    return films.render(patient(seed), dict(findings), view=view, rng=rng, size=size)


def change(findings, seed=5):
    """Mean absolute change in gray levels that a finding makes: (image left half, image right half)."""
    # One exposure seed for both films: noise, rotation and exposure are the same, only the finding differs.
    delta = np.abs(draw(findings, seed=seed).astype(float) - draw(seed=seed).astype(float))
    middle = delta.shape[1] // 2
    return delta[:, :middle].mean(), delta[:, middle:].mean()


@pytest.mark.parametrize("size", [112, 224])
def test_film_is_8_bit_gray_of_the_asked_size(size):
    film = draw(size=size)
    assert film.dtype == np.uint8
    assert film.shape == (size, size)
    assert film.min() < 20 and film.max() > 150 and film.std() > 25


def test_same_seed_same_film_and_another_seed_another():
    assert np.array_equal(draw(), draw())
    assert films.png(draw()) == films.png(draw())
    assert not np.array_equal(draw(), draw(exposure=1))
    assert not np.array_equal(draw(), draw(seed=6))


def test_anatomy_stays_with_the_patient():
    def outline(seed, exposure):
        # Without the exposure's rotation and shift, what differs between films is the patient.
        a = patient(seed)
        lift = {"right": 0.0, "left": 0.0}
        frame = anatomy.make_frame(
            a, view="PA", size=112, turn=0, zoom=1, offset=(0, 0), breath=0, shift=0, heart=1, lift=lift
        )
        return films._thickness(a, frame, {}, np.random.default_rng(exposure))

    same = np.abs(outline(5, 0) - outline(5, 1)).mean()
    others = [np.abs(outline(5, 0) - outline(seed, 0)).mean() for seed in range(6, 12)]
    assert same < 0.5 * min(others)
    assert patient(5) == patient(5) != patient(6)


@pytest.mark.parametrize("label", SIDED)
@pytest.mark.parametrize("severity", ["small", "moderate", "large"])
@pytest.mark.parametrize("seed", [5, 8])
def test_a_finding_of_the_patients_right_is_on_the_left_of_the_picture(label, severity, seed):
    # A large pneumothorax also pushes the mediastinum over, which shows in both halves.
    factor = 1.5 if (label, severity) == ("Pneumothorax", "large") else 2.0
    left_half, right_half = change({label: row("right", severity)}, seed)
    assert left_half > factor * right_half
    assert left_half > 0.7
    left_half, right_half = change({label: row("left", severity)}, seed)
    assert right_half > factor * left_half
    assert right_half > 0.7


@pytest.mark.parametrize("label", [*SIDED, "Edema"])
def test_a_bilateral_finding_changes_both_halves(label):
    assert min(change({label: row("bilateral")})) > 0.7


@pytest.mark.parametrize("label", ["Consolidation", "Pleural Effusion", "Pneumothorax", "Edema"])
def test_more_severe_changes_more(label):
    side = "bilateral" if label == "Edema" else "left"
    small, moderate, large = (sum(change({label: row(side, grade)})) for grade in ("small", "moderate", "large"))
    assert small < moderate < large


def test_fluid_whitens_and_pleural_air_darkens_the_lung():
    def level(findings):
        # A strip of the right lung beside the lateral chest wall.
        return draw(findings, size=224)[70:130, 32:46].astype(float).mean()

    normal = level({})
    assert level({"Pleural Effusion": row("right", "large")}) > normal + 20
    assert level({"Consolidation": row("right", "large")}) > normal + 20
    assert level({"Pneumothorax": row("right", "moderate")}) < normal - 3


def test_cardiomegaly_and_devices_are_drawn():
    assert sum(change({"Cardiomegaly": row(None)})) > 1.5
    assert sum(change({"Support Devices": {"state": "present", "side": None, "severity": None}})) > 0.5


def test_an_absent_finding_changes_nothing():
    absent = {label: {"state": "absent", "side": None, "severity": None} for label in (*SIDED, "Edema", "Cardiomegaly")}
    assert np.array_equal(draw(absent), draw())


def test_ap_films_have_a_wider_heart():
    def heart_width(view):
        factor = 1.09 if view == "AP" else 1.0
        frame = anatomy.make_frame(
            patient(), view=view, size=224, turn=0, zoom=1, offset=(0, 0), breath=0, shift=0, heart=factor,
            lift={"right": 0.0, "left": 0.0},
        )  # fmt: skip
        silhouette, _ = anatomy.mediastinum(patient(), frame)
        return (silhouette > 0.5).sum(axis=1).max()

    assert heart_width("AP") > heart_width("PA")
    assert not np.array_equal(draw(view="AP"), draw(view="PA"))


def test_consolidation_and_pneumonia_of_one_lung_keep_apart():
    for seed in range(20):
        for side in ("left", "right"):
            assert set(pathology.ends(patient(seed), side)) == {"upper", "lower"}
