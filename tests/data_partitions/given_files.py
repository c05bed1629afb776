"""Small files in the forms in which people have their data."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(value=0, side=4):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(value))


def llava(n, images=("a.png",), **changed):
    """Make a LLaVA record of one question about pictures."""
    places = "<image>\n" * len(images)
    turns = [{"from": "human", "value": f"{places}what is {n}?"}, {"from": "gpt", "value": "ab"[n % 2]}]
    given = {"image": images[0] if len(images) == 1 else list(images)} if images else {}
    return {"id": n, **given, "conversations": turns, **changed}


def write(path, rows):
    """Write rows in the form that the file's name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


def of_pictures(root, numbers):
    """Write questions about so many pictures each; return the settings of a run on them."""
    for n in range(4):
        picture(root / "pictures" / f"{n}.png", 60 * n)
    rows = [
        {
            "images": [f"pictures/{(n + k) % 4}.png" for k in range(number)],
            "question": f"{n}?",
            "answer": "ab"[n % 2],
        }
        for n, number in enumerate(numbers)
    ]
    write(root / "train.jsonl", rows)
    write(root / "test.jsonl", rows)
    return {"benchmark": "files", "data_dir": str(root), "num_answers": 2}
