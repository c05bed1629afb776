"""fedlm: what a client does."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from fedlm.dataset import load_data
from fedlm.models import LORA, cosine_annealing, get_model
from fedlm.models import test as test_fn
from fedlm.models import train as train_fn

device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    """Train the model on local data."""
    cfg = context.run_config
    partition_id = context.node_config["partition-id"]
    num_partitions = context.node_config["num-partitions"]
    trainloader, _ = load_data(partition_id, num_partitions, cfg["train.batch-size"])

    model = get_peft_model(get_model(), LORA)
    set_peft_model_state_dict(model, msg.content["arrays"].to_torch_state_dict())

    lr = cosine_annealing(
        msg.content["config"]["server-round"],
        cfg["num-server-rounds"],
        cfg["train.learning-rate-max"],
        cfg["train.learning-rate-min"],
    )
    train_loss = train_fn(model, trainloader, cfg["train.local-epochs"], lr, device)

    metrics = {"train_loss": train_loss, "num-examples": len(trainloader.dataset)}
    arrays = ArrayRecord(get_peft_model_state_dict(model))
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    """Test the model on local data."""
    partition_id = context.node_config["partition-id"]
    num_partitions = context.node_config["num-partitions"]
    _, testloader = load_data(partition_id, num_partitions, context.run_config["train.batch-size"])

    model = get_peft_model(get_model(), LORA)
    set_peft_model_state_dict(model, msg.content["arrays"].to_torch_state_dict())

    loss, accuracy = test_fn(model, testloader, device)

    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(testloader.dataset)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
