"""What such runs are given."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FULL = {"method": "full", "head": "shared", "backbone": "resnet8", "backbone_weights": "random"}


def png(value):
    noise = np.random.default_rng(value).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def domain(train=8, val=2, test=4, name="x-ray"):
    """Make rows in the format of the real data."""
    return [
        {
            "image": {"bytes": png(index), "path": f"{index}.png"},
            "image_id": str(index),
            "group_id": str(index),
            "question": f"what is {index % 3}?",
            "answer": ("yes", "no")[index % 2],
            "answer_raw": ("Yes", "No")[index % 2],
            "answer_type": "closed",
            "question_type": "presence",
            "options": None,
            "domain": name,
            "subdomain": "chest",
            "split": split,
            "source": "https://example.org",
            "license": "CC0-1.0",
        }
        for index, split in enumerate(["train"] * train + ["val"] * val + ["test"] * test)
    ]


def write(folder, rows, name):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
