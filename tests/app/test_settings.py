"""Settings: documented once, typed, and refused in one line that says what is allowed."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
from flwr.common.config import get_fused_config_from_dir

from app.settings import OLD_NAMES, Settings, SettingsError, feddat_home, read_settings

PYPROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
DEFAULTS = get_fused_config_from_dir(Path(__file__).parents[2], {})


def refusal(**changes):
    """Return the refusal of the defaults with changes; `_` stands for `-`."""
    with pytest.raises(SettingsError) as error:
        read_settings({**DEFAULTS, **{key.replace("_", "-"): value for key, value in changes.items()}})
    message = str(error.value)
    assert "\n" not in message
    return message


class TestDocumentation:
    def test_keys_are_the_settings(self):
        assert list(DEFAULTS) == list(Settings.fields())

    def test_every_key_has_a_comment_above_it(self):
        documented, section = set(), ""
        for above, line in pairwise(PYPROJECT.split("[tool.flwr.app.config]\n")[1].splitlines()):
            if line.startswith("["):
                section = line.removeprefix("[tool.flwr.app.config.").replace("]", ".")
            elif "=" in line and above.startswith("# ") and "---" not in above:
                documented.add(section + line.split(" = ")[0])
        assert documented >= set(DEFAULTS)

    def test_defaults_are_valid_and_kept(self):
        settings = read_settings(DEFAULTS)
        assert settings.run_config() == DEFAULTS


WORDS = ("loss", "update", "step", "backbone-weights", "adapter", "split-by", "on-bad-row")
WORDS = (*WORDS, "strategy", "weighting", "dp.mode", "pretrain.part", "wire-precision")
COUNTS = ("num-rounds", "reduction-factor", "lora-rank", "batch-size", "local-epochs", "evaluate-every")
COUNTS = (*COUNTS, "min-clients", "pretrain.steps")
SIZES = ("seed", "num-clients", "train-examples", "test-examples")  # 0 is allowed
POSITIVE = ("wait-seconds", "round-timeout", "temperature", "learning-rate", "dirichlet-alpha")
POSITIVE = (*POSITIVE, "server-learning-rate", "fraction-train", "max-change", "pretrain.learning-rate")
POSITIVE = (*POSITIVE, "dp.clipping-norm", "dp.noise-multiplier")
WEIGHTS = (
    "alpha",
    "beta",
    "weight-decay",
    "warmup",
    "proximal-mu",
    "server-momentum",
    "max-failure-rate",
    "clip-change",
)  # 0 is allowed
TEXTS = ("run-name", "resume", "backbone", "device", "benchmark", "heterogeneity", "data-dir")
TEXTS = (*TEXTS, "pretrain.encoder", "pretrain.language-model")

NO_INTEGER = [(value, "a whole number") for value in (True, False, 1.5, "3", "many")]
NO_NUMBER = [(True, "a number"), ("0.1", "a number"), (math.nan, "finite"), (math.inf, "finite")]
WRONG = [
    *[("method", value, "'adapter', 'bias', ") for value in ("nonsense", "", "FEDDAT")],
    *[(key, value, DEFAULTS[key]) for key in WORDS for value in ("nonsense", "", 1, DEFAULTS[key].upper())],
    *[(key, value, "greater than 0") for key in COUNTS for value in (0, -1)],
    *[(key, -1, "greater than or equal to 0") for key in SIZES],
    *[(key, value, said) for key in (*COUNTS, *SIZES, "num-answers") for value, said in NO_INTEGER],
    *[(key, value, "greater than 0") for key in POSITIVE for value in (0, 0.0, -0.5)],
    *[(key, -0.5, "greater than or equal to 0") for key in WEIGHTS],
    *[(key, value, said) for key in (*POSITIVE, *WEIGHTS) for value, said in [*NO_NUMBER, (-math.inf, "")]],
    *[(key, value, "a text") for key in TEXTS for value in (1, True)],
    *[
        (key, name, "letters, digits, '.', '_' and '-'")
        for key in ("run-name", "resume")
        for name in ("a/b", "..", "../a", ".hidden", "a b", "a\n", "é", "a\\b")
    ],
    *[(key, "a" * 101, "100") for key in ("run-name", "resume")],
    *[(key, 1.0, "less than 1") for key in ("dp.epsilon", "dp.delta")],
    *[(key, 0.0, "greater than 0") for key in ("dp.epsilon", "dp.delta")],
    ("backbone", "", "at least 1"),
    ("seed", 2**31, str(2**31)),
    ("num-answers", 1, "greater than 1"),
    ("pretrain.images", 1, "greater than 1"),
    ("warmup", 1.0, "less than 1"),
    ("server-momentum", 1.0, "less than 1"),
    ("fraction-train", 1.01, "less than or equal to 1"),
    ("max-failure-rate", 1.01, "less than or equal to 1"),
]


@pytest.mark.parametrize(("key", "value", "said"), WRONG)
def test_a_wrong_value_is_refused_in_one_line(key, value, said):
    message = refusal(**{key: value})
    assert message.startswith(f"{key} = {value!r}; allowed: ")
    assert said in message.partition("; allowed: ")[2]


def test_the_words_of_a_setting_are_all_named():
    message = refusal(strategy="fedsgd")
    for word in ("fedavg", "fedprox", "fedadam", "krum"):
        assert repr(word) in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[
            (key, 1)
            for key in (*POSITIVE, *WEIGHTS)
            if key not in ("warmup", "proximal-mu", "server-momentum")
        ],
        *[(key, 0) for key in (*WEIGHTS, *SIZES)],
        ("fraction-train", 1.0),
        ("warmup", 0.99),
        ("seed", 2**31 - 1),
        ("num-answers", 2),
        ("run-name", ""),
        ("run-name", "lora-8_seed.1"),
        ("run-name", "a" * 100),
        ("strategy", "krum"),
        ("method", "adapter"),
        ("data-dir", "/data"),
        ("data-dir", "~/data"),
    ],
)
def test_an_allowed_value_is_kept(key, value):
    assert read_settings({**DEFAULTS, key: value}).run_config()[key] == value


def test_an_integer_for_a_number_becomes_one():
    # Flower's command line reads `learning-rate=1` as an integer.
    assert isinstance(read_settings({**DEFAULTS, "learning-rate": 1}).learning_rate, float)


def test_an_unknown_key_is_refused_with_the_known_ones():
    message = refusal(learning_rat=0.1)
    assert message.startswith("learning-rat = 0.1 is not a setting; allowed: adapted-parts, adapter, ")
    assert "learning-rate" in message
    # The name of the field is not its key.
    with pytest.raises(SettingsError, match=r"^learning_rate = 0\.1 is not a setting"):
        read_settings({**DEFAULTS, "learning_rate": 0.1})


@pytest.mark.parametrize(
    "key", ["align.stepz", "Align.steps", "align.steps.more", "seed.steps", "public", "align."]
)
def test_a_key_that_only_looks_like_one_of_a_section_is_refused_as_it_was_written(key):
    assert refusal(**{key: 5}).startswith(f"{key} = 5 is not a setting; allowed: adapted-parts, adapter, ")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("align-steps", "align.steps"),
        ("align-learning-rate", "align.learning-rate"),
        ("align", "align.when"),
        ("dp", "dp.mode"),
        ("dp-noise-multiplier", "dp.noise-multiplier"),
        ("pretrain", "pretrain.part"),
        ("pretrain-language-model", "pretrain.language-model"),
        ("teacher", "teacher.model"),
        ("teacher-prompt", "teacher.prompt"),
        ("caption-prompt", "teacher.caption-prompt"),
        ("public-examples", "public.examples"),
    ],
)
def test_an_old_name_is_refused_with_the_new_one(old, new):
    """Also where the new one is missing, as in what an old run has recorded."""
    assert refusal(**{old: 1}) == f"{old} is now {new}"
    recorded = {key: value for key, value in DEFAULTS.items() if key != new}
    with pytest.raises(SettingsError, match=f"^{old} is now {new}$"):
        read_settings({**recorded, old: DEFAULTS[new]})


def test_every_old_name_leads_to_a_setting_and_none_is_one():
    assert len(OLD_NAMES) == len(set(OLD_NAMES.values())) == 29
    assert set(OLD_NAMES.values()) <= set(DEFAULTS)
    assert not OLD_NAMES.keys() & DEFAULTS.keys()


@pytest.mark.parametrize("key", DEFAULTS)
def test_a_missing_key_is_named(key):
    with pytest.raises(SettingsError, match=f"^{key} is missing from the run-config$"):
        read_settings({other: value for other, value in DEFAULTS.items() if other != key})


@pytest.mark.parametrize(
    ("changes", "names", "allowed"),
    [
        ({"method": "adapter", "step": "reference"}, "step = 'reference'", "method = 'feddat'"),
        ({"update": "joint", "method": "adapter"}, "update = 'joint'", "method = 'feddat'"),
        ({"proximal-mu": 0.5}, "proximal-mu = 0.5", "strategy = 'fedprox'"),
        ({"weighting": "num-examples", "strategy": "krum"}, "weighting = 'num-examples'", "'uniform'"),
        (
            {"dp.mode": "server-fixed", "strategy": "fedmedian"},
            "dp.mode = 'server-fixed' with strategy",
            "'fedavg'",
        ),
        ({"dp.mode": "client-adaptive", "strategy": "fedadam"}, "dp.mode = 'client-adaptive'", "'fedprox'"),
        ({"dp.mode": "server-fixed", "weighting": "num-examples"}, "dp.mode = 'server-fixed'", "'uniform'"),
        ({"resume": "one", "run-name": "two"}, "run-name = 'two' with resume = 'one'", "''"),
        ({"update": "joint", "step": "reference"}, "update = 'joint'", "step = 'fast'"),
        (
            {"dp.mode": "server-fixed"},
            "num-clients = 0 with dp.mode = 'server-fixed'",
            "the number of clients",
        ),
        ({"dp.mode": "local", "weighting": "num-examples"}, "dp.mode = 'local' with weighting", "'uniform'"),
        ({"strategy": "fedprox"}, "proximal-mu = 0", "more than 0"),
        (
            {"wire-precision": "int8", "method": "full", "head": "shared"},
            "wire-precision = 'int8'",
            "float32",
        ),
        (
            {"wire-precision": "int4", "dp.mode": "client-fixed", "num-clients": 3},
            "wire-precision = 'int4' with dp.mode",
            "'float32'",
        ),
        (
            {"wire-precision": "bfloat16", "dp.mode": "local"},
            "wire-precision = 'bfloat16' with dp.mode",
            "at the server",
        ),
        ({"num-clients": 3, "min-clients": 4}, "min-clients = 4", "at most num-clients"),
        *(
            ({"secure.aggregation": True, **changes}, f"{names} with secure.aggregation = true", allowed)
            for changes, names, allowed in (
                ({"strategy": "krum"}, "strategy = 'krum'", "strategies that average"),
                ({"weighting": "num-examples"}, "weighting = 'num-examples'", "'uniform'"),
                (
                    {"dp.mode": "client-fixed", "num-clients": 3},
                    "dp.mode = 'client-fixed'",
                    "'none' or 'local'",
                ),
                # σ = 2 √(2 ln 125000) / 0.5 = 19.4
                ({"dp.mode": "local", "secure.range": 77.0}, "secure.range = 77", "4 times that"),
                ({"wire-precision": "int8"}, "wire-precision = 'int8'", "'float32'"),
                ({"private-state": "context"}, "private-state = 'context'", "'files'"),
                (
                    {"num-clients": 5, "fraction-train": 0.5},
                    "num-clients = 5, fraction-train = 0.5",
                    "3 clients in a round",
                ),
            )
        ),
        (
            {"secure.aggregation": True, "method": "padded-lora", "adapter": "lora"},
            "secure.aggregation = True with method = 'padded-lora'",
            "false",
        ),
        (
            {"secure.aggregation": True, "method": "full", "head": "shared"},
            "secure.aggregation = true with method = 'full'",
            "false",
        ),
        (
            {"node-partitions": "0=7 00=8"},
            "node-partitions = '0=7 00=8'",
            "each partition and each node once",
        ),
        ({"node-partitions": "0=7 1=7"}, "node-partitions = '0=7 1=7'", "each partition and each node once"),
        (
            {"pretrain.part": "backbone"},
            "pretrain.part = 'backbone'",
            "python -m server_app.pretraining dynamic",
        ),
        ({"pretrain.part": "adapter"}, "pretrain.encoder = ''", "CLIP"),
        ({"pretrain.encoder": "/llava"}, "pretrain.encoder = '/llava'", "pretrain.part = 'adapter'"),
        (
            {"pretrain.language-model": "/llama"},
            "pretrain.language-model = '/llama'",
            "pretrain.part = 'adapter'",
        ),
        ({"data_dir": "data/vqa"}, "data-dir = 'data/vqa'", "absolute path"),
        ({"data_dir": "a\nb"}, r"data-dir = 'a\nb'", "absolute path"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, names, allowed):
    message = refusal(**changes)
    assert message.startswith(names)
    assert allowed in message.partition("; allowed")[2]


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "reference"},
        {"num-clients": 3, "min-clients": 3},
        {"wire-precision": "int4", "dp.mode": "server-fixed", "num-clients": 3},
        {"update": "joint"},
        {"secure.aggregation": True, "strategy": "fedadam", "num-clients": 3},
        {"secure.aggregation": True, "dp.mode": "local", "secure.range": 78.0},
        {"node-partitions": "0=7 1=18446744073709551615"},
        {"strategy": "fedprox", "proximal-mu": 0.01},
        {"benchmark": "vqa-domains", "data-dir": "/data"},
    ],
)
def test_settings_that_fit_are_accepted(changes):
    assert changes.items() <= read_settings({**DEFAULTS, **changes}).run_config().items()


@pytest.mark.parametrize("text", ["0", "0=", "a=1", "-1=7", "0=7,1=8", "first", " 0=7", "0=7\n"])
def test_places_that_cannot_be_read_are_refused(text):
    assert refusal(**{"node-partitions": text}).startswith(f"node-partitions = {text!r}; allowed: ")


def test_places_are_read():
    given = {
        text: read_settings({**DEFAULTS, "node-partitions": text}).places for text in ("", "any", "1=7 0=8")
    }
    assert given == {"": "first", "any": "any", "1=7 0=8": {1: 7, 0: 8}}


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        read_settings(DEFAULTS).seed = 1


def test_home_is_the_variable_else_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FEDDAT_HOME", "~/elsewhere")
    assert feddat_home() == tmp_path / "elsewhere"
    for unset in (lambda: monkeypatch.setenv("FEDDAT_HOME", ""), lambda: monkeypatch.delenv("FEDDAT_HOME")):
        unset()
        assert feddat_home() == tmp_path / ".feddat"
