"""fedtext: what a client does."""

import torch
from feddat import FedDATClient
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedtext.task import LORA, get_model, load_data
from fedtext.task import test as test_fn

device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

app = ClientApp()
client = FedDATClient(get_model(), LORA, "classifier", device=device)


@app.train()
def train(msg: Message, context: Context):
    """Train the model on local data."""
    client.load(msg, context)

    partition_id = context.node_config["partition-id"]
    num_partitions = context.node_config["num-partitions"]
    trainloader, _ = load_data(partition_id, num_partitions, context.run_config["batch-size"])

    epochs, lr = context.run_config["local-epochs"], msg.content["config"]["lr"]
    return client.reply(msg, context, client.fit(trainloader, lr, epochs=epochs))


@app.evaluate()
def evaluate(msg: Message, context: Context):
    """Test the model on local data."""
    client.load(msg, context)

    partition_id = context.node_config["partition-id"]
    num_partitions = context.node_config["num-partitions"]
    _, testloader = load_data(partition_id, num_partitions, context.run_config["batch-size"])

    with client.dual.branch("student"):
        loss, accuracy = test_fn(client.dual.model, testloader, device)

    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(testloader.dataset)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
