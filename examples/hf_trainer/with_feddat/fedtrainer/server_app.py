"""fedtrainer: what the server does."""

from feddat import FedDAT
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file

from fedtrainer.task import LORA, get_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Average what the clients learn, round after round, and keep the result."""
    model = get_peft_model(get_model(), LORA)
    arrays = ArrayRecord(get_peft_model_state_dict(model))

    fraction = context.run_config["fraction-evaluate"]
    strategy = FedDAT(FedAvg(fraction_evaluate=fraction), private=["classifier"], handshake=False)

    result = strategy.start(
        grid=grid,
        initial_arrays=arrays,
        train_config=ConfigRecord({"lr": context.run_config["learning-rate"]}),
        num_rounds=context.run_config["num-server-rounds"],
    )
    save_file(result.arrays.to_torch_state_dict(), context.run_config["save-to"])
