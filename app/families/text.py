"""Language models alone: encoders such as BERT, and decoders such as Llama; the image is not seen."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..processor import Processor, load_processor
from .family import Family, Inputs

# Longer questions are cut: a batch is as long as its longest text, and its memory follows.
LONGEST = 512


class TextEncoder(Family):
    """An encoder whose first token stands for the text (Devlin et al., 2019, arXiv 1810.04805)."""

    architectures = {"bert": "BertModel", "roberta": "RobertaModel", "distilbert": "DistilBertModel"}
    words = "a BERT, RoBERTa or DistilBERT"
    lora_targets = r".*\.(query|value|q_lin|v_lin)"
    purpose = "text-classification"

    def missing(self, model: Any, keys: set[str]) -> set[str]:
        """Do without the pooler, which is not used."""
        return {key for key in keys if not key.startswith("pooler.")}

    def prepare(self, model: Any) -> Any:
        """Take the pooler off: where a checkpoint has none, each process would draw other weights."""
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        return model

    def processor(self, folder: str | Path, config: Any) -> Processor:
        """Say how its inputs are made."""
        # RoBERTa counts positions from behind its padding token's id.
        offset = config.pad_token_id + 1 if config.model_type == "roberta" else 0
        length = min(LONGEST, config.max_position_embeddings - offset)
        return load_processor(folder, image_size=0, text_length=length)

    def features(self, model: Any, inputs: Inputs) -> Tensor:
        """Compute the first token's hidden states (batch, width)."""
        output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        return output.last_hidden_state[:, 0]

    def stock_code(self, model: Any, processor: Processor) -> str:
        """Return lines to the first token's hidden states."""
        return "features = model(**inputs).last_hidden_state[:, 0]"


class TextDecoder(Family):
    """A causal language model whose last token has read all of the text."""

    architectures = {
        "gpt2": "GPT2Model",
        "llama": "LlamaModel",
        "mistral": "MistralModel",
        "qwen2": "Qwen2Model",
    }
    words = "a GPT-2, Llama, Mistral or Qwen2"
    lora_targets = r".*\.(q_proj|v_proj|c_attn)"
    purpose = "text-classification"

    def processor(self, folder: str | Path, config: Any) -> Processor:
        """Say how its inputs are made."""
        length = min(LONGEST, config.max_position_embeddings)
        return load_processor(folder, image_size=0, text_length=length)

    def features(self, model: Any, inputs: Inputs) -> Tensor:
        """Compute the hidden states of each text's last token (batch, width)."""
        mask = inputs["attention_mask"]
        output = model(input_ids=inputs["input_ids"], attention_mask=mask, use_cache=False)
        last = mask.sum(1) - 1
        return output.last_hidden_state[torch.arange(len(last), device=last.device), last]

    def stock_code(self, model: Any, processor: Processor) -> str:
        """Return lines to the last token's hidden states; a text alone has no padding."""
        return "features = model(**inputs).last_hidden_state[:, -1]"
