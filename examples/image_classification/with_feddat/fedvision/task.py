"""fedvision: model, data, training and test."""

import random

import torch
from peft import LoraConfig
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

SIZE = 24
SHAPES = ["disc", "square", "cross", "bars"]
COLOURS = [("red", "white"), ("blue", "black"), ("yellow", "navy"), ("black", "lime")]  # shape, ground
PROCESSOR = ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})


def get_model():
    """Return a small ViT, the same everywhere; a larger project has `from_pretrained` here."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ViTForImageClassification(
            ViTConfig(
                image_size=SIZE,
                patch_size=8,
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=128,
                initializer_range=0.1,
                num_labels=len(SHAPES),
            )
        )


def get_lora():
    """Return LoRA's configuration: where it goes, and the head that is trained beside it."""
    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])


def draw(rng, shape, colour, ground):
    """Return a picture of a shape, somewhere."""
    picture = Image.new("RGB", (SIZE, SIZE), ground)
    pen, side = ImageDraw.Draw(picture), rng.randint(10, 14)
    x, y = rng.randint(1, SIZE - side - 2), rng.randint(1, SIZE - side - 2)
    third = side // 3
    if shape == "disc":
        pen.ellipse((x, y, x + side, y + side), fill=colour)
    elif shape == "square":
        pen.rectangle((x, y, x + side, y + side), fill=colour)
    elif shape == "cross":
        pen.rectangle((x + third, y, x + 2 * third, y + side), fill=colour)
        pen.rectangle((x, y + third, x + side, y + 2 * third), fill=colour)
    else:
        for top in range(y, y + side, 4):
            pen.rectangle((x, top, x + side, top + 1), fill=colour)
    return picture


def collate(examples):
    """Return a batch of pixels and labels."""
    batch = PROCESSOR([picture for picture, _ in examples], return_tensors="pt")
    batch["labels"] = torch.tensor([label for _, label in examples])
    return batch


def load_data(partition_id, num_partitions, batch_size):
    """Return a client's batches for training and for test: pictures of one colour on another."""
    rng = random.Random(partition_id)
    colours = COLOURS[partition_id % len(COLOURS)]
    labels = [rng.randrange(len(SHAPES)) for _ in range(240)]
    pictures = [(draw(rng, SHAPES[label], *colours), label) for label in labels]
    trainloader = DataLoader(pictures[:192], batch_size, shuffle=True, collate_fn=collate)
    testloader = DataLoader(pictures[192:], batch_size, collate_fn=collate)
    return trainloader, testloader


def train(model, trainloader, epochs, lr, device):
    """Train all that is not frozen, and return the mean loss."""
    criterion = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=lr)
    model.to(device).train()
    total = 0.0
    for _ in range(epochs):
        for batch in trainloader:
            images, labels = batch["pixel_values"].to(device), batch["labels"].to(device)
            optimizer.zero_grad()
            loss = criterion(model(pixel_values=images).logits, labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / (epochs * len(trainloader))


def test(model, testloader, device):
    """Return the mean loss and the accuracy."""
    criterion = torch.nn.CrossEntropyLoss()
    model.to(device).eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for batch in testloader:
            images, labels = batch["pixel_values"].to(device), batch["labels"].to(device)
            logits = model(pixel_values=images).logits
            loss += criterion(logits, labels).item()
            correct += (logits.argmax(-1) == labels).sum().item()
    return loss / len(testloader), correct / len(testloader.dataset)
