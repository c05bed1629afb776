"""fedtrainer: what a client does."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from fedtrainer.task import LORA, get_model, get_trainer, load_data

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    """Train the model on local data."""
    model = get_peft_model(get_model(), LORA)
    set_peft_model_state_dict(model, msg.content["arrays"].to_torch_state_dict())

    train_set, _ = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    trainer = get_trainer(model, context, lr=msg.content["config"]["lr"], train_set=train_set)
    train_loss = trainer.train().training_loss

    metrics = {"train_loss": train_loss, "num-examples": len(train_set)}
    arrays = ArrayRecord(get_peft_model_state_dict(model))
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    """Test the model on local data."""
    model = get_peft_model(get_model(), LORA)
    set_peft_model_state_dict(model, msg.content["arrays"].to_torch_state_dict())

    _, test_set = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    trainer = get_trainer(model, context, test_set=test_set)
    found = trainer.evaluate()

    metrics = {
        "eval_loss": found["eval_loss"],
        "eval_acc": found["eval_accuracy"],
        "num-examples": len(test_set),
    }
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
