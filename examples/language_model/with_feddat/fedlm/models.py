"""fedlm: the model, LoRA and the learning rate."""

import math

import torch
from peft import LoraConfig
from transformers import Qwen2Config, Qwen2ForCausalLM

from fedlm.dataset import get_tokenizer

LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")


def get_model():
    """Return a small Qwen2, the same everywhere; a larger project has `from_pretrained` here."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(get_tokenizer()),
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                intermediate_size=128,
                initializer_range=0.1,
            )
        )


def cosine_annealing(server_round, num_rounds, lr_max, lr_min):
    """Return the learning rate of a round, counted from 1: it falls from `lr_max` towards `lr_min`."""
    return lr_min + 0.5 * (lr_max - lr_min) * (1 + math.cos(math.pi * (server_round - 1) / num_rounds))


def train(model, trainloader, epochs, lr, device):
    """Train all that is not frozen, and return the mean loss."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=lr)
    model.to(device).train()
    total = 0.0
    for _ in range(epochs):
        for batch in trainloader:
            loss = model(**batch.to(device)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item()
    return total / (epochs * len(trainloader))


def test(model, testloader, device):
    """Return the mean loss and the share of the answers' tokens that are told right."""
    model.to(device).eval()
    loss, correct, count = 0.0, 0, 0
    with torch.no_grad():
        for batch in testloader:
            outputs = model(**batch.to(device))
            loss += outputs.loss.item()
            told, labels = outputs.logits[:, :-1].argmax(-1), batch["labels"][:, 1:]
            correct += (told == labels).sum().item()
            count += (labels >= 0).sum().item()
    return loss / len(testloader), correct / count
