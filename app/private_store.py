"""The private states of clients whose Flower project is somebody's own, on their site's disk."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .private_state import PrivateState, Shelf, load_private_state, save_private_state
from .settings import feddat_home


class PrivateStore:
    """Keeps what `Learner.private` gives, over rounds and processes, see `private_state`.

    Parameters
    ----------
    folder : Path or str, optional
        Where the files lie, closed to other users. None: ``FEDDAT_HOME/clients``, or ``~/.feddat/clients``.

    Examples
    --------
    >>> store = PrivateStore("~/project/private")
    >>> client = FedDATClient(get_model(), lora, head="classifier", store=store)
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = Path(folder).expanduser().absolute() if folder else feddat_home() / "clients"

    def load(self, run_id: int, client: int, up_to: int, first: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the newest good state of a round up to `up_to`; `first` if there is none.

        Raises
        ------
        SettingsError
            The folder is a link, another user's or open to others.
        OSError
            A file is there and cannot be read.
        """
        state, _ = load_private_state(self._shelf(run_id, client), up_to, PrivateState.of(first, {}))
        return state.kept

    def save(self, run_id: int, client: int, server_round: int, state: Mapping[str, Tensor]) -> None:
        """Keep the state after a round, whole or not at all; those of older rounds go, but the last three.

        Raises
        ------
        ValueError
            A value is not finite.
        SettingsError, OSError
            The file cannot be written there.
        """
        save_private_state(self._shelf(run_id, client), server_round, PrivateState.of(state, {}))

    def _shelf(self, run_id: int, client: int) -> Shelf:
        return Shelf(self.folder, "run", str(run_id), client)
