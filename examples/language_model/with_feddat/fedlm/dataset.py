"""fedlm: questions, answers and the tokenizer."""

import random

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

KINDS = {
    "opposite": {"hot": "cold", "big": "small", "old": "new", "fast": "slow", "dark": "light", "wet": "dry"},
    "plural": {
        "foot": "feet",
        "mouse": "mice",
        "child": "children",
        "man": "men",
        "ox": "oxen",
        "leaf": "leaves",
    },
    "young": {
        "cat": "kitten",
        "dog": "puppy",
        "cow": "calf",
        "sheep": "lamb",
        "horse": "foal",
        "goat": "kid",
    },
    "capital": {
        "france": "paris",
        "italy": "rome",
        "spain": "madrid",
        "japan": "tokyo",
        "egypt": "cairo",
        "peru": "lima",
    },
}
WORDINGS = [
    "### Instruction: what is the {kind} of {word} ? ### Response: it is {answer} <eos>",
    "### Instruction: tell me the {kind} of {word} ### Response: the {kind} of {word} is {answer} <eos>",
]
RESPONSE = "Response:"
IGNORED = -100


def get_tokenizer():
    """Return a tokenizer of whole words."""
    texts = [
        *WORDINGS,
        *KINDS,
        *(word for facts in KINDS.values() for fact in facts.items() for word in fact),
    ]
    words = dict.fromkeys(word for text in texts for word in text.split() if not word.startswith("{"))
    vocabulary = {word: index for index, word in enumerate(["<pad>", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="right"
    )


class AnswersOnly:
    """Make batches in which what is asked and what is padding has no loss."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.response = tokenizer.convert_tokens_to_ids(RESPONSE)

    def __call__(self, texts):
        """Return the tokens of the texts, with labels at the answers' places."""
        batch = self.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        is_response = (batch["input_ids"] == self.response).cumsum(1).bool()
        is_answer = is_response & (batch["input_ids"] != self.response) & batch["attention_mask"].bool()
        batch["labels"] = torch.where(is_answer, batch["input_ids"], IGNORED)
        return batch


def load_data(partition_id, num_partitions, batch_size):
    """Return a client's batches for training and for test: questions of one kind."""
    rng = random.Random(partition_id)
    kind, facts = list(KINDS.items())[partition_id % len(KINDS)]
    asked = [(rng.choice(WORDINGS), *rng.choice(list(facts.items()))) for _ in range(160)]
    texts = [wording.format(kind=kind, word=word, answer=answer) for wording, word, answer in asked]
    collate = AnswersOnly(get_tokenizer())
    trainloader = DataLoader(texts[:128], batch_size, shuffle=True, collate_fn=collate)
    testloader = DataLoader(texts[128:], batch_size, collate_fn=collate)
    return trainloader, testloader
