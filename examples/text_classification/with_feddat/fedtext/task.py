"""fedtext: model, data, training and test."""

import random

import torch
from peft import LoraConfig
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, DataCollatorWithPadding

THINGS = {
    "films": ["plot", "cast", "ending", "music", "camera"],
    "meals": ["soup", "rice", "salad", "cake", "sauce"],
    "phones": ["screen", "battery", "button", "speaker", "charger"],
    "hotels": ["room", "bed", "pool", "breakfast", "view"],
}
BAD = ["awful", "dull", "poor", "weak", "terrible", "boring"]
GOOD = ["great", "fine", "lovely", "strong", "superb", "charming"]
FILLERS = ["the", "was", "and", "so", "very", "really", "quite"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

WORDS = [*SPECIAL, *FILLERS, *BAD, *GOOD, *(noun for nouns in THINGS.values() for noun in nouns)]
TOKENIZER = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"], modules_to_save=["classifier"])


def get_model():
    """Return a small BERT, the same everywhere; a larger project has `from_pretrained` here."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(
            BertConfig(
                vocab_size=len(TOKENIZER),
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=128,
                max_position_embeddings=32,
                initializer_range=0.1,
                num_labels=2,
            )
        )


def write_review(rng, nouns):
    """Return a review of two sentences and whether it is a good one."""
    label = rng.randrange(2)
    adjectives = (BAD, GOOD)[label]
    sentences = [
        f"the {noun} was {rng.choice(FILLERS[3:])} {rng.choice(adjectives)}" for noun in rng.sample(nouns, 2)
    ]
    return {**TOKENIZER(" and ".join(sentences)), "labels": label}


def load_data(partition_id, num_partitions, batch_size):
    """Return a client's batches for training and for test: reviews of one kind of thing."""
    rng = random.Random(partition_id)
    nouns = list(THINGS.values())[partition_id % len(THINGS)]
    reviews = [write_review(rng, nouns) for _ in range(160)]
    collate = DataCollatorWithPadding(TOKENIZER)
    trainloader = DataLoader(reviews[:128], batch_size, shuffle=True, collate_fn=collate)
    testloader = DataLoader(reviews[128:], batch_size, collate_fn=collate)
    return trainloader, testloader


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
    """Return the mean loss and the accuracy."""
    model.to(device).eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for batch in testloader:
            outputs = model(**batch.to(device))
            loss += outputs.loss.item()
            correct += (outputs.logits.argmax(-1) == batch["labels"]).sum().item()
    return loss / len(testloader), correct / len(testloader.dataset)
