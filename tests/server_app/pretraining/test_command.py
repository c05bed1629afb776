"""The command of stage 1: objectives, one after the other, and what it refuses."""

import datasets
import pytest
import torch
from PIL import Image

from app.backbones import load_backbone
from server_app.pretraining import __main__ as command
from server_app.pretraining import masked_captions

FEW = ["--images", "60", "--steps", "2", "--batch-size", "6", "--device", "cpu"]


def moved(first, second):
    before, after = (load_backbone(str(folder)).model.state_dict() for folder in (first, second))
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_each_objective_leaves_a_backbone_that_the_next_goes_on_with(
    home, tmp_path, monkeypatch, llava, capsys
):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    monkeypatch.setattr(command, "TINY_VILT", masked_captions.TINY_VILT | small)
    monkeypatch.setattr(
        command, "build_tokenizer", lambda captions: masked_captions.build_tokenizer(captions, 300)
    )
    first, second, third = (tmp_path / name for name in ("captions", "questions", "dynamic"))
    command.main(["captions", "--out", str(first), *FEW])
    command.main(["questions", "--start", str(first), "--out", str(second), *FEW])
    command.main(["dynamic", "--start", str(second), "--encoder", str(llava), "--out", str(third), *FEW])
    assert "step 2: losses: " in capsys.readouterr().out
    assert {path.name for path in third.iterdir()} == {path.name for path in first.iterdir()}
    backbone = load_backbone(str(third))
    assert backbone.width == 16
    assert backbone.processor.template == "{} [MASK]"
    assert moved(first, second)
    assert moved(second, third)
    card = (third / "README.md").read_text()
    assert card.count("2 of 2 batches of 6") == 3
    common = "--images 60 --steps 2 --batch-size 6 --learning-rate"
    assert f"python -m server_app.pretraining captions {common} 0.001 --seed 0 --out {first}\n" in card
    assert (
        f"pretraining questions {common} 0.0007 --seed 0 --out {second} --start {first} --style varied\n"
        in card
    )
    assert f"pretraining dynamic {common} 0.0003 --seed 0 --out {third} --start {second} --encoder" in card


def test_a_backbone_goes_on_with_photographs_and_names_the_files_it_kept_apart(home, tmp_path):
    photographs, theirs = (tmp_path / f"{name}.parquet" for name in ("cifar", "theirs"))
    colours = [Image.new("RGB", (32, 32), (index, 2 * index, 255 - index)) for index in range(90)]
    rows = {"image": colours, "label_name": ["dog", "pine_tree"] * 45, "split": ["train"] * 90}
    everything = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    everything.to_parquet(photographs)
    everything.select(range(10)).to_parquet(theirs)
    out, again = tmp_path / "out", tmp_path / "again"
    few = ["--pictures", str(photographs), "--picture-questions", "120", "--patches", "8", *FEW]
    command.main(
        [
            "pictures",
            "--start",
            "tiny-vilt",
            "--apart-from",
            str(theirs),
            str(theirs),
            "--out",
            str(out),
            *few,
        ]
    )
    command.main(["pictures", "--start", str(out), "--out", str(again), *few])
    assert moved("tiny-vilt", out)
    assert load_backbone(str(again)).model.config.max_image_length == -1
    card = (out / "README.md").read_text()
    assert f"--apart-from {theirs} {theirs} --picture-questions 120 --patches 8\n" in card
    # Ten of ninety left out, one in twenty of the others held out.
    assert "it answered 60 questions about as many other\npublic scenes" in card
    assert "Beside these it answered 120 questions about 76 photographs" in card
    assert "100 questions about 4\nother photographs" in card
    assert "those of `cifar.parquet`" in card


def test_a_backbone_that_writes_is_made_and_gone_on_with(home, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    command.main(["answers", "--out", str(first), *FEW])
    command.main(["answers", "--start", str(first), "--out", str(second), *FEW])
    assert type(load_backbone(str(second)).model).__name__ == "LlavaForConditionalGeneration"
    written = moved(first, second)
    assert written
    assert not any("vision_tower" in name for name in written)
    card = (second / "README.md").read_text()
    assert card.startswith((first / "README.md").read_text())
    assert card.count("2 of 2 batches of 6") == 2
    assert f"--out {second} --start {first}\n" in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dynamic", "--encoder", "x", "--steps", "0"], "argument --steps: 0; allowed: 1 or more"),
        (["dynamic", "--encoder", "x", "--images", "-1"], "argument --images: -1; allowed: 1 or more"),
        (["dynamic"], "the following arguments are required: --encoder"),
        (["questions"], "the following arguments are required: --start"),
        (["pictures", "--start", "x"], "the following arguments are required: --pictures"),
        (
            ["pictures", "--start", "x", "--pictures", "x", "--patches", "0"],
            "--patches: 0; allowed: 1 or more",
        ),
        (["guess"], "invalid choice: 'guess'"),
    ],
)
def test_wrong_options_are_named(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        command.main([*arguments, "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err


def test_what_cannot_be_loaded_ends_it_in_one_line(home, tmp_path):
    out = tmp_path / "out"
    for arguments, message in (
        (["dynamic", "--encoder", "/no/such"], "pretrain.encoder = '/no/such' cannot be used"),
        (["questions", "--start", "/no/such"], "backbone = '/no/such' cannot be loaded"),
        (
            ["pictures", "--start", "tiny-vilt", "--pictures", "/no/such"],
            "--pictures /no/such is not a readable",
        ),
        (["captions", "--device", "meta"], "device = 'meta' is not available"),
    ):
        with pytest.raises(SystemExit) as end:
            command.main([*arguments, "--images", "5", "--out", str(out)])
        assert str(end.value).startswith(f"feddat: {message}")
        assert "\n" not in str(end.value)
    assert not out.exists()
