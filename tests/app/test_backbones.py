"""Frozen backbones: the features of transformers' own ViLT, loaded once, or refused in one line."""

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AlbertConfig, AlbertModel, ViTModel

import app.backbones
from app.backbones import builtin_folder, choose_device, fingerprint, load_backbone
from app.bottleneck import BottleneckConfig
from app.families.vilt import fuse_attention
from data_partitions.scenes import COLORS, PLACES, SHAPES, SIZES, TEXTURES
from data_partitions.scenes.drawing import draw
from data_partitions.scenes.world import Scene, SceneObject
from tests.app.conftest import fresh
from tests.conftest import is_mapped

BUILTIN_VLM = Path(app.backbones.__file__).parent / "assets" / "tiny-vlm" / "model.safetensors"
TINY = Path(app.backbones.__file__).parent / "assets" / "tiny-vilt" / "model.safetensors"


def test_weights_are_memory_mapped(small_backbone):
    """So that the processes of one machine have them in memory once."""
    weight = fresh(small_backbone).model.encoder.layer[0].output.dense.weight
    assert is_mapped(weight, small_backbone / "model.safetensors")


class TestImagesAlone:
    def test_a_vit_has_no_tokenizer_and_reads_no_text(self, small_vit):
        backbone = fresh(small_vit)
        assert isinstance(backbone.model, ViTModel)
        assert (backbone.width, backbone.processor.image_size) == (32, 32)
        assert backbone.processor.texts(["what is shown ?"]) == {}

    def test_a_vit_without_a_pooler_gives_its_class_token(self, small_vit, tmp_path):
        ViTModel.from_pretrained(small_vit, add_pooling_layer=False).save_pretrained(tmp_path)
        pixels = torch.randn(3, 3, 32, 32)
        with torch.no_grad():
            expected = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False)(pixels).last_hidden_state
            assert torch.equal(fresh(tmp_path).model(pixels).pooler_output, expected[:, 0])

    def test_random_weights_are_a_function_of_the_seed(self, small_vit):
        for name in (small_vit, "resnet8", "resnet8-narrow"):
            prints = [fresh(name, "random", seed).fingerprint for seed in (3, 3, 4)]
            assert prints[0] == prints[1] != prints[2]

    def test_resnet8_has_no_pretrained_weights(self):
        message = "^backbone-weights = 'pretrained' with backbone = 'resnet8'; allowed: 'random'$"
        with pytest.raises(ValueError, match=message):
            fresh("resnet8")

    def test_cifars_own_mean_and_deviation(self):
        processor = fresh("resnet8-narrow", "random").processor
        assert (processor.image_size, processor.mean) == (32, (0.4914, 0.4822, 0.4465))
        assert processor.std == (0.2023, 0.1994, 0.2010)


class TestFork:
    def test_weights_are_shared_and_modules_are_not(self, backbone):
        fork = backbone.fork()
        own = [*backbone.model.parameters(), *backbone.model.buffers()]
        assert all(a is b for a, b in zip(own, [*fork.parameters(), *fork.buffers()], strict=True))
        assert not set(map(id, backbone.model.modules())) & set(map(id, fork.modules()))
        assert fork.embeddings.visual_embed.__self__ is fork.embeddings

    def test_a_fork_attends_with_its_own_modules(self, backbone):
        fuse_attention(backbone.model)
        for layer in backbone.fork().encoder.layer:
            assert layer.attention.attention.forward.__self__ is layer.attention.attention

    def test_adapters_in_a_fork_leave_the_backbone_alone(self, backbone, batch):
        before, names = backbone.model(**batch).pooler_output, list(backbone.model.state_dict())
        adapted = get_peft_model(backbone.fork(), BottleneckConfig(reduction_factor=4, init_std=1.0)).eval()
        assert not torch.allclose(adapted(**batch).pooler_output, before, atol=1e-2)
        assert torch.equal(backbone.model(**batch).pooler_output, before)
        assert list(backbone.model.state_dict()) == names
        assert fingerprint(backbone.model) == backbone.fingerprint


class TestLoading:
    def test_once_a_process(self, small_backbone):
        backbone = load_backbone(str(small_backbone))
        assert load_backbone(str(small_backbone)) is backbone
        assert (backbone.name, backbone.width) == (str(small_backbone), 32)

    def test_weights_are_the_files_and_frozen(self, small_backbone):
        model = fresh(small_backbone).model
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        for name, tensor in load_file(small_backbone / "model.safetensors").items():
            assert torch.equal(model.state_dict()[name], tensor)

    @pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs Linux's /proc")
    def test_weights_are_the_files_pages(self, small_backbone):
        """Processes that load one backbone share its memory."""
        model = fresh(small_backbone).model
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        spans = [
            [int(end, 16) for end in entry[0].split("-")]
            for entry in maps
            if entry[-1] == str(small_backbone / "model.safetensors")
        ]
        for name, parameter in model.named_parameters():
            address = parameter.data_ptr()
            assert any(start <= address < end for start, end in spans), name

    def test_patches_keep_their_order(self, small_backbone, batch):
        model = fresh(small_backbone).model
        states = [model(**batch).last_hidden_state for _ in range(2)]
        assert torch.equal(*states)

    def test_random_weights_are_a_function_of_the_seed(self, small_backbone):
        torch.manual_seed(1)
        first, drawn = fresh(small_backbone, "random", 1), torch.rand(1)
        torch.manual_seed(1)
        assert torch.equal(torch.rand(1), drawn)  # the caller's generator is left alone
        assert fresh(small_backbone, "random", 1).fingerprint == first.fingerprint
        others = {fresh(small_backbone, "random", 2).fingerprint, fresh(small_backbone).fingerprint}
        assert first.fingerprint not in others
        assert len(others) == 2
        shapes = {name: tensor.shape for name, tensor in fresh(small_backbone).model.state_dict().items()}
        assert {name: tensor.shape for name, tensor in first.model.state_dict().items()} == shapes

    def test_half_precision_is_widened(self, folder):
        weights = load_file(folder / "model.safetensors")
        save_file({k: v.half() for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})
        assert {tensor.dtype for tensor in fresh(folder).model.parameters()} == {torch.float32}

    @pytest.mark.skipif(not TINY.is_file(), reason="the built-in weights are not there")
    def test_the_built_in_one(self):
        backbone = load_backbone("tiny-vilt")
        tokens = backbone.processor.texts(["what color is the small circle ?"])
        assert backbone.processor.tokenizer.unk_token_id not in tokens["input_ids"]
        size = backbone.processor.image_size
        pixels = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
        features = backbone.model(**tokens, pixel_values=backbone.processor.normalise(pixels)).pooler_output
        assert features.shape == (1, backbone.width)
        assert features.isfinite().all()

    @pytest.mark.skipif(not BUILTIN_VLM.is_file(), reason="the built-in weights are not there")
    def test_the_built_in_one_that_writes(self):
        """Every word of a scene is a token of its own, and what it answers is the color that is there."""
        backbone = load_backbone("tiny-vlm")
        words = {
            *COLORS,
            *SHAPES,
            *SIZES,
            *TEXTURES,
            *(w for place in PLACES for w in place.split()),
            "yes",
            "no",
        }
        assert words <= set(backbone.processor.tokenizer.get_vocab())
        place = SceneObject("large", "COLOR", "plain", "square", "center")
        for color in COLORS[:3]:
            scene = Scene((dataclasses.replace(place, color=color),))
            pixels = draw(scene, "clean", np.random.default_rng(0))
            asked = [{"type": "image"}, {"type": "text", "text": "what color is the square?"}]
            told = [{"type": "text", "text": color}]
            made = backbone.processor.conversation(
                [{"role": "user", "content": asked}, {"role": "assistant", "content": told}],
                [Image.fromarray(pixels)],
            )
            logits = backbone.model(input_ids=made.tokens[None], **made.pictures).logits[0]
            first = int(made.told.nonzero()[0])
            assert backbone.processor.decode(logits[first - 1 : first].argmax(-1).tolist()) == color


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


def pickle_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    remove_weights(folder)


def corrupt_weights(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)


def leave_a_block_out(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer.1." not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def cut_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights["pooler.dense.bias"] = weights["pooler.dense.bias"][:3].contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def put_another_architecture(folder):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    AlbertModel(AlbertConfig(**sizes, vocab_size=64, embedding_size=16)).save_pretrained(folder)


def break_the_configuration(folder):
    (folder / "config.json").write_text("{")


def remove_tokenizer(folder):
    for path in folder.glob("*token*"):
        path.unlink()


def remove_all(folder):
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "damage",
    [
        remove_weights,
        pickle_weights,
        corrupt_weights,
        leave_a_block_out,
        cut_a_weight,
        put_another_architecture,
        break_the_configuration,
        remove_tokenizer,
        remove_all,
    ],
)
def test_what_is_no_vilt_in_safetensors_is_refused(folder, damage):
    damage(folder)
    with pytest.raises(ValueError) as error:
        load_backbone(str(folder))
    message = str(error.value)
    assert message.startswith(
        f"backbone = {str(folder)!r} cannot be loaded; allowed: tiny-vilt, tiny-vlm, resnet8, resnet8-narrow,"
        " the path"
    )
    assert "safetensors" in message
    assert "\n" not in message


class TestDevices:
    def test_the_cpu_is_there(self):
        assert choose_device("cpu") == torch.device("cpu")

    @pytest.mark.parametrize(("there", "kind"), [(True, "cuda"), (False, "cpu")])
    def test_auto_takes_cuda_where_there_is_one(self, monkeypatch, there, kind):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
        assert choose_device().type == kind

    @pytest.mark.parametrize("device", ["gpu", "", "cuda:9999", "hpu", "meta"])
    def test_what_is_not_there_is_refused(self, device):
        message = f"^device = '{device}' is not available; allowed: auto, cpu, cuda, cuda:N$"
        with pytest.raises(ValueError, match=message):
            choose_device(device)


class TestBuiltInFolder:
    @pytest.fixture(autouse=True)
    def places(self, tmp_path, monkeypatch):
        """Simulate a FAB's code and an installed package, both without weights."""
        monkeypatch.setattr(app.backbones, "__file__", str(tmp_path / "fab" / "app" / "backbones.py"))
        installed = tmp_path / "site" / "feddat" / "app"
        installed.mkdir(parents=True)
        for package in (installed, installed.parent):
            (package / "__init__.py").touch()
        real = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "feddat"}
        monkeypatch.syspath_prepend(tmp_path / "site")
        yield
        for name in [name for name in sys.modules if name.split(".")[0] == "feddat"]:
            del sys.modules[name]
        sys.modules.update(real)

    def put(self, place):
        folder = place / "app" / "assets" / "tiny-vilt"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
        return folder

    def test_beside_the_code_comes_first(self, tmp_path):
        self.put(tmp_path / "site" / "feddat")
        beside = self.put(tmp_path / "fab")
        assert builtin_folder("tiny-vilt") == beside

    def test_else_where_the_package_is_installed(self, tmp_path):
        (tmp_path / "fab" / "app" / "assets" / "tiny-vilt").mkdir(parents=True)  # without weights
        installed = self.put(tmp_path / "site" / "feddat")
        assert builtin_folder("tiny-vilt") == installed

    @pytest.mark.parametrize("installed", [True, False])
    def test_nowhere_is_said_in_one_line(self, tmp_path, monkeypatch, installed):
        if not installed:
            monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ValueError) as error:
            load_backbone("tiny-vilt", "pretrained", 123)
        message = str(error.value)
        assert message.startswith("backbone = 'tiny-vilt': its weights are not in ")
        assert message.endswith("; install the package: pip install .")
        assert str(tmp_path / "fab" / "app") in message
        assert (str(tmp_path / "site" / "feddat" / "app") in message) is installed
        assert "\n" not in message
