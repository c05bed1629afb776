"""A teacher that needs no model."""

import math

import torch

CANDIDATES = ["red", "green", "a blue square"]
PROMPT = "what color is the circle ?"


class FakeTeacher:
    """Says what an image's first pixel says, and remembers how many images it was asked about at once."""

    name, normalise, revision = "fake", "sum", "1"

    def __init__(self, batch_size=2, memory=math.inf, stop_after=math.inf):
        self.batch_size, self.memory, self.stop_after = batch_size, memory, stop_after
        self.asked = []

    def _ask(self, images):
        if len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        if len(images) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.asked.append(len(images))
        return [float(image.getpixel((0, 0))[0]) for image in images]

    def captions(self, images, prompts):
        return [f"{prompt} {value:.0f}" for prompt, value in zip(prompts, self._ask(images), strict=True)]

    def log_probabilities(self, images, prompts, candidates):
        logits = [[value / 100 * index for index in range(len(candidates))] for value in self._ask(images)]
        return torch.tensor(logits).log_softmax(-1)
