"""MLflow: a database in FEDDAT_HOME, unless MLFLOW_TRACKING_URI names a server."""

import os
import time
from collections.abc import Mapping

from app.settings import feddat_home

from .tracker import RunLog, Tracker

EXPERIMENT = "feddat"
IDENTITY = "feddat.identity"
LONGEST = 6000  # characters of a parameter


class MLflow(Tracker):
    """Logs metrics by round; a resumed run goes on in the same one."""

    name = "mlflow"

    def __init__(self, run: RunLog) -> None:
        import mlflow.entities  # noqa: F401

        super().__init__(run)

    def begin(self, done: int) -> None:
        """Find the run by its identity, or make one with the settings as parameters."""
        from mlflow.entities import Param, RunTag
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{feddat_home() / 'mlflow.db'}"
        self._client = MlflowClient(uri)
        found = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
        same = self._client.search_runs([experiment], f"tags.`{IDENTITY}` = '{self.identity}'")
        opened = same[0] if same else self._client.create_run(experiment, run_name=self.run.name)
        self._id = opened.info.run_id
        if same:
            self._client.update_run(self._id, status="RUNNING")
        else:
            params = [Param(key, str(value)[:LONGEST]) for key, value in self.settings.items()]
            self._client.log_batch(self._id, params=params, tags=[RunTag(IDENTITY, self.identity)])

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Log the round, in one call."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, server_round) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def end(self, well: bool) -> None:
        """Close the run."""
        self._client.set_terminated(self._id, "FINISHED" if well else "FAILED")
