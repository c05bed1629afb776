"""A client's own test examples, right and wrong, with their pictures: a page for who may see its data.

    python -m client_app.shown_examples --folder RUN --client 2 --of 5 --examples 24

The page lies with the client's private state, closed to others, and goes nowhere.
"""

import argparse
import base64
import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jinja2 import Environment, StrictUndefined
from PIL import Image
from rich.progress import track

from app.files import write_atomically
from app.home import closed_folder

from .asking import Asked, Said, add_whom, whom
from .shown_examples_template import PAGE

_WIDEST = 320  # pixels of a picture on the page


@dataclass(frozen=True)
class Shown:
    """An example as the page shows it.

    Attributes
    ----------
    question : str
        What is asked of the pictures.
    pictures : sequence of str
        Data URLs.
    right : dict
        Its right answers with their scores.
    said : dict
        What each branch answers, the likeliest first; the branch that is deployed first.
    """

    question: str
    pictures: Sequence[str]
    right: dict[str, float]
    said: dict[str, list[Said]]

    @property
    def is_right(self) -> bool:
        """Whether the deployed branch's first answer scores anything."""
        first = next(iter(self.said.values()))[0][0]
        return self.right.get(first, 0.0) > 0


def shown_examples(asked: Asked, most: int) -> Iterator[Shown]:
    """Ask a client its own first `most` test examples; those without a picture are left out."""
    test = asked.client.partition.test.with_format("arrow")
    for row in test[: min(most, len(test))].to_pylist():
        pictures = [one["bytes"] for one in row["images"] if one and one.get("bytes")]
        if pictures:
            right = dict(zip(row["answers"], row["answer_scores"], strict=True))
            said = asked.answer_about(pictures, row["question"], top=3, options=row["options"])
            yield Shown(row["question"], list(map(_data_url, pictures)), right, said)


def examples_page(run: str, client: str, shown: Sequence[Shown], meaning: str) -> str:
    """Return the page, what was answered wrong first; `meaning` says what probabilities are of."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    ordered = sorted(shown, key=lambda one: one.is_right)
    page = environment.from_string(PAGE)
    right = sum(one.is_right for one in shown)
    return page.render(run=run, client=client, shown=ordered, right=right, meaning=meaning)


def _data_url(picture: bytes) -> str:
    """Return a picture as PNG, no wider than the page shows it: nothing else of its file is handed on."""
    with Image.open(io.BytesIO(picture)) as opened:
        small = opened.convert("RGB")
    small.thumbnail((_WIDEST, _WIDEST))
    file = io.BytesIO()
    small.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def main(arguments: list[str] | None = None, prog: str = "python -m client_app.shown_examples") -> int:
    """Write the page and say where; what cannot be had is one line, and the code is 1."""
    parser = argparse.ArgumentParser(prog, description=__doc__.splitlines()[0])
    add_whom(parser)
    parser.add_argument("--examples", type=int, default=24, help="how many at most")
    given = parser.parse_args(arguments)
    # What transformers thinks of its own code is not the reader's business.
    warnings.simplefilter("ignore")
    try:
        asked = whom(given)
        seen = track(
            shown_examples(asked, given.examples),
            "asking",
            given.examples,
            transient=True,
            disable=not sys.stdout.isatty(),
        )
        shown = list(seen)
        path = closed_folder("state-dir", asked.shelf.folder) / "examples.html"
        page = examples_page(given.folder.name, asked.client.partition.name, shown, asked.meaning)
        write_atomically(path, page)
    except (ValueError, OSError) as error:
        print(f"feddat: {error}", file=sys.stderr)
        return 1
    name, there = asked.client.partition.name, len(asked.client.partition.test)
    more = f" (for more: --examples {there})" if given.examples < there else ""
    print(
        f"{len(shown)} of {there} {asked.client.settings.evaluate_on} examples of {name} shown{more}: {path}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
