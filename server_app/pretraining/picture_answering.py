"""Photographs: the third objective of a backbone that sees more than drawn scenes."""

from collections.abc import Sequence

from datasets import Dataset
from torch import Tensor

from app.backbones import Backbone

from .picture_questions import Photograph, ask
from .question_answering import QuestionAnswering

CARD = """
Beside these it answered {questions:,} questions about {pictures:,} photographs, made of their labels:
what they show, which way up, and which of four is where. Of {held_out:,} questions about {aside:,}
other photographs it answers **{photographs:.1%}** (always the most frequent answer: {majority:.1%}).
The photographs are those of `{source}`, whose licence says what may become of the weights.
"""


class PictureAnswering(QuestionAnswering):
    """`QuestionAnswering` about photographs and about scenes, which it is not to forget.

    Parameters
    ----------
    start : Backbone
        What to go on from; it is copied. Its tokenizer has a mask.
    scenes, scenes_aside : Dataset
        Columns image, question, answer: what to learn from, and what to measure on.
    photographs : tuple of sequence of Photograph
        To ask about, and to measure on.
    number : int
        How many questions about photographs to learn from; a twentieth more to measure on.
    source : str
        The name of the photographs' file, for the card.
    patches : int, optional
        How many of a picture's patches are looked at in training, drawn anew each time: half of them cost
        half as much and teach nearly as well (FLIP, Li et al., 2023, arXiv 2212.00794). None: all.
    """

    def __init__(
        self,
        start: Backbone,
        scenes: Dataset,
        scenes_aside: Dataset,
        photographs: tuple[Sequence[Photograph], Sequence[Photograph]],
        number: int,
        source: str,
        patches: int | None,
    ) -> None:
        asked = ask(photographs[0], number, seed=0)
        aside = ask(photographs[1], max(100, number // 20), seed=1)
        data = {column: [*scenes[column], *asked[column]] for column in asked}
        super().__init__(start, data, {"scenes": scenes_aside, "photographs": aside})
        self.drawn, self.asked = len(scenes), number
        self.source, self.patches = source, patches
        self.seen = [len(split) for split in photographs]

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `QuestionAnswering`'s losses on some of the patches."""
        config = self.model.config
        all_of_them = config.max_image_length
        config.max_image_length = self.patches or all_of_them
        try:
            return super().losses(batch)
        finally:
            config.max_image_length = all_of_them

    def describe(self, name: str, seed: int, done: str, reached: dict[str, float]) -> str:
        """Write what a model card adds to that of the start."""
        aside = self.held_out["photographs"]
        return super().describe(name, seed, done, reached) + CARD.format(
            questions=self.asked,
            pictures=self.seen[0],
            aside=self.seen[1],
            held_out=len(aside.answers),
            majority=aside.majority(),
            source=self.source,
            **reached,
        )
