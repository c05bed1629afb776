"""Pictures: what can be said about their pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from data_partitions.scenes.drawing import STYLES, draw, encode
from data_partitions.scenes.world import (
    COLORS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    World,
    random_scene,
)


def _scene(**changes):
    looks = {"size": "large", "color": "red", "texture": "plain", "shape": "circle", "place": "center"}
    return Scene((SceneObject(**looks | changes),), (230, 230, 230))


def _drawn(scene, style="clean", seed=0):
    return draw(scene, style, np.random.default_rng(seed))


@pytest.mark.parametrize("style", STYLES)
def test_every_style_gives_64_x_64_rgb_that_depends_on_nothing_but_scene_and_seed(style):
    scene = random_scene(np.random.default_rng(1), World())
    image = _drawn(scene, style)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, _drawn(scene, style))


def test_a_large_circle_is_17_pixels_wide_and_a_small_one_9():
    for size, width in (("large", 17), ("small", 9)):
        covered = (_drawn(_scene(size=size)) != 230).any(axis=2)
        assert covered.any(axis=0).sum() == width
        assert covered.any(axis=1).sum() == width
        # Area of a circle, in pixels that are at least half covered.
        assert abs((_drawn(_scene(size=size))[..., 1] < 130).sum() - np.pi * width**2 / 4) < width


def test_an_object_lies_in_its_place():
    for place, (row, column) in {"top left": (11, 11), "right": (32, 53), "bottom": (53, 32)}.items():
        rows, columns = np.nonzero((_drawn(_scene(place=place)) != 230).any(axis=2))
        assert (rows.mean(), columns.mean()) == (row, column)
    rows, columns = np.nonzero((_drawn(_scene(shift=(-1, 2))) != 230).any(axis=2))
    assert (rows.mean(), columns.mean()) == (31, 34)


def test_all_looks_can_be_told_apart():
    for style in ("clean", "sketch", "inverted"):
        images = {
            _drawn(_scene(size=size, color=color, texture=texture, shape=shape), style).tobytes()
            for size in SIZES
            for color in COLORS
            for texture in TEXTURES
            for shape in SHAPES
        }
        assert len(images) == 180


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_textures_show(size, shape):
    plain, striped, dotted = (
        _drawn(_scene(size=size, shape=shape, texture=texture)).astype(int) for texture in TEXTURES
    )
    for one, two in ((plain, striped), (plain, dotted), (striped, dotted)):
        assert (np.abs(one - two).max(axis=2) > 100).sum() >= 4
    assert striped.sum() < plain.sum() < dotted.sum()


def test_inverted_is_the_negative_of_clean():
    scene = random_scene(np.random.default_rng(2), World())
    np.testing.assert_array_equal(_drawn(scene, "inverted"), 255 - _drawn(scene, "clean"))


def test_sketch_is_coloured_lines_on_white():
    scene = random_scene(np.random.default_rng(3), World())
    sketch, clean = _drawn(scene, "sketch"), _drawn(scene, "clean")
    assert (sketch == 255).all(axis=2).mean() > 0.6
    assert (_drawn(_scene(), "sketch")[32, 32] == 255).all()
    # Nothing is drawn where the clean picture shows paper.
    assert (sketch[(clean == scene.paper).all(axis=2)] == 255).all()


def test_noise_is_in_every_pixel_and_differs_with_the_seed():
    scene = _scene()
    difference = _drawn(scene, "noisy").astype(float) - _drawn(scene, "clean")
    assert 30 < difference.std() < 70
    assert (_drawn(scene, "noisy") != _drawn(scene, "noisy", seed=1)).mean() > 0.9


def test_low_resolution_has_no_sharp_edge():
    def steepest(style):
        return np.abs(np.diff(_drawn(_scene(shape="square"), style).astype(int), axis=1)).max()

    assert steepest("clean") > 100
    assert steepest("low-resolution") < 90


def test_varied_changes_the_light_and_not_the_objects():
    clean, varied = (_drawn(_scene(), style).astype(float) for style in ("clean", "varied"))
    gain = varied[0, 0] / clean[0, 0]
    assert np.abs(varied - np.minimum(clean * gain, 255)).max() <= 2
    assert not np.array_equal(_drawn(_scene(), "varied"), _drawn(_scene(), "varied", seed=1))


def test_encoding_loses_nothing():
    image = _drawn(random_scene(np.random.default_rng(4), World()), "noisy")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode(image)))), image)
