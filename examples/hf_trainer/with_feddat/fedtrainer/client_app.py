"""fedtrainer: what a client does."""

from feddat import FedDATClient
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedtrainer.task import LORA, get_model, get_trainer, load_data

app = ClientApp()
client = FedDATClient(get_model(), LORA, "classifier")


@app.train()
def train(msg: Message, context: Context):
    """Train the model on local data."""
    client.load(msg, context)

    train_set, _ = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    trainer = get_trainer(client.dual.model, context, lr=msg.content["config"]["lr"], train_set=train_set)
    loader, epochs = trainer.get_train_dataloader(), context.run_config["local-epochs"]
    return client.reply(msg, context, client.fit(loader, trainer.args.learning_rate, epochs=epochs))


@app.evaluate()
def evaluate(msg: Message, context: Context):
    """Test the model on local data."""
    client.load(msg, context)

    _, test_set = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    trainer = get_trainer(client.dual.model, context, test_set=test_set)
    with client.dual.branch("student"):
        found = trainer.evaluate()

    metrics = {
        "eval_loss": found["eval_loss"],
        "eval_acc": found["eval_accuracy"],
        "num-examples": len(test_set),
    }
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
