"""Small files of the true form of each set of FedDAT's paper, in a folder as it is to be laid out."""

import json

from tests.data_partitions.given_files import picture, write

TEN = ["red"] * 7 + ["blue"] * 2 + ["a red one"]


def answers():
    """Make ten annotators' answers."""
    return [{"answer": one, "answer_confidence": "yes", "answer_id": n} for n, one in enumerate(TEN, 1)]


def aqua(root):
    for n, split in enumerate(("train", "val", "test")):
        row = {
            "image": f"{n}-art.jpg",
            "question": "what?",
            "answer": "a man",
            "need_external_knowledge": False,
        }
        write(root / "AQUA" / f"{split}.json", [row])
        picture(root / "SemArt" / "Images" / row["image"], n)


def vqa(root, folder, names, pictures):
    """Write VQA's two files for training and validation, and the pictures that they are about."""
    for number, (split, (questions, annotations)) in enumerate(names.items(), 1):
        asked = {"question_id": 10 * number, "image_id": number, "question": f"what colour in {split}?"}
        write(root / folder / questions, {"info": {}, "task_type": "Open-Ended", "questions": [asked]})
        said = {"question_id": 10 * number, "image_id": number, "multiple_choice_answer": "red"}
        written = {"info": {}, "annotations": [{**said, "answers": answers()}]}
        write(root / folder / annotations, written)
        picture(root / pictures.format(split=split, number=number), number)


def abstract(root):
    names = {
        year: (f"OpenEnded_abstract_v002_{year}_questions.json", f"abstract_v002_{year}_annotations.json")
        for year in ("train2015", "val2015")
    }
    where = "abstract/scene_img_abstract_v002_{split}/abstract_v002_{split}_{number:012d}.png"
    vqa(root, "abstract", names, where)


def vqa_v2(root):
    names = {
        year: (f"v2_OpenEnded_mscoco_{year}_questions.json", f"v2_mscoco_{year}_annotations.json")
        for year in ("train2014", "val2014")
    }
    vqa(root, "VQAv2", names, "coco/{split}/COCO_{split}_{number:012d}.jpg")


def vizwiz(root):
    for n, split in enumerate(("train", "val")):
        row = {"image": f"VizWiz_{split}_0000000{n}.jpg", "question": "what colour?", "answers": answers()}
        write(
            root / "VizWiz" / "Annotations" / f"{split}.json",
            [{**row, "answer_type": "other", "answerable": 1}],
        )
        picture(root / "VizWiz" / split / row["image"], n)


def coco_qa(root):
    for n, (split, folder) in enumerate((("train", "train2014"), ("test", "val2014")), 1):
        for name, line in (
            ("questions", "what is it ?"),
            ("answers", "elephant"),
            ("img_ids", n),
            ("types", 0),
        ):
            path = root / "COCO-QA" / split / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{line}\n")
        picture(root / "coco" / folder / f"COCO_{folder}_{n:012d}.jpg", n)


def gqa(root):
    for n, split in enumerate(("train", "val"), 1):
        one = {
            "imageId": str(n),
            "question": "Is it red?",
            "answer": "no",
            "fullAnswer": "No.",
            "isBalanced": True,
        }
        write(root / "GQA" / f"{split}_balanced_questions.json", {f"0{n}": one})
        picture(root / "GQA" / "images" / f"{n}.jpg", n)


def clove(root, part, name):
    for n, split in enumerate(("train", "val"), 1):
        row = {
            "answer": "kiosk",
            "answers": ["kiosk"] * 10,
            "feature_path": f"{n}.npy",
            "image_id": str(n),
            "image_source": "vg",
            "question": "What place is this?",
            "question_id": f"g{n}",
            "set_name": split,
            "stage": name,
        }
        write(root / "CLOVE" / "json" / part / f"fcl_mmf_{name}_{split}.json", [row])
        picture(root / "GQA" / "images" / f"{n}.jpg", n)


def nlvr2(root, count=1):
    """Write so many pairs a split; of the first the right picture is the brighter one, then by turns."""
    folders = {"train": "train/47", "dev": "dev", "test1": "test1"}
    for split, folder in folders.items():
        lines = []
        for n in range(count):
            pair = f"{split}-{10171 + n}-0"
            label = ("True", "False")[n % 2]
            row = {"identifier": f"{pair}-0", "sentence": "Both are red.", "label": label, "directory": 47}
            lines.append(json.dumps(row) + "\n")
            for side in (0, 1):
                path = root / "NLVR2" / "images" / folder / f"{pair}-img{side}.png"
                picture(path, side if count == 1 else 40 + 20 * (n % 3) + 100 * (side ^ n % 2))
        path = root / "NLVR2" / "data" / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))


def snli_ve(root):
    for n, split in enumerate(("train", "dev", "test")):
        row = {
            "Flickr30K_ID": str(n),
            "sentence1": "A man.",
            "sentence2": "A cat sleeps.",
            "gold_label": "neutral",
        }
        write(root / "SNLI-VE" / f"snli_ve_{split}.jsonl", [row])
        picture(root / "flickr30k-images" / f"{n}.jpg", n)


def vcr(root):
    for n, split in enumerate(("train", "val")):
        row = {
            "img_fn": f"movie/{n}.jpg",
            "objects": ["person", "person", "dog"],
            "question": ["What", "do", [0, 1], "want", "?"],
            "answer_choices": [["Food", "."], [[2], "does", "."], ["No", "."], ["Yes", "."]],
            "answer_label": 1,
        }
        write(root / "VCR" / f"{split}.jsonl", [row])
        picture(root / "VCR" / "vcr1images" / row["img_fn"], n)
