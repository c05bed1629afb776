"""TensorBoard: event files in the run's folder; ``tensorboard --logdir ~/.feddat/runs`` shows all runs."""

from collections.abc import Mapping

from .tracker import RunLog, Tracker


class TensorBoard(Tracker):
    """Writes a scalar a number, and the settings as a text."""

    name = "tensorboard"

    def __init__(self, run: RunLog) -> None:
        import tensorboard  # noqa: F401

        super().__init__(run)

    def begin(self, done: int) -> None:
        """Open a file; rounds after `done` that an earlier one has are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        folder = self.run.folder / "tensorboard"
        self._writer = SummaryWriter(str(folder), purge_step=done + 1 if done else None)
        lines = [f"    {key} = {value!r}" for key, value in self.settings.items()]
        self._writer.add_text("settings", "\n".join(lines), done)

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Write the round, and see to it that it can be read at once."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, server_round)
        self._writer.flush()

    def end(self, well: bool) -> None:
        """Close the file."""
        self._writer.close()
