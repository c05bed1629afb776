"""Weights & Biases: offline in the run's folder, for ``wandb sync``, unless WANDB_MODE says otherwise."""

import os
from collections.abc import Mapping

from .tracker import RunLog, Tracker


class WandB(Tracker):
    """Logs a history row a round; a resumed run goes on in the same one."""

    name = "wandb"

    def __init__(self, run: RunLog) -> None:
        import wandb

        super().__init__(run)
        self._wandb = wandb

    def begin(self, done: int) -> None:
        """Open the run under its identity. The machine, the code and the console are not recorded."""
        quiet = {"disable_git": True, "save_code": False, "console": "off", "x_disable_machine_info": True}
        self._opened = self._wandb.init(
            project="feddat",
            name=self.run.name,
            id=self.identity,
            config=self.settings,
            dir=str(self.run.folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow",
            settings=self._wandb.Settings(x_disable_stats=True, silent=True, **quiet),
        )

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Log the round."""
        self._opened.log(dict(values), step=server_round)

    def end(self, well: bool) -> None:
        """Close the run."""
        self._opened.finish(exit_code=0 if well else 1)
