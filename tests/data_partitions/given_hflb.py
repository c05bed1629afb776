"""Small files of HFLB's true layout: nine clients of four parts, two pictures where the task has two."""

from tests.data_partitions.given_files import llava, picture, write

# Data sets and parts of the nine clients, as the scenario has them.
CLIENTS = (
    *(("GQA", range(10 * n, 10 * n + 4)) for n in (1, 2, 3)),
    *(
        (name, range(4))
        for name in ("Abstract", "SNLI-VE", "COCOQA", "NLVR2_feddat", "VizWiz-Original", "AQUA")
    ),
)


def hflb(root):
    """Write the scenario, and each client's data."""
    scenario = [
        {
            "client_id": number,
            "datasets": [{"dataset": name, "subset_id": part, "type": "multi-choice"} for part in parts],
            "model_id": "somebody/a_model",
        }
        for number, (name, parts) in enumerate(CLIENTS)
    ]
    # In an order of its own; the clients' numbers say which comes first.
    write(root / "scenarios" / "HFLB_homo_llava_llama_1B.json", scenario[::-1])
    write(root / "scenarios" / "HFLB_task_list.json", [{"dataset": "GQA"}])
    for name, parts in CLIENTS:
        for n in (0, 1):
            picture(root / "dataset" / name / "images" / f"{n}.png", n)
        sides = (0, 1) if name == "NLVR2_feddat" else (0,)
        images = [f"dataset/{name}/images/{n}.png" for n in sides]
        for part in parts:
            asked = "<image>" * len(images) + f"\nWhat is {part}? Choice list:[yes, no]. Your answer is: "
            turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "yes"}]
            record = llava(part, images=images, conversations=turns)
            for split, count in (("train", 3), ("test", 2)):
                write(root / "dataset" / name / split / f"dataset-{part}.json", [record] * count)
