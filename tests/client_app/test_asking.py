"""A client of a run that is asked a question of one's own."""

import io
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from app.backbones import load_backbone
from app.examples import Examples
from app.settings import read_settings
from client_app.asking import Asked, main
from client_app.client import data_options
from data_partitions.benchmarks import load_partition
from tests.app.tiny_generative import made, pictures_alone
from tests.data_partitions.given_files import of_pictures
from tests.private_files import newest_state

BRANCHES = ("student", "local", "teacher")


def example_of(clients, number, path):
    """Write the picture of a client's first test example; return its question and right answer."""
    settings = read_settings(clients.run_config)
    partition = load_partition("scenes", number, 2, data_options(settings))
    row = partition.test.with_format("arrow")[:1].to_pylist()[0]
    Image.open(io.BytesIO(row["images"][0]["bytes"])).save(path)
    return row["question"], partition.answers


@pytest.fixture
def seen(monkeypatch):
    """Return what the last evaluation of a client said of its first example, by the sum of its pictures."""
    from client_app import messages

    seen = {}
    evaluated = messages.evaluate

    def evaluate(learner, examples, settings, own):
        inputs, _ = examples.batch(torch.tensor([0]), learner.device)
        with torch.no_grad():
            each = {branch: learner(inputs, branch)[0].sigmoid() for branch in BRANCHES}
        seen[int(inputs["pixel_values"][0].sum())] = (
            each  # the last round's; clients differ in their pictures
        )
        return evaluated(learner, examples, settings, own)

    monkeypatch.setattr(messages, "evaluate", evaluate)
    return seen


def test_answers_are_those_that_the_evaluation_scored(federation, tmp_path, seen):
    """Each branch's probabilities, against the logits of the client's own evaluation."""
    clients = federation(2)
    folder = clients.serve()
    question, answers = example_of(clients, 1, path := tmp_path / "picture.png")
    asked = Asked.of_run(folder, 1, 2)
    said = asked.answer(question, path, top=3)
    assert tuple(said) == BRANCHES
    assert len(seen) == 2
    picture = asked.client.backbone.processor.image(Image.open(path))
    for branch, chosen in said.items():
        values, indices = seen[int(picture.sum())][branch].topk(3)
        assert [answer for answer, _ in chosen] == [answers[index] for index in indices.tolist()]
        assert [p for _, p in chosen] == pytest.approx(values.tolist(), abs=1e-5)
    assert said["student"] != said["local"]


def test_a_whole_model_and_its_head_can_be_asked(long_tailed, tmp_path):
    """Against what anybody computes of the exported model; a question is not read."""
    protocol = {"method": "full", "backbone": "resnet8-narrow", "backbone_weights": "random"}
    folder = long_tailed(**protocol).serve()
    Image.new("RGB", (32, 32), "red").save(path := tmp_path / "red.png")
    said = Asked.of_run(folder, 1, 3).answer("which is it ?", path, top=4)
    whole = load_backbone(str(folder / "model"))
    head = load_file(folder / "model" / "classifier.safetensors")
    pixels = whole.processor.normalise(whole.processor.image(Image.open(path))[None])
    with torch.no_grad():
        features = whole.features(whole.model, {"pixel_values": pixels})
        shares = (features @ head["weight"].T + head["bias"])[0].softmax(-1).tolist()
    assert said.keys() == {"student"}
    by_hand = dict(zip(("red", "green", "blue", "grey"), shares, strict=True))
    assert dict(said["student"]) == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize(("method", "branch"), [("bias", "student"), ("head", "student"), ("local", "local")])
def test_whatever_a_method_leaves_can_be_asked(federation, tmp_path, monkeypatch, method, branch):
    """Parts of a model, or nothing at all, against the client's own evaluation."""
    from client_app import messages

    seen, evaluated = {}, messages.evaluate

    def evaluate(learner, examples, settings, own):
        inputs, _ = examples.batch(torch.tensor([0]), learner.device)
        with torch.no_grad():
            seen[int(inputs["pixel_values"][0].sum())] = learner(inputs, branch)[0].sigmoid()
        return evaluated(learner, examples, settings, own)

    monkeypatch.setattr(messages, "evaluate", evaluate)
    clients = federation(2, method=method)
    folder = clients.serve()
    question, answers = example_of(clients, 1, path := tmp_path / "picture.png")
    asked = Asked.of_run(folder, 1, 2)
    ((said, chosen),) = asked.answer(question, path, top=2).items()
    values, indices = seen[int(asked.client.backbone.processor.image(Image.open(path)).sum())].topk(2)
    assert said == branch
    assert [answer for answer, _ in chosen] == [answers[index] for index in indices.tolist()]
    assert [p for _, p in chosen] == pytest.approx(values.tolist(), abs=1e-5)


def test_a_run_that_is_not_over_is_refused(federation):
    folder = federation(2).serve()
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^'test' has no adapter yet; allowed: a run that is over$"):
        Asked.of_run(folder, 1, 2)


def test_it_is_asked_about_as_many_pictures_as_its_examples_have(federation, tmp_path, seen):
    folder = federation(1, **of_pictures(tmp_path / "data", [2] * 6)).serve()
    asked, (each,) = Asked.of_run(folder, 0, 1), seen.values()
    first = asked.client.partition.test.with_format("arrow")[:1].to_pylist()[0]
    pictures = [tmp_path / "left.png", tmp_path / "right.png"]
    for path, image in zip(pictures, first["images"], strict=True):
        path.write_bytes(image["bytes"])
    right, turned = (asked.answer(first["question"], *paths) for paths in (pictures, pictures[::-1]))
    for branch, chosen in right.items():
        assert [p for _, p in chosen] == pytest.approx(each[branch].topk(2).values.tolist(), abs=1e-5)
        assert chosen != turned[branch]
    for given in (pictures[:1], [*pictures, pictures[0]]):
        line = rf"^image: {len(given)} given; allowed: 2, as each of the client's examples has$"
        with pytest.raises(ValueError, match=line):
            asked.answer(first["question"], *given)


def test_a_model_that_writes_says_its_answer_with_its_probability(federation, tmp_path):
    with pictures_alone():
        backbone = made("LLaVA", tmp_path / "llava")
        fixed = {"backbone": str(backbone), "loss": "next-token", "adapter": "lora", "lora_rank": 3}
        clients = federation(
            2, **fixed, num_rounds=1, train_examples=6, test_examples=3, **{"writing.tokens": 4}
        )
        folder = clients.serve()
        question, _ = example_of(clients, 0, path := tmp_path / "picture.png")
        asked = Asked.of_run(folder, 0, 2)
        said = [*asked.answer(question, path).values(), *asked.answer(question, path, path).values()]
    assert asked.meaning == "What each branch writes, with the probability of all its tokens."
    for ((answer, probability),) in said:
        assert (answer and 0 < probability < 1) or (not answer and probability != probability)


def test_where_answers_are_chosen_they_are_those_that_the_evaluation_chose(federation, tmp_path):
    """By the score of the client's own evaluation, over all its test examples."""
    with pictures_alone():
        backbone = made("LLaVA", tmp_path / "llava")
        fixed = {"backbone": str(backbone), "loss": "next-token", "adapter": "lora", "lora_rank": 3}
        sizes = {"num_rounds": 1, "train_examples": 6, "test_examples": 6, "learning_rate": 0.05}
        folder = federation(1, **fixed, **sizes, **{"writing.score": "choice"}).serve()
        asked = Asked.of_run(folder, 0, 1)
        partition = asked.client.partition
        rows = partition.test.with_format("arrow")[:].to_pylist()
        said = [
            asked.answer_about([one["bytes"] for one in row["images"]], row["question"], 2, row["options"])
            for row in rows
        ]
    _, measured = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    for branch in BRANCHES:
        right = [one[branch][0][0] in row["answers"] for one, row in zip(said, rows, strict=True)]
        assert sum(right) / len(rows) == pytest.approx(measured[branch])
        for one in said:
            (first, likely), (second, less) = one[branch]
            assert {first, second} <= set(partition.answers)
            assert 0 < less <= likely < 1
    assert asked.meaning == (
        f"Chosen from the client's {len(partition.answers)} answers, by the probability that just this is"
        " written: they need not add up to 100%."
    )


@pytest.mark.parametrize(
    ("loss", "meaning"),
    [
        (
            "bce-scores",
            "Each answer's probability is its own: they need not add up to 100%.",
        ),
        ("cross-entropy", "The probabilities of all the client's 3 answers add up to 100%."),
    ],
)
def test_it_is_said_what_probabilities_are_of(loss, meaning):
    family = SimpleNamespace(kind_of_examples=Examples)
    settings, partition = SimpleNamespace(loss=loss), SimpleNamespace(answers=("a", "b", "c"))
    backbone = SimpleNamespace(family=family)
    client = SimpleNamespace(settings=settings, partition=partition, backbone=backbone)
    assert Asked(client, None, None).meaning == meaning


def test_a_state_that_cannot_be_read_is_refused_and_stays_where_it_is(federation, home):
    folder = federation(2).serve()
    states = sorted((home / "clients").glob("test-*/1/*.safetensors"))
    states[-1].write_bytes(b"damaged")
    before = sorted(path.name for path in states[-1].parent.iterdir())
    with pytest.raises(ValueError, match=r"^client = 1: its private state cannot be used: [^\n]+$"):
        Asked.of_run(folder, 1, 2)
    assert sorted(path.name for path in states[-1].parent.iterdir()) == before


def test_a_client_of_another_machine_cannot_be_asked(federation, home):
    folder = federation(2).serve()
    (state,) = (home / "clients").glob("test-*/1")
    state.rename(home / "elsewhere")
    reason = r"^client = 1 has no private state of 'test' on this machine \(.*\); allowed: 0$"
    with pytest.raises(ValueError, match=reason):
        Asked.of_run(folder, 1, 2)


@pytest.fixture
def at_sites(federation, small_backbone, tmp_path):
    """Run two sites, each with a state-dir of its own, and return the run's folder and their node-configs."""
    clients = federation(2, deployed=True)
    for context in clients.contexts.values():
        site = tmp_path / f"site-{context.node_config['partition-id']}"
        own = {"policy": "closed", "backbone": str(small_backbone), "state-dir": str(site)}
        context.node_config.update(own)
    folder = clients.serve()
    return folder, {c.node_config["partition-id"]: c.node_config for c in clients.contexts.values()}


def in_words(node):
    """Write a node-config as it is given to a SuperNode."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in node.items())


def test_a_site_asks_by_its_own_settings_with_what_the_operator_hands_over(at_sites, tmp_path, home, capsys):
    """Its state is in its own folder, and of the run's it has the settings and the shared adapter alone."""
    folder, nodes = at_sites
    assert not (home / "clients").exists()
    handed = tmp_path / "handed" / folder.name
    handed.mkdir(parents=True)
    shutil.copy(folder / "settings.json", handed)
    shutil.copytree(folder / "adapter", handed / "adapter")
    asked = Asked.at_site(handed, nodes[1])
    state = newest_state(tmp_path / "site-1", folder.name, 1)["private-head"].to_torch_state_dict()
    head = asked.learner.head.state_dict()
    assert head.keys() == state.keys()
    assert all(torch.equal(head[name], value) for name, value in state.items())
    Image.new("RGB", (32, 32), "red").save(path := tmp_path / "red.png")
    given = ["--image", str(path), "--question", "what color is it ?"]
    assert main([f"--folder={handed}", f"--node-config={in_words(nodes[1])}", *given]) == 0
    (first, likely), *_ = asked.answer("what color is it ?", path)["student"]
    assert f"{first} ({likely:.0%})" in capsys.readouterr().out


def test_what_a_site_is_not_asked_by(at_sites, tmp_path, capsys):
    """Another site's state, a state-dir that has none, an unknown key, a run that its policy refuses."""
    folder, nodes = at_sites
    own, empty = nodes[1], tmp_path / "empty"
    refused = {
        f"client = 1 has no private state of 'test' on this machine (state-dir = '{tmp_path / 'site-0'}');"
        " allowed: 0": {**own, "state-dir": nodes[0]["state-dir"]},
        f"client = 1 has no private state of 'test' on this machine (state-dir = '{empty}');"
        " allowed: none is here": {**own, "state-dir": str(empty)},
        "a site has require-dp = 'local'; the run has dp.mode = 'none'": {**own, "require-dp": "local"},
    }
    for line, node in refused.items():
        assert (
            main([f"--folder={folder}", f"--node-config={in_words(node)}", "--image=x", "--question=?"]) == 1
        )
        assert capsys.readouterr().err == f"feddat: {line}\n"
    assert main([f"--folder={folder}", "--node-config=state='x'", "--image=x", "--question=?"]) == 1
    assert capsys.readouterr().err.startswith(
        "feddat: state is not a setting of a site; allowed: partition-id,"
    )


def test_a_file_that_is_no_picture_is_named(federation, tmp_path):
    asked = Asked.of_run(federation(2).serve(), 0, 2)
    (path := tmp_path / "picture.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"^image = '.*picture\.png' is not a picture that can be read; .*$"):
        asked.answer("what ?", path)
