"""fedlm: what a client does."""

import torch
from feddat import FedDATClient
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedlm.dataset import load_data
from fedlm.models import LORA, cosine_annealing, get_model
from fedlm.models import test as test_fn

device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

app = ClientApp()
client = FedDATClient(get_model(), LORA, loss="next-token", device=device)


@app.train()
def train(msg: Message, context: Context):
    """Train the model on local data."""
    cfg = context.run_config
    partition_id = context.node_config["partition-id"]
    num_partitions = context.node_config["num-partitions"]
    trainloader, _ = load_data(partition_id, num_partitions, cfg["train.batch-size"])

    client.load(msg, context)

    lr = cosine_annealing(
        msg.content["config"]["server-round"],
        cfg["num-server-rounds"],
        cfg["train.learning-rate-max"],
        cfg["train.learning-rate-min"],
    )
    metrics = client.fit(trainloader, lr, epochs=cfg["train.local-epochs"])
    return client.reply(msg, context, metrics)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    """Test the model on local data."""
    partition_id = context.node_config["partition-id"]
    num_partitions = context.node_config["num-partitions"]
    _, testloader = load_data(partition_id, num_partitions, context.run_config["train.batch-size"])

    client.load(msg, context)

    with client.dual.branch("student"):
        loss, accuracy = test_fn(client.dual.model, testloader, device)

    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(testloader.dataset)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
