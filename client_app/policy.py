"""What a site lets leave, by its own word: its node-config. No run can set it.

A message's answer is made of the shared adapter's arrays, numbers, the site's name, and errors. Arrays are
the business of `privacy`; this room is for the rest.
"""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from app.measurements import EPOCH, MEASURED, SAID
from app.settings import Settings, SettingsError, one_line_of

log = logging.getLogger("flwr")

# Whatever the site's data are, they are the same.
_ALWAYS = ("state-",)
_COUNTS = ("num-examples", "skipped")
_NAMES = sorted({*MEASURED["train"], *MEASURED["evaluate"], *SAID})
# An open site is a machine of whoever runs the federation, as in a simulation.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "open": {"min-examples": 1, "metric-decimals": 17, "share-weights": "all"},
    "closed": {"min-examples": 10, "metric-decimals": 2, "share-weights": "adapter"},
}
Weights = Literal["adapter", "head", "all"]
_MORE: tuple[Weights, ...] = ("adapter", "head", "all")
# A hub's id, which names nothing on a disk; all else that a run may write there is a path.
_HUB_ID = re.compile(r"(?!\.)[\w.-]+(/(?!\.)[\w.-]+)?")


class PublicError(ValueError):
    """An error whose text may leave the site: it holds nothing of the site's data, files or paths."""


class Policy(BaseModel):
    """A site's policy; a field's key in the node-config is its name with hyphens. Make one with `of`.

    Attributes
    ----------
    policy : str
        "closed": errors say no more than that there was one, and the name is no cell of the data. "open":
        both leave as they are, and nothing is rounded. Default: closed, but open in a simulation.
    site_name : str
        Name in the run's log and report. "": the benchmark's for this partition, or a neutral one.
    min_examples : int
        With fewer the site neither trains nor evaluates. Counts leave rounded down to a multiple of it.
    metric_decimals : int
        Places that losses, scores and seconds are rounded to.
    share_metrics : str
        "all", "none", or names with commas between. "": all, but none under local privacy.
    share_weights : str
        Which weights may leave: the shared "adapter", with it a "head" that all clients have in common, or
        "all": those of the model, as method = "full" sends them, and what else a method may send.
    require_dp : str
        The least differential privacy of a run that the site takes part in.
    max_epsilon, max_delta : float
        With require-dp = "local": the largest ε, at this δ, of a round and of all answers ever, see `budget`.
    require_secure_aggregation : int
        The site trains only where nobody learns more than a sum of so many changes, its own among them. 0:
        its change may leave as it is.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=lambda name: name.replace("_", "-"),
    )

    policy: Literal["open", "closed"]
    site_name: str = Field("", max_length=60)
    min_examples: int = Field(ge=1)
    metric_decimals: int = Field(ge=0, le=17)
    share_metrics: str = ""
    share_weights: Weights
    require_dp: Literal["none", "central", "local"] = "none"
    max_epsilon: float = Field(1.0, gt=0)
    max_delta: float = Field(1e-4, gt=0, lt=1)
    require_secure_aggregation: int = Field(0, ge=0)

    @field_validator("share_metrics")
    @classmethod
    def _known(cls, text: str) -> str:
        names = [name.strip() for name in text.split(",")]
        if text not in ("", "all", "none") and not set(names) <= set(_NAMES):
            short = ", ".join(name for name in _NAMES if EPOCH not in name)
            allowed = f"Input should be 'all', 'none', or of {short}; of an epoch such as ce-student{EPOCH}1"
            raise PydanticCustomError("names", "{allowed}", {"allowed": allowed})
        return ",".join(names)

    @classmethod
    def of(cls, node_config: Mapping[str, Any]) -> "Policy":
        """Read a node-config.

        Raises
        ------
        SettingsError
            One line naming the first key that cannot be used.
        """
        given = {key: node_config[key] for key in POLICY_KEYS if key in node_config}
        kind = given.setdefault("policy", "open" if in_simulation() else "closed")
        try:
            return cls.model_validate({**_DEFAULTS.get(kind, _DEFAULTS["closed"]), **given})
        except ValidationError as error:
            raise SettingsError(f"node-config: {one_line_of(error)}") from None

    def admit_weights(self, sends: Weights) -> None:
        """Raise a PublicError unless these weights may leave."""
        if _MORE.index(sends) > _MORE.index(self.share_weights):
            raise PublicError(
                f"a site has share-weights = {self.share_weights!r}; the run's method and head send {sends!r}"
            )

    def admit(self, settings: Settings, own: Mapping[str, Any]) -> None:
        """Raise a PublicError unless the run is as private as the site wants it.

        Parameters
        ----------
        settings : Settings
            The run's, with the site's own in place.
        own : Mapping
            The node-config. A closed site reads no path that is not in there.
        """
        for key, path in (
            ("data-dir", bool(settings.data_dir)),
            ("backbone", not _HUB_ID.fullmatch(settings.backbone)),
        ):
            if self.policy == "closed" and path and key not in own:
                raise PublicError(f"a site reads no path that a run names: set {key} in its own node-config")
        enough = {"none": True, "central": settings.dp.mode != "none", "local": settings.dp.mode == "local"}
        if not enough[self.require_dp]:
            raise PublicError(
                f"a site has require-dp = {self.require_dp!r}; the run has dp.mode = {settings.dp.mode!r}"
            )
        if (least := self.require_secure_aggregation) and not settings.secure.aggregation:
            raise PublicError(
                f"a site has require-secure-aggregation = {least}; the run has secure.aggregation = false"
            )
        for name in ("epsilon", "delta") if self.require_dp == "local" else ():
            most, asked = getattr(self, f"max_{name}"), getattr(settings.dp, name)
            if asked > most:
                raise PublicError(f"a site has max-{name} = {most:g}; the run has dp.{name} = {asked:g}")

    def require_examples(self, count: int) -> None:
        """Raise a PublicError if there are too few examples."""
        if count < self.min_examples:
            raise PublicError(f"a site has fewer examples than its min-examples = {self.min_examples}")

    def counted(self, count: int) -> int:
        """Return a count of examples as it may leave: rounded down to a multiple of `min_examples`."""
        return count // self.min_examples * self.min_examples

    def told(self, measured: Mapping[str, Any], dp: str) -> dict[str, Any]:
        """Return what may leave of what was measured on the data.

        Parameters
        ----------
        measured : Mapping
            Numbers by name.
        dp : str
            The run's setting.

        Returns
        -------
        dict
            Those that may leave, rounded. The number of examples is 1 where it may not, for it is a weight.
        """
        shared = self.share_metrics or ("none" if dp == "local" else "all")
        told = {}
        for name, value in measured.items():
            if name.startswith(_ALWAYS):
                told[name] = value
            elif shared == "all" or name in shared.split(","):
                told[name] = self.counted(value) if name in _COUNTS else round(value, self.metric_decimals)
            elif name == "num-examples":
                told[name] = 1
        return told

    def name_of(self, partition_id: int, name: str, public: bool) -> str:
        """Return the name by which the site is known; the data's own if it is public, or all is open."""
        return self.site_name or (name if public or self.policy == "open" else f"partition {partition_id}")


POLICY_KEYS = tuple(str(field.alias) for field in Policy.model_fields.values())


def in_simulation() -> bool:
    """Whether this process is a simulation's worker: Ray's. A site's ClientApp never runs in one."""
    return _ray() is not None


def simulated_machines() -> int:
    """How many machines a simulation's workers are on, Ray's nodes; 0 where this process is no worker."""
    ray = _ray()
    return sum(node["Alive"] for node in ray.nodes()) if ray else 0


def _ray() -> Any:
    ray = sys.modules.get("ray")
    return ray if ray is not None and ray.is_initialized() else None


def discreet(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answer; what goes wrong is in the site's log, and leaves it only as far as its policy says."""
    try:
        return call_next(message, context)
    except PublicError:
        raise
    except Exception:
        if _is_open(context):
            raise
        kind, partition = message.metadata.message_type, context.node_config.get("partition-id")
        who = f"partition {partition}" if type(partition) is int else "a node without a partition-id"
        log.exception("%s failed", kind)
    # Outside of the handler: the error that leaves has no trace of the other.
    raise PublicError(f"{kind} failed on {who}: the site's log says why")


def _is_open(context: Context) -> bool:
    try:
        return Policy.of(context.node_config).policy == "open"
    except ValueError:
        return False
