"""fedtrainer: model, data and the trainer."""

import random
import tempfile

import torch
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    TrainingArguments,
)

TOPICS = {
    "weather": ["rain", "snow", "storm", "fog", "sun", "wind"],
    "music": ["song", "choir", "piano", "concert", "drum", "album"],
    "travel": ["train", "ticket", "harbour", "flight", "luggage", "map"],
    "food": ["bread", "soup", "recipe", "lunch", "cheese", "apple"],
}
MANNERS = [
    "tell me about the {}",
    "what is there to know of the {} and the {} ?",
    "could you please find a {} today ?",
    "{} , {} , please",
]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def get_tokenizer():
    """Return a tokenizer of whole words."""
    texts = [*MANNERS, *(noun for nouns in TOPICS.values() for noun in nouns)]
    words = dict.fromkeys(word for text in texts for word in text.split() if word != "{}")
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZER = get_tokenizer()
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"], task_type="SEQ_CLS")


def get_model():
    """Return a small RoBERTa, the same everywhere; a larger project has `from_pretrained` here."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RobertaForSequenceClassification(
            RobertaConfig(
                vocab_size=len(TOKENIZER),
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=128,
                max_position_embeddings=32,
                initializer_range=0.1,
                num_labels=len(TOPICS),
                pad_token_id=TOKENIZER.pad_token_id,
            )
        )


def load_data(partition_id, num_partitions):
    """Return a client's examples for training and for test: questions in one manner."""
    rng = random.Random(partition_id)
    manner = MANNERS[partition_id % len(MANNERS)]
    examples = []
    for _ in range(160):
        label = rng.randrange(len(TOPICS))
        nouns = rng.sample(list(TOPICS.values())[label], 2)
        question = TOKENIZER(f"<s> {manner.format(*nouns)} </s>")
        examples.append({"input_ids": question["input_ids"], "labels": label})
    return examples[:128], examples[128:]


def accuracy(predicted):
    """Return the share of right answers, as the trainer wants it."""
    logits, labels = predicted
    return {"accuracy": (logits.argmax(-1) == labels).mean().item()}


def get_trainer(model, context, lr=0.0, train_set=None, test_set=None):
    """Return a trainer that keeps no files."""
    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),
        per_device_train_batch_size=context.run_config["batch-size"],
        num_train_epochs=context.run_config["local-epochs"],
        learning_rate=lr,
        lr_scheduler_type="constant",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=train_set,
        eval_dataset=test_set,
        data_collator=DataCollatorWithPadding(TOKENIZER),
        compute_metrics=accuracy,
    )
