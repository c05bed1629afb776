"""Drawn pictures of a few objects, and texts about them whose truth is known."""

from .benchmark import SCENES
from .world import COLORS, NUMBER_WORDS, PLACES, SHAPES, SIZES, TEXTURES

__all__ = ["COLORS", "NUMBER_WORDS", "PLACES", "SCENES", "SHAPES", "SIZES", "TEXTURES"]
