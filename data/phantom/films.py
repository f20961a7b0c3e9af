"""Frontal chest films of phantom patients: anatomy and findings to an 8-bit picture.

The film follows radiographic convention: the patient's right is on the left of the picture. Nothing is simulated
physically; tissue adds whiteness, air takes it away, and one response curve turns the sum into gray levels.
"""

import io

import numpy as np
from PIL import Image
from scipy import ndimage

from data.phantom import anatomy as an
from data.phantom import pathology

HEART_GRADE = (1.25, 1.38, 1.52)


def render(patient, findings, *, view, rng, size=224):
    """Draw one film.

    Args:
        patient: anatomy.Anatomy, the same for all films of a patient.
        findings: truth as in the study record, {label: {"state", "side", "severity", ...}}.
        view: "PA" or "AP" (AP: larger heart, scapulae over the lungs, shallower breath).
        rng: numpy Generator for what changes from exposure to exposure.
        size: pixels along each edge.
    Returns uint8 array (size, size).
    """
    u = rng.uniform
    supine = view == "AP"
    lift, shift = pathology.volume_change(findings)
    heart = 1.09 if supine else 1.0
    level = pathology.grade(findings, "Cardiomegaly", None)
    frame = an.make_frame(
        patient,
        view=view,
        size=size,
        turn=np.deg2rad(u(-3.0, 3.0)),
        zoom=u(0.96, 1.03),
        offset=(u(-0.03, 0.03), u(-0.02, 0.04)),
        breath=u(0.05, 0.10) if supine else u(-0.02, 0.03),
        shift=shift + u(-0.01, 0.01),
        heart=heart * (1.0 if level is None else HEART_GRADE[level]),
        lift=lift,
    )
    return _expose(_thickness(patient, frame, findings, rng), frame, view, rng)


def _thickness(a, f, findings, rng):
    """Whiteness before exposure, float32 (size, size); 0 is air outside the body, about 1 is the mediastinum."""
    body, depth = an.body_mask(a, f)
    texture = _texture(rng, f.size)
    air, vessel, white = pathology.lungs(a, f, findings, texture)
    middle, heart = an.mediastinum(a, f)
    below, bubble = an.abdomen(a, f)
    posterior, upper = an.ribs(a, f)
    air = air * (1.0 - 0.90 * middle)
    lung = np.clip(air, 0, 1)
    tissue = 0.40 + 0.20 * depth + 0.10 * np.exp(-((f.x / 0.30) ** 2)) * (1.0 - 0.8 * below)
    tissue += a.breast * 0.08 * sum(an.blob(f, s * 0.42, 0.22, 0.33, 0.27, 0.35, 2.4) for s in (-1, 1))
    total = tissue + (0.06 * middle + 0.06 * heart) * (1.0 - below) + 0.13 * below * (1.0 - 0.75 * bubble) - 0.50 * air
    total += (0.05 - 0.03 * below) * an.spine(a, f) + 0.11 * posterior * (0.30 + 0.70 * lung) + 0.13 * upper
    # Congested vessels are wide and lose their outline.
    congested = pathology.grade(findings, "Edema", "right") is not None
    tree = an.vessels(a, f, 1.3 if congested else 1.0)
    tree = ndimage.gaussian_filter(tree, (1.6 if congested else 0.7) * f.size / 224)
    total += 0.27 * tree * np.clip(vessel, 0, 1.5) * (1.0 - middle)
    total += 0.045 * (texture - 0.5) * lung
    total += white * (1.0 - 0.8 * middle) - 0.13 * an.airway(a, f)
    device = pathology.devices(a, f, findings)
    if device is not None:
        total = total + np.clip(1.12 - total, 0.1, 1) * 0.85 * device
    return total * body


def _texture(rng, size):
    """Smooth noise in [0, 1] with grains of about 1/22 of the film."""
    cells = 22
    coarse = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
    return np.clip(np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)), 0, 1)


def _expose(total, f, view, rng):
    """Scatter, exposure, quantum noise, marker and digitisation."""
    u = rng.uniform
    size = f.size
    total = ndimage.gaussian_filter(total, 0.55 * size / 224)
    total = total + u(-0.035, 0.035) + u(-0.05, 0.05) * f.x * 0.5 + u(-0.03, 0.03) * f.y
    gray = np.clip((total - 0.02) * u(0.96, 1.06), 0, None) ** u(1.10, 1.35)
    grain = rng.standard_normal((size, size), dtype=np.float32)
    grain = 0.6 * grain + 1.2 * ndimage.gaussian_filter(grain, 0.8)
    gray = gray + u(0.010, 0.018) * grain * np.sqrt(0.15 + np.clip(gray, 0, 1))
    gray = np.maximum(gray, _marker(f, view, rng))
    gray = 0.02 + 0.96 * gray
    border = int(size * max(0.0, u(-0.06, 0.025)))
    if border:
        gray[:, :border], gray[:, size - border :] = 0.0, 0.0
    return (np.clip(gray, 0, 1) * 255.0 + 0.5).astype(np.uint8)


def _marker(f, view, rng):
    """Lead letter beside the shoulder: R at the picture's left or L at its right."""
    image, pen = an.canvas(f)
    cx, cy = rng.uniform(0.84, 0.90), rng.uniform(-0.93, -0.86)
    w, h = 0.025, 0.045
    if rng.random() < 0.5:
        strokes = [[(cx - w, cy - h), (cx - w, cy + h), (cx + w, cy + h)]]
    else:
        cx = -cx
        bowl = [(cx - w, cy + h), (cx - w, cy - h), (cx + 0.6 * w, cy - h), (cx + w, cy - h / 2), (cx + 0.5 * w, cy)]
        strokes = [bowl + [(cx - w, cy)], [(cx, cy), (cx + w, cy + h)]]
    for points in strokes:
        an.stroke(f, pen, points, 0.016, 235)
    return an.finish(f, image) * (rng.random() < 0.8)


def png(film):
    """uint8 (size, size) -> PNG bytes, the same for the same film under one Pillow version."""
    buffer = io.BytesIO()
    Image.fromarray(film).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
