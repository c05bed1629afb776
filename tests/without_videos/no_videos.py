"""Processors that could watch videos, made and loaded for pictures alone, without the package for videos."""

from collections.abc import Callable
from typing import Any


class NoVideos(dict):
    """What takes a video processor's place."""

    num_frames = fps = _auto_class = None
    video_sampling: dict = {"max_frames": 1, "fps": 1}

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "NoVideos":
        return cls()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        pass


def pictures_alone(put: Callable[[Any, str, Any], Any] = setattr) -> None:
    """Let processors go without; `put` sets an attribute of a class or module."""
    from transformers.models.smolvlm import processing_smolvlm
    from transformers.processing_utils import MODALITY_TO_AUTOPROCESSOR_MAPPING, ProcessorMixin

    fits, kind = ProcessorMixin.check_argument_for_proper_class, type(MODALITY_TO_AUTOPROCESSOR_MAPPING)
    known = kind.__getitem__

    def check(processor, name, argument):
        return None if name == "video_processor" else fits(processor, name, argument)

    def look_up(mapping, name):
        return NoVideos if name == "video_processor" else known(mapping, name)

    put(ProcessorMixin, "check_argument_for_proper_class", check)
    put(kind, "__getitem__", look_up)
    put(processing_smolvlm, "num2words", str)
