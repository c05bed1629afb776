"""Models that know images and language, by name: captions of images, and scores of candidate answers."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPModel,
    PreTrainedModel,
)
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from app.backbones import choose_device
from app.hub import check_hub
from app.likelihood import likeliest_words, log_likelihoods

# What decides a model's answers, besides this code.
_HASHED = (".json", ".safetensors", ".model", ".txt", ".jinja")


class TeacherModel(Protocol):
    """A loaded model."""

    def captions(self, images: Sequence[Image.Image], prompts: str | Sequence[str]) -> list[str]:
        """Write a text about each image; `prompts` is one for all, or one for each."""

    def log_likelihoods(
        self, images: Sequence[Image.Image], prompts: Sequence[str], candidates: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Score each candidate for each image and its prompt.

        Returns
        -------
        tuple
            Log-likelihoods up to a constant a row, float32 (images, candidates) on the CPU; and the number of
            tokens of each candidate (candidates,).
        """

    def likeliest_words(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        texts: Sequence[Sequence[int]],
        words: int,
        most: int,
        temperature: float = 1.0,
    ) -> list[tuple[Tensor, Tensor]]:
        """Say how likely the likeliest words are at each token of texts, see `app.likelihood`."""


def render(processor: Any, prompt: str) -> str:
    """Put a prompt and one image into the words a model expects: its chat template, else LLaVA-1.5's."""
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        return processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    return f"USER: {processor.image_token}\n{prompt} ASSISTANT:"


class LanguageModel:
    """A language model that takes images: LLaVA, Qwen-VL, SmolVLM, InternVL and others.

    Parameters
    ----------
    model : PreTrainedModel
        In evaluation mode.
    processor : ProcessorMixin
        Its processor.
    max_new_tokens : int
        Length of a caption at most.
    """

    def __init__(self, model: PreTrainedModel, processor: Any, max_new_tokens: int = 128) -> None:
        self.model, self.processor, self.max_new_tokens = model, processor, max_new_tokens
        self.tokenizer = processor.tokenizer
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def captions(self, images: Sequence[Image.Image], prompts: str | Sequence[str]) -> list[str]:
        """Write a text about each image, the most likely token at each place."""
        inputs = self._inputs(images, [prompts] * len(images) if isinstance(prompts, str) else prompts)
        with torch.inference_mode():
            written = self.model.generate(  # type: ignore[operator]
                **inputs,
                do_sample=False,
                min_new_tokens=1,
                max_new_tokens=self.max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        texts = self.tokenizer.batch_decode(
            written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return [text.strip() for text in texts]

    def log_likelihoods(
        self, images: Sequence[Image.Image], prompts: Sequence[str], candidates: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Sum each candidate's log-probabilities as the answer; the end of the answer is not counted."""
        tokens = self.candidate_tokens(prompts[0], candidates)
        scores = log_likelihoods(self.model, self._inputs(images, prompts), [tokens] * len(images))
        return scores.cpu(), torch.tensor([len(ids) for ids in tokens])

    def likeliest_words(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        texts: Sequence[Sequence[int]],
        words: int,
        most: int,
        temperature: float = 1.0,
    ) -> list[tuple[Tensor, Tensor]]:
        """Say how likely the likeliest words are at each token of texts."""
        return likeliest_words(self.model, self._inputs(images, prompts), texts, words, most, temperature)

    def candidate_tokens(self, prompt: str, candidates: Sequence[str]) -> list[list[int]]:
        """Tokenise candidates as they continue a prompt, behind a space unless the prompt ends in one."""
        before = render(self.processor, prompt)
        space = "" if before[-1].isspace() else " "
        start = len(self.tokenizer.encode(before))
        tokens = [self.tokenizer.encode(before + space + candidate)[start:] for candidate in candidates]
        for candidate, ids in zip(candidates, tokens, strict=True):
            if not ids:
                raise ValueError(f"candidate {candidate!r} has no token in this teacher's vocabulary")
        return tokens

    def _inputs(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
        texts = [render(self.processor, prompt) for prompt in prompts]
        # Some templates write the first token themselves.
        begins = self.tokenizer.bos_token is not None and texts[0].startswith(self.tokenizer.bos_token)
        inputs = self.processor(
            images=[[image.convert("RGB")] for image in images],
            text=texts,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            add_special_tokens=not begins,
        )
        return inputs.to(self.model.device, dtype=self.model.dtype)


class Clip:
    """CLIP's zero-shot scores (Radford et al., 2021, arXiv 2103.00020, section 3.1).

    A candidate's text is the prompt with the candidate in place of ``{}``, or behind it where it has none.
    """

    def __init__(self, model: CLIPModel, processor: Any) -> None:
        self.model, self.processor = model, processor
        self._directions = functools.lru_cache(maxsize=4096)(self._text_directions)

    def captions(self, images: Sequence[Image.Image], prompts: str | Sequence[str]) -> list[str]:
        """Refuse: CLIP writes nothing."""
        raise ValueError("a CLIP teacher writes no captions; give a teacher that is a language model")

    def likeliest_words(self, *asked: Any) -> list[tuple[Tensor, Tensor]]:
        """Refuse, for the same reason."""
        raise ValueError("a CLIP teacher has no words to write; give a teacher that is a language model")

    @torch.inference_mode()
    def log_likelihoods(
        self, images: Sequence[Image.Image], prompts: Sequence[str], candidates: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Return scaled cosines of image and text."""
        pixels = self.processor.image_processor(
            [image.convert("RGB") for image in images], return_tensors="pt"
        )
        pixels = pixels.to(self.model.device, dtype=self.model.dtype)
        features = self.model.get_image_features(**pixels).pooler_output
        features = torch.nn.functional.normalize(features.float(), dim=-1)
        texts = torch.stack([self._directions(prompt, tuple(candidates)) for prompt in prompts])
        scores = self.model.logit_scale.exp().float() * torch.einsum("nd,nkd->nk", features, texts)
        return scores.cpu(), torch.ones(len(candidates), dtype=torch.long)

    def _text_directions(self, prompt: str, candidates: tuple[str, ...]) -> Tensor:
        texts = [
            prompt.replace("{}", candidate) if "{}" in prompt else f"{prompt} {candidate}".strip()
            for candidate in candidates
        ]
        inputs = self.processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        features = self.model.get_text_features(**inputs.to(self.model.device)).pooler_output
        return torch.nn.functional.normalize(features.float(), dim=-1)


class Located(NamedTuple):
    """Where a model is, and its revision: a hub's commit, or a hash of the folder's files."""

    source: str
    revision: str


def locate(name: str) -> Located:
    """Find a model, without loading any weights.

    Raises
    ------
    ValueError
        If there is no such folder and no such model on the hub, or the hub does not give it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        digest = hashlib.sha256()
        for path in sorted(folder.iterdir()):
            if path.suffix in _HASHED:
                digest.update(f"{path.name}\n".encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return Located(str(folder), digest.hexdigest())
    try:
        check_hub(name)
        return Located(name, Path(str(cached_file(name, "config.json"))).parent.name)
    except (OSError, ValueError) as error:
        raise _unloadable(name, error) from None


def load_model(name: str, device: str = "auto", max_new_tokens: int = 128) -> TeacherModel:
    """Load a model: bfloat16 on CUDA, float32 on the CPU.

    Parameters
    ----------
    name : str
        Folder, or hub id, of an image-text-to-text model or a CLIP, in safetensors. Those that can also watch
        videos (LLaVA-OneVision, Qwen-VL, SmolVLM, InternVL) need torchvision for it.
    device : str
        As `choose_device` takes it; with ``"auto"`` several GPUs share a model that is too large for one.
    max_new_tokens : int
        Length of a caption at most.

    Raises
    ------
    ValueError
        If it cannot be loaded; the line says how to give a local folder.
    """
    source, revision = locate(name)
    where = choose_device(device)
    on_cuda = where.type == "cuda"
    keywords = _keywords(source, revision)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(source, **keywords)
        is_clip = config.model_type == "clip"
        kind: Any = CLIPModel if is_clip else AutoModelForImageTextToText
        model, report = kind.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            dtype=torch.bfloat16 if on_cuda else torch.float32,
            device_map="auto" if on_cuda and device == "auto" else {"": where},
            output_loading_info=True,
            **keywords,
        )
        # transformers would leave them random.
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"no weights for {missing[0]}")
        if config.is_encoder_decoder:
            raise ValueError("it is an encoder with a decoder, which cannot continue a prompt")
        processor = AutoProcessor.from_pretrained(source, **keywords)
    # A RuntimeError says that shapes do not fit, an ImportError that a processor needs another package.
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise _unloadable(name, error) from None
    model.eval().requires_grad_(False)
    return Clip(model, processor) if is_clip else LanguageModel(model, processor, max_new_tokens)


def load_tokenizer(name: str) -> Any:
    """Load a model's tokenizer, without its weights; errors as `load_model`."""
    source, revision = locate(name)
    try:
        return AutoTokenizer.from_pretrained(source, **_keywords(source, revision))
    except (OSError, ValueError, ImportError) as error:
        raise _unloadable(name, error) from None


def _keywords(source: str, revision: str) -> dict[str, Any]:
    pinned = {} if Path(source).is_dir() else {"revision": revision}
    return {"trust_remote_code": False, **pinned}


def _unloadable(name: str, error: Exception) -> ValueError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ValueError(
        f"teacher.model = {name!r} cannot be loaded ({reason}); give the path of a local folder with "
        "config.json, weights in safetensors, tokenizer and preprocessor_config.json, or the id of an "
        "image-text-to-text model or a CLIP on the hub, when it can be reached"
    )
