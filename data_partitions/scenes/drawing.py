"""From a scene to its pixels, in one of several styles."""

import io
from dataclasses import replace
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from .world import Scene

SIDE = 64
STYLES = ("clean", "sketch", "noisy", "inverted", "low-resolution", "varied", "any-paper")

_RGB = {
    "red": (220, 35, 40),
    "green": (40, 160, 60),
    "blue": (45, 90, 235),
    "yellow": (240, 210, 30),
    "purple": (150, 50, 190),
    "orange": (250, 130, 20),
}
_DIAMETER = {"small": 9, "large": 17}
_CENTERS = (11, 32, 53)
_STRIPE_RGB = (25, 25, 30)
_DOT_RGB = (255, 255, 255)
_COARSE_SIDE = 24
# Masks are drawn this much larger and then averaged down, so that edges are smooth.
_OVERSAMPLING = 8


def _outline(shape: str, diameter: int) -> Image.Image:
    """Draw the filled shape, white on black, in a square of `diameter` oversampled pixels."""
    canvas = Image.new("L", (diameter, diameter))
    pen = ImageDraw.Draw(canvas)
    end = diameter - 1
    if shape == "circle":
        pen.ellipse((0, 0, end, end), fill=255)
    elif shape == "square":
        inset = diameter // 14
        pen.rectangle((inset, inset, end - inset, end - inset), fill=255)
    elif shape == "triangle":
        pen.polygon([(end / 2, 0), (end, end), (0, end)], fill=255)
    elif shape == "cross":
        near, far = diameter * 0.33, diameter * 0.67
        pen.rectangle((near, 0, far, end), fill=255)
        pen.rectangle((0, near, end, far), fill=255)
    else:
        angles = np.pi * (np.arange(10) / 5 - 0.5)
        radii = np.where(np.arange(10) % 2 == 0, 1.08, 0.46) * diameter / 2
        across, down = diameter * 0.5 + radii * np.cos(angles), diameter * 0.54 + radii * np.sin(angles)
        pen.polygon(list(zip(across.tolist(), down.tolist(), strict=True)), fill=255)
    return canvas


def _marks(texture: str, diameter: int) -> np.ndarray:
    """Where stripes or dots lie: (diameter, diameter) of 0 and 1, in final pixels."""
    line = np.arange(diameter) - diameter // 2
    large = diameter > 9
    if texture == "striped":
        on = (line + 1) % 4 >= 2 if large else line % 3 == 0
        return np.repeat(on[:, None], diameter, axis=1).astype(np.float32)
    if texture == "dotted":
        on = (line + 1) % 5 < 3 if large else np.isin(line, (-2, 0, 2))
        return np.outer(on, on).astype(np.float32)
    return np.zeros((diameter, diameter), np.float32)


@cache
def _masks(shape: str, size: str, texture: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coverage of the filled shape, its contour and its marks, each (diameter, diameter, 1) in [0, 1]."""
    diameter = _DIAMETER[size]
    filled = _outline(shape, diameter * _OVERSAMPLING)
    # The contour is what erosion by a little more than a final pixel takes away from every edge.
    padded = ImageOps.expand(filled, _OVERSAMPLING)
    inner = ImageOps.crop(padded.filter(ImageFilter.MinFilter(2 * _OVERSAMPLING + 3)), _OVERSAMPLING)
    cover, core = (
        np.asarray(image.reduce(_OVERSAMPLING), np.float32)[..., None] / 255 for image in (filled, inner)
    )
    return cover, cover - core, cover * _marks(texture, diameter)[..., None]


def _paint(scene: Scene, sketch: bool) -> np.ndarray:
    """Draw the objects filled, or as coloured lines on white: (SIDE, SIDE, 3) float32."""
    pixels = np.empty((SIDE, SIDE, 3), np.float32)
    pixels[:] = 255.0 if sketch else scene.paper
    for item in scene.objects:
        cover, contour, marks = _masks(item.shape, item.size, item.texture)
        row, column = item.cell
        diameter = len(cover)
        top = _CENTERS[row] + item.shift[0] - diameter // 2
        left = _CENTERS[column] + item.shift[1] - diameter // 2
        window = pixels[top : top + diameter, left : left + diameter]
        color = np.asarray(_RGB[item.color], np.float32)
        if sketch:
            ink = np.maximum(contour, marks)
            window += ink * (color - window)
        else:
            mark_color = np.asarray(_STRIPE_RGB if item.texture == "striped" else _DOT_RGB, np.float32)
            window += cover * (color - window)
            window += marks * (mark_color - window)
    return pixels


def draw(scene: Scene, style: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a scene.

    Parameters
    ----------
    scene : Scene
        What to draw.
    style : str
        One of `STYLES`; `varied` is clean under light of changing brightness and tint, `any-paper` is that on
        paper from black to white.
    rng : numpy.random.Generator
        Source of the noise of `noisy`, and of light and paper of `varied` and `any-paper`.

    Returns
    -------
    numpy.ndarray
        (64, 64, 3) uint8, RGB.
    """
    if style == "any-paper":
        red, green, blue = (rng.integers(5, 250) + rng.integers(-20, 21, size=3)).clip(0, 255).tolist()
        scene = replace(scene, paper=(red, green, blue))
    pixels = _paint(scene, sketch=style == "sketch")
    if style == "noisy":
        pixels += rng.normal(0, 25, pixels.shape)
        speckle = rng.random((SIDE, SIDE))
        pixels[speckle < 0.03] = 0
        pixels[speckle > 0.97] = 255
    elif style in ("varied", "any-paper"):
        pixels *= rng.uniform(0.75, 1.05) * rng.uniform(0.95, 1.05, size=3)
    image = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    if style == "inverted":
        return 255 - image
    if style == "low-resolution":
        coarse = Image.fromarray(image).resize((_COARSE_SIDE, _COARSE_SIDE), Image.Resampling.BOX)
        return np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return image


def encode(image: np.ndarray) -> bytes:
    """PNG bytes of an RGB image."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
