"""fedlm: what the server does."""

from feddat import FedDAT
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file

from fedlm.models import LORA, get_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Average what the clients learn, round after round, and keep the adapter of the last one."""
    cfg = context.run_config
    num_rounds = cfg["num-server-rounds"]
    model = get_peft_model(get_model(), LORA)

    strategy = FedAvg(
        fraction_train=cfg["strategy.fraction-train"],
        fraction_evaluate=cfg["strategy.fraction-evaluate"],
    )

    def keep(server_round: int, arrays: ArrayRecord) -> None:
        if server_round == num_rounds:
            save_file(arrays.to_torch_state_dict(), cfg["save-to"])

    strategy = FedDAT(strategy, handshake=False)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(get_peft_model_state_dict(model)),
        num_rounds=num_rounds,
        evaluate_fn=keep,
    )
