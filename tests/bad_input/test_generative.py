"""What a backbone that writes cannot read is named, in one line."""

import pytest
from transformers import AutoTokenizer

from tests.app.tiny_generative import VOCABULARY, made
from tests.bad_input.ends import error_of, rows_of
from tests.data_partitions.given_files import llava, picture, write


@pytest.fixture
def folder(tmp_path):
    return made("LLaVA", tmp_path / "backbone")


@pytest.fixture
def on_files(federation, folder, tmp_path):
    """Build a federation of one client on LLaVA records, one of which asks something else."""

    def build(question="what color is it ?", **overrides):
        picture(tmp_path / "data" / "a.png")
        rows = [llava(n) for n in range(6)]
        rows[3]["conversations"][0]["value"] = f"<image>\n{question}"
        for split in ("train", "test"):
            write(tmp_path / "data" / f"{split}.jsonl", rows)
        data = {"benchmark": "files", "data_dir": str(tmp_path / "data")}
        model = {"backbone": str(folder), "loss": "next-token", "adapter": "lora", "writing.tokens": 2}
        return federation(1, **{**data, **model, "lora_rank": 3, "train_examples": 0, **overrides})

    return build


def test_good_data_run(on_files, caplog):
    """Otherwise what follows fails for another reason."""
    rows = rows_of(on_files(num_rounds=1).serve())
    assert all(row["num-examples"] == 6 for row in rows if row["round"])
    assert "test questions have" not in caplog.text


def test_answers_that_are_longer_than_may_be_written_are_said_at_the_client_alone(on_files, caplog, tmp_path):
    clients = on_files(num_rounds=1, **{"writing.tokens": 1})
    for split in ("train", "test"):
        rows = [llava(n) for n in range(6)]
        rows[2]["conversations"][1]["value"] = "red red red"
        write(tmp_path / "data" / f"{split}.jsonl", rows)
    clients.serve()
    (said,) = {line for line in caplog.messages if "test questions have" in line}
    assert said.startswith(
        "client data: 1 of 6 test questions have no right answer that fits into writing.tok"
    )
    (reply,) = [m for way, m in clients.wire if way == "to server" and m.metadata.message_type == "query"]
    assert "test questions" not in str(dict(reply.content["handshake"]))


def refused(clients):
    """Return the line with which a run ends, since no client could make its examples."""
    with pytest.raises((ValueError, RuntimeError)) as caught:
        clients.serve()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_conversation_longer_than_the_model_is_named_by_example(on_files):
    said = refused(on_files("red " * 130))
    assert "example 3: a conversation of 1" in said
    assert said.endswith("of which the model reads 128; allowed: shorter ones, or max-tokens to cut them")


def test_a_token_that_the_model_has_no_word_for_is_named(on_files, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"new{n}" for n in range(VOCABULARY)])
    tokenizer.save_pretrained(folder)
    said = refused(on_files(f"new{VOCABULARY - 1}"))
    assert "example 3: token 1" in said
    assert said.endswith(f"of a tokenizer whose vocabulary grew: the model knows {VOCABULARY}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "chat_template.jinja").unlink(), "it has no chat template"),
        (lambda folder: _without_pictures(folder), "image processor"),
    ],
    ids=["no chat template", "no pictures"],
)
def test_a_model_that_cannot_converse_about_pictures_is_refused(on_files, home, folder, change, said):
    change(folder)
    clients = on_files()
    line = error_of(clients, home)
    assert line.startswith(f"backbone = '{folder}' ")
    assert said in line
    assert clients.wire == []


def _without_pictures(folder):
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).unlink(missing_ok=True)


def test_a_hub_that_cannot_be_reached_is_named(on_files, home, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    clients = on_files(backbone="nobody/nothing")
    assert error_of(clients, home).startswith("backbone = 'nobody/nothing' cannot be loaded; allowed: ")
    assert clients.wire == []
