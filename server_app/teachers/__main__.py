"""Annotate images by a teacher beforehand: ``python -m server_app.teachers --help``."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from datasets import Image as ImageColumn

from app.home import closed_home
from app.settings import feddat_home
from data_partitions.benchmarks import BENCHMARKS, DataOptions, load_public

from .annotating import annotate, annotate_captions
from .teacher import NORMALISATIONS, open_teacher


def load_images(data: str, limit: int) -> Dataset:
    """Load images to annotate.

    Parameters
    ----------
    data : str
        A parquet file with a column ``image`` of encoded images, or a benchmark with a public pool.
    limit : int
        At most so many; 0 for all of a file, for a pool it is the number to draw.

    Raises
    ------
    ValueError
        If there is no such file, column or pool.
    """
    if data in BENCHMARKS:
        if not limit:
            raise ValueError(f"--data {data}: say with --limit how many public images to draw")
        return load_public(data, DataOptions(cache_dir=feddat_home() / "data"), limit)
    if not Path(data).is_file():
        raise ValueError(f"--data {data}: no such file; allowed: a parquet file, or {', '.join(BENCHMARKS)}")
    dataset = Dataset.from_parquet(data)
    if "image" not in dataset.column_names:
        raise ValueError(f"--data {data}: no column image; it has {', '.join(dataset.column_names)}")
    return dataset.select(range(min(limit or len(dataset), len(dataset)))).cast_column("image", ImageColumn())


def _candidates(text: str) -> list[str]:
    """Read candidates from a file, one a line, or from a list with commas."""
    path = Path(text)
    parts = path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    return [part.strip() for part in parts if part.strip()]


@closed_home()
def main(arguments: Sequence[str] | None = None, prog: str = "python -m server_app.teachers") -> None:
    """Annotate images and keep the answers in a file."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Annotate images by a teacher model; what was interrupted goes on where it was.",
    )
    parser.add_argument(
        "--model", required=True, help="folder or hub id of a model, or a parquet of annotations"
    )
    parser.add_argument(
        "--data", required=True, help="parquet with a column image, or a benchmark (its public pool)"
    )
    parser.add_argument("--out", type=Path, required=True, help="parquet file that keeps the answers")
    parser.add_argument(
        "--prompt", required=True, help="what to ask; for a CLIP, {} stands for the candidate"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--candidates", type=_candidates, help="answers to score: a list with commas, or a file"
    )
    what.add_argument("--captions", action="store_true", help="write captions")
    parser.add_argument("--normalise", choices=NORMALISATIONS, default="sum", help="see ModelTeacher")
    parser.add_argument("--temperature", type=float, default=1.0, help="for the summary; not kept")
    parser.add_argument("--margin", type=float, default=0.0, help="for the summary; not kept")
    parser.add_argument("--batch-size", type=int, default=8, help="images at once; halved when memory is out")
    parser.add_argument("--limit", type=int, default=0, help="at most so many images; 0: all of a file")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    options = parser.parse_args(arguments)
    try:
        if options.batch_size < 1 or options.limit < 0:
            raise ValueError("--batch-size must be at least 1, --limit at least 0")
        teacher = open_teacher(
            options.model, normalise=options.normalise, device=options.device, batch_size=options.batch_size
        )
        images = load_images(options.data, options.limit)["image"]
        if options.captions:
            captions = annotate_captions(teacher, images, options.prompt, cache=options.out)
            print("\n".join(captions[:3]))
        else:
            found = annotate(
                teacher,
                images,
                options.prompt,
                options.candidates,
                cache=options.out,
                temperature=options.temperature,
                margin=options.margin,
            )
            sure = found[found.sum(1) > 0]
            chosen = Counter(options.candidates[index] for index in sure.argmax(1).tolist())
            print(f"answers: {', '.join(f'{answer} {count}' for answer, count in chosen.most_common())}")
            print(f"abstained: {len(found) - len(sure)} of {len(found)}")
    except (ValueError, OSError) as error:  # the second where an image cannot be decoded
        raise SystemExit(f"feddat: {' '.join(str(error).split())}") from None
    print(f"{len(images)} images annotated in {options.out.resolve()}")


if __name__ == "__main__":
    main()
