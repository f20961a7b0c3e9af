"""Findings of a phantom chest film, drawn into the lungs: side and severity as in the study record.

Where a finding sits is fixed by the patient's seed, so that a second date shows the same disease grown, unchanged or
shrunken. Consolidation takes one end of the lung and pneumonia the other, so that two films parts never compete.
"""

import numpy as np
from scipy import ndimage

from data.phantom import anatomy as an

GRADE = {"small": 0, "moderate": 1, "large": 2}
LUNG_LEFT = (0.80, 0.76, 0.64)  # air left in a lung that a pneumothorax has let down


def grade(findings, label, side):
    """0, 1, 2 for small, moderate, large when `label` is present on `side`; None otherwise."""
    row = findings.get(label)
    if not row or row["state"] != "present" or row.get("side") not in (side, "bilateral", None):
        return None
    return GRADE[row.get("severity") or "moderate"]


def lungs(a, f, findings, texture):
    """Lungs with their disease.

    Args: `a` Anatomy, `f` Frame, `findings` as in the study record, `texture` float32 (size, size) noise in [0, 1].
    Returns (air, vessel, white): air content in [0, 1.2], visibility of vessels (0 hidden, 1 normal, more when
    congested) and added whiteness, each float32 (size, size).
    """
    air, vessel, white = (np.zeros_like(f.x) for _ in range(3))
    for side in ("right", "left"):
        parts = _one_lung(a, f, findings, side, texture)
        for total, part in zip((air, vessel, white), parts, strict=True):
            total += part
    return air, vessel, white + _kerley(a, f, findings) * np.clip(2.0 * air, 0, 1)


def _one_lung(a, f, findings, side, texture):
    x, y = f.x, f.y
    cavity = an.lung_mask(a, f, side, x, y)
    depth = np.clip(cavity * (0.80 + 0.20 * _belly(a, side, x)), 0, 1)
    white = np.zeros_like(x)
    collapse = grade(findings, "Pneumothorax", side)
    inside, px, py = np.ones_like(x), x, y
    if collapse is not None:
        inside, px, py = _collapsed(a, f, side, collapse)
    air = depth * (inside * LUNG_LEFT[collapse] + 1.20 * (1.0 - inside)) if collapse is not None else depth.copy()
    vessel = cavity * inside
    dense = _parenchyma(a, f, findings, side, px, py, texture) * inside
    air *= 1.0 - dense
    vessel *= np.clip(1.0 - 1.3 * dense, 0, 1)
    if collapse is not None:
        # The visceral pleura shows where air lies on both of its sides: apex and lateral border.
        free = an.ramp(x * an.SIGN[side] - 0.17, 0.06) * an.ramp(f.dome[side] - 0.02 - py, 0.08)
        white += 0.24 * np.clip(4.0 * inside * (1.0 - inside), 0, 1) * an.ramp(cavity - 0.9, 0.2) * free
    haze, gain = _edema(f, findings, side, texture)
    if haze is not None:
        air *= 1.0 - haze * inside
        vessel *= gain
    bands, wedge = _atelectasis(a, f, findings, side)
    if bands is not None:
        air *= 1.0 - 0.55 * wedge
        white += bands * cavity
    fluid = _effusion(a, f, findings, side, collapse is not None)
    if fluid is not None:
        air *= 1.0 - 0.97 * fluid
        vessel *= 1.0 - fluid
        white += 0.05 * fluid * cavity
        white *= 1.0 - 0.8 * fluid
    return air, vessel, white


def _belly(a, side, x):
    q = np.clip((x * an.SIGN[side] - 0.1) / (a.width - 0.1), 0, 1)
    return np.sqrt(np.clip(4 * q * (1 - q), 0, 1))


def _collapsed(a, f, side, collapse):
    """(collapsed lung, x, y): a smaller copy of the lung, and the pixel grid in the coordinates of the expanded one."""
    keep = (0.80, 0.66, 0.48)[collapse]
    cx, cy = 0.10 * an.SIGN[side], f.dome[side] if collapse < 2 else 0.24
    px, py = cx + (f.x - cx) / keep, cy + (f.y - cy) / (keep + 0.02)
    inside = an.lung_mask(a, f, side, px, py, soft=0.022 / keep)
    if collapse < 2:
        # The base of the lung stays on its diaphragm.
        inside = np.maximum(inside, an.ramp(py - cy, 0.02) * an.ramp(an.outer_edge(a, py) - px * an.SIGN[side], 0.02))
    return inside, px, py


def ends(a, side):
    """(zone of consolidation, zone of pneumonia) for this patient's lung, e.g. ("upper", "lower")."""
    flip = (a.seed >> (3 if side == "left" else 7)) & 1
    return ("upper", "lower") if flip else ("lower", "upper")


def _parenchyma(a, f, findings, side, px, py, texture):
    here = np.zeros_like(px)
    con, pna = grade(findings, "Consolidation", side), grade(findings, "Pneumonia", side)
    if con is None and pna is None:
        return here
    ax, height = px * an.SIGN[side], an.lung_height(a, f, side, py)
    if con is not None:
        here = _lobe(a, side, con, ax, height, texture)
    if pna is not None:
        patchy = _patches(a, f, side, pna, px, py, ax, height, texture, crowded=con == 2)
        here = np.maximum(here, patchy)
    return here


def _lobe(a, side, con, ax, height, texture):
    """Homogeneous lobar opacity: sharp at its fissure, fading elsewhere."""
    upper = ends(a, side)[0] == "upper"
    q = np.clip((ax - 0.1) / (a.width - 0.1), 0, 1)
    reach = (0.38, 0.44, 0.68)[con]
    bow = 0.10 * (q - 0.5) + 0.05 * (q - 0.5) ** 2
    depth = reach + bow - height if upper else height - bow - (0.96 - reach)
    # Only fluid fills the costophrenic recess (lateral, below the dome at height 1).
    shape = an.ramp(depth, 0.018) * an.ramp(1.06 - 0.12 * q - height, 0.10)
    if con == 0:
        # A segment of the lobe: rounded towards the hilum, clear of the costophrenic recess.
        cq, ch = (0.78 if (a.seed >> 11) & 1 else 0.30, 0.20) if upper else (0.62, 0.76)
        d = ((q - cq) / 0.58) ** 2 + ((height - ch) / 0.38) ** 2 + 0.5 * (texture - 0.5)
        shape = shape * an.ramp(1.0 - d, 0.5)
    return (0.86, 0.88, 0.92)[con] * shape * (0.97 + 0.06 * (texture - 0.5))


def _patches(a, f, side, pna, px, py, ax, height, texture, crowded):
    """Several ill-defined fluffy patches, mottled, with air bronchograms."""
    rng = np.random.default_rng([a.seed, 17, side == "left"])
    low, high = (0.10, 0.44) if ends(a, side)[1] == "upper" else (0.58, 0.95)
    centres, radii = [], []
    for k in range(15):
        h = rng.uniform(low, high)
        if k >= 10 and not crowded:
            h = rng.uniform(0.42, 0.6)
        yk = a.apex + h * (f.dome[side] - a.apex)
        inner, outer = 0.2, float(an.outer_edge(a, yk)) - 0.06
        centres.append((an.SIGN[side] * rng.uniform(inner, max(outer, inner + 0.1)), yk))
        radii.append(rng.uniform(0.075, 0.125))
    gap = np.ones_like(px)
    for (cx, cy), r in list(zip(centres, radii, strict=True))[: (8, 11, 15)[pna]]:
        d = ((px - cx) ** 2 + (py - cy) ** 2) / (r * r)
        gap *= 1.0 - 0.85 * np.exp(-0.8 * d)
    mottled = np.clip((1.0 - gap) * (0.25 + 1.5 * texture), 0, 0.95)
    image, pen = an.canvas(f)
    for cx, cy in centres[:3]:
        start = (0.55 * cx + 0.45 * 0.15 * an.SIGN[side], 0.55 * cy - 0.45 * 0.06)
        for fork in (-0.045, 0.045):
            an.stroke(f, pen, [start, (cx, cy + 0.3 * fork), (cx + 0.3 * (cx - start[0]), cy + fork)], 0.011, 255)
    bronchi = an.finish(f, image)
    return mottled * (0.90, 0.94, 0.97)[pna] * (1.0 - 0.75 * bronchi)


def _edema(f, findings, side, texture):
    level = grade(findings, "Edema", side)
    if level is None:
        return None, None
    cx, cy = 0.30 * an.SIGN[side], -0.02
    d = ((f.x - cx) / (0.24, 0.28, 0.33)[level]) ** 2 + ((f.y - cy) / (0.30, 0.36, 0.42)[level]) ** 2
    wing = np.exp(-0.8 * d**1.4)
    haze = (0.54, 0.68, 0.82)[level] * wing * (0.92 + 0.30 * (texture - 0.5)) + (0.08, 0.13, 0.20)[level]
    return haze, (0.95, 0.90, 0.75)[level]


def _kerley(a, f, findings):
    """Septal (Kerley B) lines: short horizontal strokes at the lateral bases."""
    level = grade(findings, "Edema", "right")
    if level is None:
        return np.zeros_like(f.x)
    rng = np.random.default_rng([a.seed, 23])
    image, pen = an.canvas(f)
    for side in ("right", "left"):
        for k in range(4 + 2 * level):
            yk = f.dome[side] + 0.04 - 0.052 * k
            wall = float(an.outer_edge(a, yk)) - 0.012
            tip = wall - rng.uniform(0.07, 0.11)
            points = [(an.SIGN[side] * wall, yk), (an.SIGN[side] * tip, yk + 0.012)]
            an.stroke(f, pen, points, 0.010, 255)
    return 0.22 * an.finish(f, image)


def _atelectasis(a, f, findings, side):
    level = grade(findings, "Atelectasis", side)
    if level is None:
        return None, None
    rng = np.random.default_rng([a.seed, 29, side == "left"])
    image, pen = an.canvas(f)
    for k in range(2 + level):
        yk = f.dome[side] - 0.06 - 0.075 * k
        x0, x1 = 0.30 + rng.uniform(0, 0.08), a.width - rng.uniform(0.08, 0.16)
        slope, sag = rng.uniform(-0.03, 0.03), rng.uniform(0.01, 0.04)
        knots = [(x0, yk - slope), ((x0 + x1) / 2, yk + sag), (x1, yk + slope)]
        an.stroke(f, pen, an.curve([(an.SIGN[side] * px, py) for px, py in knots]), 0.022 + 0.006 * level, 255)
    bands = ndimage.gaussian_filter(an.finish(f, image), 0.9 * f.size / 224)
    ax = f.x * an.SIGN[side]
    wedge = an.ramp(0.16 + 0.06 * level - ax - 1.1 * (f.dome[side] - f.y - 0.05), 0.12) if level else np.zeros_like(f.x)
    return 0.26 * bands, wedge * an.ramp(f.y - f.dome[side] + 0.35, 0.1)


def _effusion(a, f, findings, side, with_air):
    level = grade(findings, "Pleural Effusion", side)
    if level is None:
        return None
    q = np.clip((f.x * an.SIGN[side] - 0.1) / (a.width - 0.1), 0, 1.1)
    top = f.dome[side] + (0.10, -0.10, -0.38)[level]
    if with_air:
        # Air above fluid: the level is flat, the meniscus needs lung against it.
        surface = np.full_like(q, top - 0.03)
    else:
        # The meniscus climbs the lateral wall.
        surface = top + (0.06, 0.10, 0.12)[level] - (0.22, 0.26, 0.30)[level] * np.clip(q, 0, 1) ** 3.0
    return an.ramp(f.y - surface, 0.03)


def volume_change(findings):
    """(lift of each hemidiaphragm, mediastinal shift) in film units that the findings cause."""
    lift, shift = {}, 0.0
    for side in ("right", "left"):
        loss = grade(findings, "Atelectasis", side)
        fluid = grade(findings, "Pleural Effusion", side)
        air = grade(findings, "Pneumothorax", side)
        lift[side] = 0.0 if loss is None else (0.06, 0.10, 0.14)[loss]
        push = (0.05 if fluid == 2 else 0.0) + (0.05 if air == 2 else 0.0)
        pull = 0.0 if loss is None else (0.0, 0.02, 0.04)[loss]
        shift += an.SIGN[side] * (pull - push)
    return lift, shift


def devices(a, f, findings):
    """Tubes, lines and pacemakers (white), or None when there are none."""
    row = findings.get("Support Devices")
    if not row or row["state"] != "present":
        return None
    rng = np.random.default_rng([a.seed, 31])
    image, pen = an.canvas(f)
    kinds = ["tube", "line", "pacemaker"]
    rng.shuffle(kinds)
    for kind in kinds[: 1 + int(rng.random() < 0.4)]:
        {"tube": _tubes, "line": _central_line, "pacemaker": _pacemaker}[kind](a, f, pen)
    return an.finish(f, image)


def _tubes(a, f, pen):
    an.stroke(f, pen, an.curve([(0.0, -1.1), (0.01, -0.6), (a.trachea, -0.36)]), 0.024, 225)
    low = f.base + 0.26
    gastric = [(-0.03, -1.1), (0.02, -0.3), (0.04, 0.25), (0.13, low - 0.1), (0.27, low)]
    an.stroke(f, pen, an.curve(gastric), 0.014, 205)


def _central_line(a, f, pen):
    points = [(-0.20, -1.1), (-0.18, -0.75), (-0.13, -0.52), (-0.115, -0.2), (-0.10, 0.02)]
    an.stroke(f, pen, an.curve(points), 0.016, 235)


def _pacemaker(a, f, pen):
    cx, cy = 0.56, -0.44
    t = np.linspace(0, 2 * np.pi, 28)
    box = [(cx + 0.115 * np.sign(np.cos(v)) * abs(np.cos(v)) ** 0.5, cy + 0.10 * np.sin(v)) for v in t]
    pen.polygon(an.to_pixels(f, box), fill=245)
    tip = 0.30 * f.heart
    atrium = [(cx - 0.05, cy - 0.09), (0.32, -0.62), (0.02, -0.54), (-0.10, -0.3), (-0.13, 0.0), (-0.09, 0.06)]
    ventricle = [(-0.09, -0.3), (-0.13, 0.1), (-0.03, f.base - 0.14), (tip, f.base - 0.07)]
    an.stroke(f, pen, an.curve(atrium), 0.014, 235)
    an.stroke(f, pen, an.curve(ventricle), 0.014, 235)
