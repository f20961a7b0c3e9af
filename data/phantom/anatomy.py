"""Normal anatomy of a phantom chest film: patient parameters, projected organs, bones and vessels.

Coordinates: x runs from -1 (image left, the PATIENT'S RIGHT) to 1, y from -1 (neck) to 1 (abdomen). Layers are float32
arrays of shape (size, size) in [0, 1]; how bright each becomes on film is decided in films.py.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy.interpolate import PchipInterpolator

SIGN = {"right": -1.0, "left": 1.0}
SUPERSAMPLE = 2


class Anatomy(NamedTuple):
    """What one patient keeps across all of their films; lengths are in film units (half the film is 1)."""

    seed: int
    width: float
    apex: float
    dome: float
    dome_step: float
    recess: float
    heart: float
    heart_tilt: float
    knob: float
    neck: float
    trachea: float
    rib_gap: float
    rib_width: float
    clavicle: float
    breast: float
    body: float
    bubble: float


def draw_patient(rng):
    """Sample one patient's Anatomy from `rng` (numpy Generator)."""
    u = rng.uniform
    return Anatomy(
        seed=int(rng.integers(2**31)),
        width=u(0.72, 0.81),
        apex=u(-0.80, -0.74),
        dome=u(0.40, 0.50),
        dome_step=u(0.03, 0.07),
        recess=u(0.20, 0.26),
        heart=u(0.86, 1.0),
        heart_tilt=u(-0.2, 0.35),
        knob=u(0.8, 1.25),
        neck=u(0.22, 0.29),
        trachea=u(-0.03, 0.01),
        rib_gap=u(0.128, 0.148),
        rib_width=u(0.036, 0.048),
        clavicle=u(-0.04, 0.04),
        breast=u(0.0, 1.0) if rng.random() < 0.5 else 0.0,
        body=u(0.9, 1.1),
        bubble=u(0.4, 1.0),
    )


class Frame(NamedTuple):
    """One acquisition of one patient: pixel grid in patient coordinates and what breathing and disease moved."""

    x: np.ndarray
    y: np.ndarray
    size: int
    turn: float
    zoom: float
    offset: tuple
    dome: dict
    base: float
    shift: float
    heart: float
    view: str


def make_frame(a, *, view, size, turn, zoom, offset, breath, shift, heart, lift):
    """Pixel grid rotated by `turn` radians; `lift` raises a hemidiaphragm by side, `shift` moves the mediastinum."""
    line = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0
    px, py = np.meshgrid(line - offset[0], line - offset[1])
    c, s = np.cos(turn) / zoom, np.sin(turn) / zoom
    x, y = (c * px + s * py).astype(np.float32), (-s * px + c * py).astype(np.float32)
    dome = {"right": a.dome - breath - lift["right"], "left": a.dome + a.dome_step - breath - lift["left"]}
    return Frame(x, y, size, turn, zoom, offset, dome, a.dome - breath + 0.02, shift, heart, view)


def ramp(distance, width):
    """Antialiased step: 0 below -width/2, 1 above width/2 (distance in film units)."""
    return np.clip(distance / width + 0.5, 0.0, 1.0)


# Curves of one coordinate are tabulated and looked up: 0.001 film units are a ninth of a pixel at 224.
GRID = np.linspace(-2.0, 2.0, 4001, dtype=np.float32)


def lookup(table, where):
    """Values of a curve given on GRID at the coordinates `where` (any shape); clamped at its ends."""
    return np.take(table, ((where + 2.0) * 1000.0 + 0.5).astype(np.int32), mode="clip")


@functools.lru_cache(maxsize=64)
def _edges(width, apex):
    t = np.clip((GRID - apex) / 0.95, 0.0, 1.0)
    outer = 0.33 + (width - 0.33) * (1.0 - (1.0 - t) ** 2.6) ** 0.62
    t = np.clip((GRID - apex) / 0.22, 0.0, 1.0)
    return outer, 0.33 - 0.23 * np.sqrt(1.0 - (1.0 - t) ** 2)


@functools.lru_cache(maxsize=64)
def _dome_shape(width, recess):
    q = np.clip((GRID - 0.1) / (width - 0.1), 0.0, 1.1)
    medial, lateral = np.clip(0.42 - q, 0, None) / 0.42, np.clip(q - 0.42, 0, None) / 0.58
    return 0.07 * medial**2 + recess * lateral**2.4


def outer_edge(a, y):
    """|x| of the chest wall's inner side at height y (array or float)."""
    return lookup(_edges(a.width, a.apex)[0], np.asarray(y))


def inner_edge(a, y):
    """|x| of the lung's medial border at height y, heart not counted."""
    return lookup(_edges(a.width, a.apex)[1], np.asarray(y))


def diaphragm(a, f, side, ax):
    """Height y of a hemidiaphragm at lateral position ax = |x|."""
    return lookup(_dome_shape(a.width, a.recess), ax) + np.float32(f.dome[side])


def lung_mask(a, f, side, x, y, soft=0.022):
    """One lung's projection at coordinates x, y (arrays of one shape)."""
    ax = x * SIGN[side]
    mask = ramp(outer_edge(a, y) - ax, soft) * ramp(ax - inner_edge(a, y), soft)
    return mask * ramp(diaphragm(a, f, side, ax) - y, soft) * ramp(y - a.apex, soft)


def lung_height(a, f, side, y):
    """Fraction of the way from apex (0) to the dome (1)."""
    return (y - a.apex) / (f.dome[side] - a.apex)


def body_mask(a, f):
    """Soft tissue outline: neck, sloping shoulders, chest wall, flanks."""
    ys = np.array([-1.3, -0.93, -0.84, -0.76, -0.66, -0.3, -0.05, 0.2, 0.7, 1.3])
    wall = a.width * a.body
    half = np.array([a.neck, a.neck + 0.02, 0.40, 0.74, 1.02, 1.15, wall + 0.22, wall + 0.13, wall + 0.15, wall + 0.2])
    edge = lookup(np.interp(GRID, ys, half).astype(np.float32), f.y) - np.abs(f.x)
    return ramp(edge, 0.03), np.clip(edge / 0.35, 0.0, 1.0)


def blob(f, cx, cy, rx, ry, soft=0.25, power=2.0):
    """Ellipse with a soft rim: 1 inside, 0 outside; `soft` is the rim's share of the radius."""
    d = np.abs((f.x - cx) / rx) ** power + np.abs((f.y - cy) / ry) ** power
    return np.clip((1.0 - d) / (2 * soft) + 0.5, 0.0, 1.0)


def contour(f, heights, offsets):
    """Smooth curve through (height, offset) knots, evaluated at every pixel's height."""
    middle = np.clip(GRID, heights[0], heights[-1])
    return lookup(PchipInterpolator(heights, offsets)(middle).astype(np.float32), f.y)


def mediastinum(a, f):
    """(heart, great vessels) projections; the heart's apex points to the patient's left.

    The left contour shows knob, notch, pulmonary trunk and ventricle, the right one cava and atrium.
    """
    k, base = f.heart * a.heart, f.base
    low, top = base + 0.10, base - 0.50
    tip = min(0.50 * k, a.width - 0.06 - f.shift)
    span = 0.30 - 0.10 * a.heart_tilt
    left_y = [-1.4, -0.62, -0.47, -0.36, -0.25, -0.19, top + 0.36 - span, base - 0.24, base - 0.10, base - 0.02, low]
    left_x = [0.09, 0.10, 0.12, 0.115 + 0.07 * a.knob, 0.135, 0.145, 0.20, 0.80 * tip, 0.97 * tip, tip, 0.90 * tip]
    left_y = np.maximum.accumulate(left_y) + np.arange(11) * 1e-3
    right_y = [-1.4, -0.6, -0.25, base - 0.46, base - 0.22, base - 0.06, low]
    right_x = [0.09, 0.105, 0.13, 0.135, 0.235 * k, 0.225 * k, 0.18 * k]
    right_y = np.maximum.accumulate(right_y) + np.arange(7) * 1e-3
    x = f.x - f.shift
    left, right = contour(f, left_y, left_x), contour(f, right_y, right_x)
    silhouette = ramp(left - x, 0.035) * ramp(x + right, 0.035)
    heart = np.clip(np.minimum(left - x, x + right) / 0.22, 0, 1) * ramp(f.y - (base - 0.42), 0.3)
    return silhouette, heart


def airway(a, f):
    """Trachea and main bronchi (lucent)."""
    cx = f.shift + a.trachea * np.clip((f.y + 1.0) / 0.6, 0, 1)
    trachea = ramp(0.046 - np.abs(f.x - cx), 0.035) * ramp(-0.20 - f.y, 0.05)
    carina = f.shift + a.trachea
    down = f.y + 0.22
    right = ramp(0.032 - np.abs(f.x - (carina - 0.02 - 0.75 * down)), 0.03)
    left = ramp(0.028 - np.abs(f.x - (carina + 0.02 + 1.1 * down)), 0.03)
    return np.maximum(trachea, 0.7 * np.maximum(right, left) * ramp(down, 0.02) * ramp(0.14 - down, 0.05))


def to_pixels(f, points):
    """Patient coordinates [(x, y), ...] -> list of supersampled pixel tuples."""
    half = f.size * SUPERSAMPLE / 2.0
    c, s = math.cos(f.turn) * f.zoom * half, math.sin(f.turn) * f.zoom * half
    ox, oy = (f.offset[0] + 1.0) * half, (f.offset[1] + 1.0) * half
    return [(c * x - s * y + ox, s * x + c * y + oy) for x, y in points]


def stroke(f, draw, points, width, value):
    """Draw a line of `width` film units; overlapping strokes keep the later value."""
    pixels = max(1, round(width * f.zoom * f.size * SUPERSAMPLE / 2.0))
    draw.line(to_pixels(f, points), fill=int(value), width=pixels)


def curve(points, steps=8):
    """Smooth polyline through the knots `points`."""
    knots = np.asarray(points)
    t = np.linspace(0, len(knots) - 1, steps * (len(knots) - 1) + 1)
    return PchipInterpolator(np.arange(len(knots)), knots)(t).tolist()


def canvas(f):
    """A supersampled 8-bit layer and its pen."""
    image = Image.new("L", (f.size * SUPERSAMPLE, f.size * SUPERSAMPLE))
    return image, ImageDraw.Draw(image)


def finish(f, image):
    """Supersampled layer -> float32 (size, size) in [0, 1]."""
    return np.asarray(image.reduce(SUPERSAMPLE), dtype=np.float32) / 255.0


def ribs(a, f):
    """(posterior and anterior ribs, clavicles and scapulae), cortex brighter than marrow."""
    image, pen = canvas(f)
    t = np.linspace(0.0, 1.0, 13)
    for k in range(10):
        start = a.apex + 0.03 + k * a.rib_gap
        end = start + 0.13 + 0.022 * k
        wall = float(outer_edge(a, end)) + 0.015
        fall = float(outer_edge(a, end + 0.2)) - 0.18
        for sign in (-1.0, 1.0):
            x = 0.07 + (wall - 0.07) * np.sin(t * np.pi / 2) ** 0.9
            y = start - 0.05 * np.sin(np.pi * t) + (end - start) * t**2.2
            band = np.stack([sign * x, y], 1).tolist()
            inward = wall - (wall - max(fall * 0.45, 0.2)) * t**1.3
            front = np.stack([sign * inward, end + (0.10 + 0.018 * k) * t], 1).tolist()
            if k < 7:
                stroke(f, pen, front, a.rib_width * 0.95, 95)
                stroke(f, pen, front, a.rib_width * 0.5, 66)
            stroke(f, pen, band, a.rib_width, 200)
            stroke(f, pen, band, a.rib_width * 0.52, 128)
    upper, pen2 = canvas(f)
    lifted = 0.06 if f.view == "AP" else 0.0
    spread = 0.0 if f.view == "PA" else 0.12
    for sign in (-1.0, 1.0):
        blade = [(0.93, -0.66), (0.62, -0.52), (0.66, -0.2), (0.78, 0.06), (0.86, -0.05), (0.93, -0.35)]
        pen2.polygon(to_pixels(f, [(sign * (x + 0.16 - spread), y) for x, y in blade]), fill=62)
        x = np.linspace(0.075, 0.95, 12)
        slope = -0.57 + a.clavicle - lifted - 0.19 * np.sin((x - 0.075) * 1.7) + 0.02 * np.cos(x * 9)
        bone = np.stack([sign * x, slope], 1).tolist()
        stroke(f, pen2, bone, 0.066, 235)
        stroke(f, pen2, bone, 0.034, 150)
    return finish(f, image), finish(f, upper)


def spine(a, f):
    """Vertebral bodies and disc spaces down the middle."""
    column = ramp(0.082 - np.abs(f.x), 0.05)
    discs = 0.78 + 0.22 * np.clip(3 * np.cos((f.y - a.apex) * 2 * np.pi / (a.rib_gap * 1.02)) + 2, 0, 1)
    return column * discs


@functools.lru_cache(maxsize=8)
def vessel_tree(seed):
    """Branching hilar vessels of one patient: 2n points (start, end, start, ...) and the n widths, thin ones first."""
    rng = np.random.default_rng(seed)
    segments = []
    for side in ("right", "left"):
        hilum = (0.15 * SIGN[side], -0.05 if side == "right" else -0.10)
        noise = iter(rng.normal(size=4000).tolist())
        for angle in np.linspace(-1.40, 1.40, 8).tolist():
            _branch(noise, segments, hilum, angle + 0.12 * next(noise), 0.030, 0.085, SIGN[side], 0)
    segments.sort(key=lambda item: item[2])
    return [point for start, end, _ in segments for point in (start, end)], [width for _, _, width in segments]


def _branch(noise, segments, start, angle, width, length, sign, depth):
    x, y = start
    for step in range(8 - 2 * depth):
        angle += 0.20 * next(noise)
        nx, ny = x + sign * length * math.cos(angle), y + length * math.sin(angle)
        segments.append(((x, y), (nx, ny), width))
        x, y, width = nx, ny, width * 0.80
        if depth < 2 and step > 0 and next(noise) > -0.1:
            fork = angle + math.copysign(0.35 + 0.2 * abs(next(noise)), next(noise))
            _branch(noise, segments, (x, y), fork, width * 0.85, length * 0.8, sign, depth + 1)


def vessels(a, f, boost=1.0):
    """The patient's vessel tree; `boost` > 1 makes it wider and denser (congestion)."""
    image, pen = canvas(f)
    tree, widths = vessel_tree(a.seed)
    ends = to_pixels(f, tree)
    # Wide vessels last: where two cross, the wider one stays whole.
    for k, width in enumerate(widths):
        wide = width * boost
        if wide > 0.0045:
            pixels = max(1, round(wide * f.size * SUPERSAMPLE / 2.0))
            pen.line(ends[2 * k : 2 * k + 2], fill=int(min(255, 25 + 7600 * wide)), width=pixels)
    return finish(f, image)


def abdomen(a, f):
    """(below-diaphragm mask, gastric bubble): liver and spleen shadows, air under the left dome."""
    ax = np.abs(f.x)
    edge = diaphragm(a, f, "right", ax)
    edge += (f.dome["left"] - f.dome["right"]) * ramp(f.x, 0.4)
    below = ramp(f.y - edge, 0.03)
    bubble = blob(f, 0.34, f.dome["left"] + 0.17, 0.13, 0.075 * a.bubble + 0.02, 0.3) * ramp(f.y - edge - 0.035, 0.03)
    return below, bubble * a.bubble
