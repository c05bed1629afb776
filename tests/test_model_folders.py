"""A model's folder is data: none of its code runs, nobody is asked to let it, nothing is unpickled."""

import io
import json
import shutil
from contextlib import suppress

import pytest
import torch

from app.backbones import load_backbone
from server_app.pretraining.frozen_models import load_frozen
from server_app.teachers.models import load_model


def pretraining(folder):
    return load_frozen(folder, folder, torch.device("cpu"))


LOADERS = {"backbone": load_backbone, "teacher": load_model, "pretraining": pretraining}


@pytest.fixture
def folder(tmp_path, small_backbone, random_llava):
    """Make a copy of what a loader takes."""

    def make(loader):
        source = small_backbone if loader == "backbone" else random_llava
        return shutil.copytree(source, tmp_path / "model")

    return make


def refusal(loader, folder):
    with pytest.raises(ValueError) as caught:
        LOADERS[loader](str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("answer", ["y\n" * 9, ""])
@pytest.mark.parametrize("loader", LOADERS)
def test_code_in_a_folder_never_runs_whatever_is_answered(
    folder, tmp_path, monkeypatch, loader, answer, known
):
    """Also where transformers has no class of its own for the model."""
    made, ran = folder(loader), tmp_path / "ran"
    (made / "code.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizer\n"
        "class C(PreTrainedConfig): model_type = 'strange'\n"
        "class M(PreTrainedModel): config_class = C\n"
        "class T(PreTrainedTokenizer): pass\n"
    )
    kinds = {"AutoConfig": "C", "AutoTokenizer": "T", "AutoProcessor": "T", "AutoImageProcessor": "T"}
    models = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForCausalLM")
    names = {**kinds, **dict.fromkeys(models, "M")}
    auto_map = {name: f"code.{made_of}" for name, made_of in names.items()}
    for path in made.glob("*.json"):
        said = json.loads(path.read_text())
        if not isinstance(said, dict) or path.name.startswith(("tokenizer.json", "model.safetensors")):
            continue
        said["auto_map"] = auto_map | {"AutoTokenizer": ["code.T", "code.T"]}
        if path.name == "config.json" and not known:
            said["model_type"] = "strange"
        path.write_text(json.dumps(said))
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    if known:
        LOADERS[loader](str(made))
    else:
        assert "custom code" in refusal(loader, made)
    assert not ran.exists()


# In which files a part is named, and under which key.
PARTS = {
    "tokenizer": ("tokenizer_class", "Tokenizer"),
    "processor": ("processor_class", "Processor"),
    "image processor": ("image_processor_type", "ImageProcessor"),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("loader", [*LOADERS, "a backbone that writes"])
def test_no_part_of_a_known_model_brings_code(tmp_path, folder, monkeypatch, loader, part):
    """Its configuration is one of transformers', and its tokenizer or picture processor is not."""
    made, ran = folder(loader), tmp_path / "ran"
    (made / "code.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizer\n"
        "class T(PreTrainedTokenizer): pass\n"
    )
    key, kind = PARTS[part]
    strange = {
        key: f"Strange{kind}",
        "auto_map": {"AutoTokenizer": ["code.T", None], f"Auto{kind}": ["code.T"] * 2},
    }
    if part != "tokenizer":
        strange["auto_map"][f"Auto{kind}"] = "code.T"
    changed = 0
    for path in made.glob("*.json"):
        said = json.loads(path.read_text())
        if path.name in ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
            said |= strange
            if isinstance(said.get("image_processor"), dict):
                said["image_processor"] |= strange
            path.write_text(json.dumps(said))
            changed += 1
    assert changed
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    with suppress(ValueError):
        LOADERS.get(loader, load_backbone)(str(made))
    assert not ran.exists()


@pytest.mark.parametrize("loader", LOADERS)
def test_pickled_weights_alone_are_refused(folder, loader):
    made = folder(loader)
    (made / "model.safetensors").unlink()
    torch.save({}, made / "pytorch_model.bin")
    assert "safetensors" in refusal(loader, made)
