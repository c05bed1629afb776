"""All settings of a run, and which of them go together across concerns."""

from collections.abc import Iterator
from typing import Any, Self

from pydantic import model_validator
from pydantic.fields import FieldInfo

from .alignment import AlignSettings
from .data import DataSettings
from .federation import FederationSettings
from .method import MethodSettings
from .model import ModelSettings
from .personal import PersonalSettings
from .pretraining import PretrainSettings
from .privacy import PrivacySettings
from .public import PublicSettings
from .run import RunSettings
from .section import Section
from .secure import SecureSettings
from .teacher import TeacherSettings
from .training import SPREAD, TrainingSettings
from .writing import WritingSettings


class Settings(  # pydantic takes the last one's fields first
    FederationSettings,
    DataSettings,
    TrainingSettings,
    ModelSettings,
    MethodSettings,
    RunSettings,
):
    """All settings of a run. Build one with `read_settings`.

    ``settings.num_rounds`` is the setting ``num-rounds``, ``settings.align.batch_size`` is
    ``align.batch-size``.
    """

    personal: PersonalSettings
    pretrain: PretrainSettings
    dp: PrivacySettings
    secure: SecureSettings
    align: AlignSettings
    teacher: TeacherSettings
    public: PublicSettings
    writing: WritingSettings

    def run_config(self) -> dict[str, Any]:
        """Return all settings by key, flat, as Flower's run-config has them."""
        flat: dict[str, Any] = {}
        for key, value in self.model_dump(by_alias=True).items():
            section = isinstance(value, dict)
            flat |= {f"{key}.{own}": one for own, one in value.items()} if section else {key: value}
        return flat

    @classmethod
    def sections(cls) -> dict[str, type[Section]]:
        """Return the sections by name."""
        kinds = {name: field.annotation for name, field in cls.model_fields.items()}
        return {
            name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)
        }

    @classmethod
    def fields(cls) -> dict[str, FieldInfo]:
        """Return what is declared of each setting, by its key in the run-config."""
        sections = cls.sections()

        def keyed() -> Iterator[tuple[str, FieldInfo]]:
            for name, field in cls.model_fields.items():
                if name not in sections:
                    yield str(field.alias), field
            for name, kind in sections.items():
                for field in kind.model_fields.values():
                    yield f"{name}.{field.alias}", field

        return dict(keyed())

    @property
    def trains_head(self) -> bool:
        """Whether answers come from a head that has to be trained first."""
        from ..heads import TRAINED_HEADS  # it imports this folder

        return self.loss != "next-token" and self.head in TRAINED_HEADS

    @model_validator(mode="after")
    def _check_across(self) -> Self:
        from ..methods import METHODS  # it imports this folder

        dp, align = self.dp.mode, self.align
        central, writes = dp not in ("none", "local"), self.loss == "next-token"
        return self.refuse(
            *METHODS[self.method].problems(self),
            (
                self.gradient_accumulation > 1
                and METHODS[self.method].two_updates
                and self.update == "alternating"
                and self.trains_head,
                f"gradient-accumulation = {self.gradient_accumulation} with method = {self.method!r}, whose"
                " second update takes the head as the first has moved it; allowed: 1, or update = 'joint'"
                " with method = 'feddat'",
            ),
            *self.secure.problems(self),
            *(
                (
                    METHODS[self.method].combine is not None and wrong,
                    f"{key} = {value!r} with method = {self.method!r}, which combines replies by itself;"
                    f" allowed: {allowed}",
                )
                for key, value, wrong, allowed in (
                    (
                        "strategy",
                        self.strategy,
                        self.strategy in ("fedmedian", "fedtrimmedavg", "krum"),
                        "strategies that average",
                    ),
                    ("dp.mode", dp, dp != "none", "'none'"),
                    (
                        "wire-precision",
                        self.wire_precision,
                        self.wire_precision != "float32",
                        "'float32'",
                    ),
                    ("secure.aggregation", True, self.secure.aggregation, "false"),
                )
            ),
            (
                align.when != "none" and align.beta == 0 and align.labels == "none" and not writes,
                "align.labels = 'none' with align.beta = 0.0 leaves nothing to align by; allowed: one alone",
            ),
            (
                align.when != "none" and align.beta > 0 and not self.teacher.model,
                f"teacher.model = '' with align.when = {align.when!r}; allowed: a folder, a hub id, a parquet"
                " file of annotations, or align.beta = 0.0 to align by labels alone",
            ),
            (
                self.head == "shared" and self.evaluate_on != "test",
                f"evaluate-on = {self.evaluate_on!r} with head = 'shared', which is scored on the benchmark's"
                " whole test set; allowed: 'test'",
            ),
            (
                align.part == "head" and self.head != "shared",
                f"align.part = 'head' with head = {self.head!r}, where the server has no head that travels;"
                " allowed: 'all', or head = 'shared'",
            ),
            *(
                (writes and wrong, f"{what} with loss = 'next-token'; allowed: {allowed}")
                for wrong, what, allowed in (
                    (
                        self.head != "private",
                        f"head = {self.head!r}",
                        "'private': the backbone's own stays as it is",
                    ),
                    *(
                        (align.when != "none" and wrong, f"{what} and align.when = {align.when!r}", allowed)
                        for wrong, what, allowed in (
                            (align.target != "teacher", f"align.target = {align.target!r}", "'teacher'"),
                            (
                                align.labels == "none" and not self.teacher.model,
                                "teacher.model = '', align.labels = 'none'",
                                "a teacher model that writes, or align.labels = 'true'",
                            ),
                            (
                                self.teacher.margin > 0,
                                f"teacher.margin = {self.teacher.margin}",
                                "0.0: there are no candidates",
                            ),
                            (
                                self.teacher.temperature != 1,
                                f"teacher.temperature = {self.teacher.temperature}",
                                "1.0; align.temperature softens both",
                            ),
                        )
                    ),
                    (self.pretrain.part != "none", f"pretrain.part = {self.pretrain.part!r}", "'none'"),
                    (self.augment, "augment = true", "false"),
                )
            ),
            (
                self.backbone_precision == "nf4" and self.device == "cpu",
                "backbone-precision = 'nf4' with device = 'cpu'; allowed: 'int8', or a device with CUDA",
            ),
            (
                self.server_device in SPREAD,
                f"server-device = {self.server_device!r}; allowed: 'auto', 'cpu', 'cuda', 'cuda:N'",
            ),
            (
                bool(self.device_map) and not writes,
                f"device = {self.device!r} with loss = {self.loss!r}; allowed: one device, or loss ="
                " 'next-token' with a backbone that writes",
            ),
            (
                bool(self.device_map) and self.backbone_weights == "random",
                f"device = {self.device!r} with backbone-weights = 'random', which are of no file; allowed:"
                " one device, or 'pretrained'",
            ),
            (
                not writes and self.adapted_parts != "language",
                f"adapted-parts = {self.adapted_parts!r} with loss = {self.loss!r}; allowed: 'language', or"
                " loss = 'next-token'",
            ),
            (
                0 < self.num_clients < self.min_clients,
                f"min-clients = {self.min_clients} with num-clients = {self.num_clients};"
                f" allowed: at most num-clients",
            ),
            (
                central and self.strategy not in ("fedavg", "fedprox"),
                f"dp.mode = {dp!r} with strategy = {self.strategy!r}; allowed: 'fedavg' and 'fedprox', for"
                " whose plain mean its noise is made",
            ),
            (
                central and self.weighting != "uniform",
                f"dp.mode = {dp!r} with weighting = {self.weighting!r}; allowed: 'uniform', the plain mean"
                " for which its noise is made",
            ),
            (
                central and self.num_clients == 0,
                f"num-clients = 0 with dp.mode = {dp!r}; allowed: the number of clients, for which its noise"
                " is made whoever replies",
            ),
            (
                dp == "local" and self.weighting != "uniform",
                f"dp.mode = 'local' with weighting = {self.weighting!r}; allowed: 'uniform', since clients do"
                " not say how many examples they have",
            ),
            (
                self.wire_precision != "float32" and dp in ("client-fixed", "client-adaptive", "local"),
                f"wire-precision = {self.wire_precision!r} with dp.mode = {dp!r} would change what a client"
                " has clipped; allowed: 'float32', or a dp.mode at the server",
            ),
        )
