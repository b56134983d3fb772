"""Settings: the tables of a configuration file, their rules, and the one pass that reports every broken rule.

A configuration is built in layers: built-in defaults, then a preset or a TOML file, then ``--set key=value``. The
paper's Table 2 is where the defaults come from; what the paper leaves out is named as our choice in
``presets/paper.toml``.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_serializer

from splitrank import placement
from splitrank.errors import ConfigError, InputError
from splitrank.traits import METHOD_TRAITS, RULE_TRAITS

PRESETS = ("offline", "paper", "edge")


class Uniform(BaseModel):
    """A number per client drawn once per run from the uniform distribution on [low, high)."""

    model_config = ConfigDict(frozen=True)
    low: float
    high: float

    @model_serializer
    def _as_written(self) -> dict[str, list[float]]:
        return {"uniform": [self.low, self.high]}


PerClient = float | tuple[float, ...] | Uniform
"""A scalar for all clients, a list of ``num_clients`` numbers, or ``{uniform = [low, high]}``."""


def _number(value: Any, holds: Callable[[float], bool], rule: str, *, or_inf: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(rule)
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(rule) from None
    is_in_range = math.isfinite(number) or (or_inf and number == math.inf)
    if not is_in_range or not holds(number):
        raise ValueError(rule)
    return number


def _per_client(holds: Callable[[float], bool], rule: str, *, or_inf: bool = False) -> BeforeValidator:
    full_rule = f"{rule}, a list of such numbers (one per client) or {{uniform = [low, high]}}"

    def parse(value: Any) -> PerClient:
        if isinstance(value, Uniform):
            return value
        if isinstance(value, dict):
            bounds = value.get("uniform")
            if set(value) != {"uniform"} or not isinstance(bounds, list | tuple) or len(bounds) != 2:
                raise ValueError(full_rule)
            low, high = (_number(bound, holds, full_rule) for bound in bounds)
            if low > high:
                raise ValueError("{uniform = [low, high]} with low at most high")
            return Uniform(low=low, high=high)
        if isinstance(value, list | tuple):
            return tuple(_number(item, holds, full_rule, or_inf=or_inf) for item in value)
        return _number(value, holds, full_rule, or_inf=or_inf)

    return BeforeValidator(parse)


def _scalar(holds: Callable[[float], bool], rule: str, *, or_inf: bool = False) -> BeforeValidator:
    return BeforeValidator(lambda value: _number(value, holds, rule, or_inf=or_inf))


def _whole(value: Any, low: int, rule: str, high: float = math.inf) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(rule)
    return value


def _is_positive(value: float) -> bool:
    return value > 0


def _is_not_negative(value: float) -> bool:
    return value >= 0


_BUDGET_RULE = "a finite number greater than 0, or inf for no limit"
Positive = Annotated[float, _scalar(_is_positive, "a finite number greater than 0")]
Budget = Annotated[float, _scalar(_is_positive, _BUDGET_RULE, or_inf=True)]
NotNegative = Annotated[float, _scalar(_is_not_negative, "a finite number, 0 or greater")]
Finite = Annotated[float, _scalar(lambda value: True, "a finite number")]
Share = Annotated[float, _scalar(lambda value: 0 <= value < 1, "a number from 0 up to, but not including, 1")]
OpenShare = Annotated[float, _scalar(lambda value: 0 < value < 1, "a number between 0 and 1, both excluded")]
Accuracy = Annotated[float, _scalar(lambda value: 0 < value <= 1, "a share greater than 0 and at most 1, such as 0.9")]
NoiseDensity = Annotated[float, _scalar(lambda value: -250 <= value <= 0, "a number of dBm/Hz from -250 to 0")]
DistancePerClient = Annotated[
    PerClient, _per_client(lambda value: 1 <= value <= 1e6, "a number of metres from 1 to 1e6")
]
Count = Annotated[int, BeforeValidator(lambda value: _whole(value, 1, "a whole number, 1 or greater"))]
CountOrZero = Annotated[int, BeforeValidator(lambda value: _whole(value, 0, "a whole number, 0 or greater"))]
PositivePerClient = Annotated[PerClient, _per_client(_is_positive, "a finite number greater than 0")]
BudgetPerClient = Annotated[PerClient, _per_client(_is_positive, _BUDGET_RULE, or_inf=True)]
NotNegativePerClient = Annotated[PerClient, _per_client(_is_not_negative, "a finite number, 0 or greater")]


def _layers(value: Any) -> Any:
    if not isinstance(value, str | list | tuple):
        raise ValueError('"last:N", "middle:N", "first:N", "all", or a list of layer indices')
    placement.parse_trained_layers(value)
    return value if isinstance(value, str) else tuple(value)


def _modules(value: Any) -> Any:
    if not isinstance(value, str | list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"one of {', '.join(placement.MAP_SETS)} or a list of module names")
    placement.target_maps(value)
    return value if isinstance(value, str) else tuple(value)


def _columns(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError('a column name or a list of them, such as ["title", "description"]')
    return tuple(names)


def _gains(value: Any) -> tuple[float, ...]:
    rule = "a list of finite numbers, 0 or greater, one per client"
    if not isinstance(value, list | tuple):
        raise ValueError(rule)
    return tuple(_number(item, _is_not_negative, rule) for item in value)


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class NoiseFigure(_Table):
    """Receiver noise figures [dB]: the server receives the uplink, the client the downlink."""

    uplink: Finite
    downlink: Finite


def _noise_figure(value: Any) -> Any:
    rule = "a finite number of dB or {uplink = number, downlink = number}"
    if isinstance(value, dict):
        if set(value) != {"uplink", "downlink"}:
            raise ValueError(rule)
        return NoiseFigure(**{name: _number(item, lambda _: True, rule) for name, item in value.items()})
    return value if isinstance(value, NoiseFigure) else _number(value, lambda _: True, rule)


Gains = Annotated[tuple[float, ...], BeforeValidator(_gains)]
Columns = Annotated[tuple[str, ...], BeforeValidator(_columns)]


class ModelTable(_Table):
    """The encoder: which weights, where it is cut, how it computes."""

    name: str = "roberta-base"
    trained_layers: Annotated[str | tuple[int, ...], BeforeValidator(_layers)] = "last:3"
    max_length: Annotated[int, BeforeValidator(lambda v: _whole(v, 8, "a whole number of tokens, 8 or greater"))] = 128
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    head: Literal["full", "out_proj", "frozen", "local"] = "full"
    hidden_size: Count | None = None
    intermediate_size: Count | None = None
    num_layers: Count | None = None
    num_labels: Annotated[int, BeforeValidator(lambda v: _whole(v, 2, "a whole number, 2 or greater"))] | None = None


class AdapterTable(_Table):
    """The adapters: LoRA's maps and its scaling alpha/r; ``rank`` fixes what the planner would choose."""

    method: Literal["lora", "dora", "full"] = "lora"
    target_modules: Annotated[str | tuple[str, ...], BeforeValidator(_modules)] = "query-value"
    scaling: Positive = 2.0
    dropout: Share = 0.0
    rank: Count | None = None


class DataTable(_Table):
    """The labelled texts: a hub data set, a folder or a file; ``docstrings`` is the set any installation has."""

    name: str | None = None
    path: str | None = None
    text: Columns | None = None
    label: str | None = None
    train_rows: Count | None = None
    test_rows: Count | None = None
    test_share: OpenShare | None = None


class FederationTable(_Table):
    """Who takes part, for how long, and how their work is joined."""

    num_clients: Annotated[
        int, BeforeValidator(lambda v: _whole(v, 1, "a whole number from 1 to 10,000,000", 10_000_000))
    ] = 3
    rounds: Count = 10
    local_epochs: Count = 1
    partition: Literal["iid"] = "iid"
    aggregation: Literal["fedavg", "ffa", "flexlora"] = "fedavg"
    target_accuracy: Accuracy | None = None
    min_clients: Count = 1
    join_s: NotNegative = 120.0
    timeout_s: Positive = 3600.0
    grace_s: NotNegative = 10.0


class TrainTable(_Table):
    """Local training: AdamW, its schedule over the whole run, clipping."""

    learning_rate: Positive = 5e-5
    batch_size: Count = 32
    schedule: Literal["constant", "linear"] = "constant"
    weight_decay: NotNegative = 0.0
    max_grad_norm: Positive = 1.0
    dropout: Share = 0.0


class ClientTable(_Table):
    """The clients' machines."""

    samples: Annotated[int | tuple[int, ...], BeforeValidator(lambda v: _samples(v))] = 40000
    capacitance: PositivePerClient = Uniform(low=0.2e-25, high=1e-25)
    max_frequency_hz: PositivePerClient = 1e9
    circuit_energy_j: NotNegativePerClient = 50.0
    flops_per_cycle: PositivePerClient = 32.0
    reference_frequency_hz: PositivePerClient | None = None
    seconds_per_sample: PositivePerClient | None = None
    seconds_per_sample_per_rank: NotNegativePerClient | None = None
    test_share: OpenShare = 0.2


def _samples(value: Any) -> int | tuple[int, ...]:
    rule = "a whole number, 1 or greater, or a list of such numbers (one per client)"
    if isinstance(value, list | tuple):
        return tuple(_whole(item, 1, rule) for item in value)
    return _whole(value, 1, rule)


class RadioTable(_Table):
    """The links. Powers in W, gains and noise linear; only the noise density and figure are in dB."""

    bandwidth_hz: PositivePerClient | None = None
    total_bandwidth_hz: Positive | None = None
    uplink_power_w: PositivePerClient = Uniform(low=0.02, high=0.1)
    downlink_power_w: PositivePerClient = 1.0
    large_scale_gain: PositivePerClient | None = None
    distance_m: DistancePerClient | None = None
    fading: Literal["rayleigh", "none"] = "rayleigh"
    uplink_gain: Gains | None = None
    downlink_gain: Gains | None = None
    noise_power_w: PositivePerClient | None = None
    noise_psd_dbm_hz: NoiseDensity | None = None
    noise_figure_db: Annotated[float | NoiseFigure, BeforeValidator(_noise_figure)] | None = None
    downlink: Literal["unicast", "broadcast"] = "unicast"


class BudgetTable(_Table):
    """What a round may cost: T0 for all clients, E_i0 for each; ``inf`` is no limit."""

    latency_s: Budget = 18000.0
    energy_j: BudgetPerClient = 25000.0


class WorkloadTable(_Table):
    """How a round's operations and bits follow from the rank."""

    model: Literal["paper", "flops", "measured"] = "paper"
    bits_per_parameter: Positive = 256.0
    count_head: bool = False
    trunk: Literal["prepared", "every-round"] = "prepared"
    tokens_per_sample: Count = 64


class PlannerTable(_Table):
    """How ranks and frequencies are chosen; without a time limit the frequencies are the highest."""

    method: Literal["exact", "bisection", "branch-and-bound", "random-frequency"] = "exact"
    max_rank: Count = 128
    rank_policy: Literal["common", "per-client"] = "common"
    frequency_policy: Literal["least-energy", "least-latency"] = "least-energy"
    latency_margin: Share = 0.0
    random_range: Literal["feasible", "full"] = "feasible"
    where: Literal["server", "client"] = "server"


class RunTable(_Table):
    """How the program runs; ``threads = 0`` means all cores."""

    seed: CountOrZero = 0
    threads: Annotated[int, BeforeValidator(lambda v: _whole(v, 0, "a whole number from 0 to 1024", 1024))] = 0
    cache_limit_gb: Positive = 20.0
    tracking: Literal["none", "tensorboard", "mlflow"] = "none"


class Config(_Table):
    """All settings of a run, checked. Build one with :func:`load_config`."""

    model: ModelTable = Field(default_factory=ModelTable)
    adapter: AdapterTable = Field(default_factory=AdapterTable)
    data: DataTable = Field(default_factory=DataTable)
    federation: FederationTable = Field(default_factory=FederationTable)
    train: TrainTable = Field(default_factory=TrainTable)
    client: ClientTable = Field(default_factory=ClientTable)
    radio: RadioTable = Field(default_factory=RadioTable)
    budget: BudgetTable = Field(default_factory=BudgetTable)
    workload: WorkloadTable = Field(default_factory=WorkloadTable)
    planner: PlannerTable = Field(default_factory=PlannerTable)
    run: RunTable = Field(default_factory=RunTable)


# Either/or groups: naming a key of one side drops the other side, whichever earlier layer it came from. The first
# side is the default, with these values.
_EITHER_OR: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("data.name",), ("data.path",)),
    (("radio.bandwidth_hz",), ("radio.total_bandwidth_hz",)),
    (("radio.large_scale_gain",), ("radio.distance_m",)),
    (("radio.noise_power_w",), ("radio.noise_psd_dbm_hz", "radio.noise_figure_db")),
)
_GROUP_DEFAULTS: dict[str, Any] = {
    "data.name": "fancyzhx/ag_news",
    "radio.bandwidth_hz": 1e6,
    "radio.large_scale_gain": 1e-3,
    "radio.noise_power_w": 1e-9,
    "radio.noise_psd_dbm_hz": -174.0,
    "radio.noise_figure_db": 0.0,
}

# Settings that are planned for but that nothing answers to yet.
_LATER_KEYS = (
    "split",
    *(f"federation.{key}" for key in ("server_optimizer", "compression", "personal", "clients_per_round", "selection")),
    *(f"federation.{key}" for key in ("over_selection", "patience", "merged_rank", "partition_parameters")),
    *(f"planner.{key}" for key in ("bandwidth", "layers", "objective", "participation", "min_rank", "energy_policy")),
    *(f"radio.{key}" for key in ("servers", "antennas", "association", "access", "path_loss", "shadowing_db")),
    *(f"train.{key}" for key in ("proximal", "class_weights")),
    *(f"budget.{key}" for key in ("total_energy_j", "memory_bytes")),
    *(f"client.{key}" for key in ("jitter", "availability", "harvest_w", "device", "min_samples")),
    *("run.jobs", "run.device"),
)
_LATER_VALUES: dict[str, tuple[str, ...]] = {
    "adapter.method": ("rslora", "adalora", "bitfit", "ia3", "prefix", "slora", "mola", "bottleneck"),
    "federation.aggregation": (
        *("rolora", "flora", "raflora", "fedex", "fedsa", "hetlora", "fedsvd", "lora-a2", "median", "trimmed-mean"),
    ),
    "federation.partition": ("dirichlet", "dirichlet-clients", "shards", "pathological", "quantity"),
    "radio.fading": ("rician", "nakagami", "ergodic"),
}


def _no_effect(config: Config) -> dict[str, str]:
    """Dotted keys that this configuration never reads, each with the reason."""
    reasons: dict[str, str] = {}

    def unless(holds: bool, why: str, *keys: str) -> None:
        if not holds:
            reasons.update(dict.fromkeys(keys, why))

    model = config.workload.model
    unless(model == "paper", f'workload.model is "{model}", which sends 32 bits per parameter and the head',
           "workload.bits_per_parameter", "workload.count_head")  # fmt: skip
    unless(model == "flops", f'workload.model is "{model}", not "flops"',
           "client.flops_per_cycle", "workload.trunk", "workload.tokens_per_sample")  # fmt: skip
    unless(model == "measured", f'workload.model is "{model}", not "measured"',
           "client.reference_frequency_hz", "client.seconds_per_sample",
           "client.seconds_per_sample_per_rank")  # fmt: skip
    radio = config.radio
    unless(radio.uplink_gain is None or radio.downlink_gain is None,
           "radio.uplink_gain and radio.downlink_gain fix both channels",
           "radio.fading", "radio.large_scale_gain", "radio.distance_m")  # fmt: skip
    random = config.planner.method == "random-frequency"
    unless(random, f'planner.method is "{config.planner.method}"', "planner.random_range")
    unless(not random, "random-frequency draws the frequencies", "planner.frequency_policy")
    unless(not math.isinf(config.budget.latency_s), "budget.latency_s = inf leaves nothing to keep free",
           "planner.latency_margin")  # fmt: skip
    method = config.adapter.method
    unless(config.adapter.rank is None, "adapter.rank fixes the rank", "planner.max_rank", "planner.rank_policy")
    unless(METHOD_TRAITS[method].has_rank, f'adapter.method = "{method}" has no rank',
           "adapter.rank", "planner.max_rank", "planner.rank_policy")  # fmt: skip
    unread = {"target_modules", "scaling", "dropout"} - METHOD_TRAITS[method].settings
    unless(False, f'adapter.method = "{method}" trains whole layers, without adapters',
           *(f"adapter.{key}" for key in unread))  # fmt: skip
    unless(config.model.head in ("full", "out_proj"), f'model.head = "{config.model.head}" sends no head',
           "workload.count_head")  # fmt: skip
    unless(config.model.head == "local", f'model.head is "{config.model.head}", so nothing is personal',
           "client.test_share")  # fmt: skip
    unless(config.data.name != "docstrings", "the docstrings set has its own columns and test split",
           "data.text", "data.label", "data.test_share")  # fmt: skip
    return reasons


def _cross_checks(config: Config) -> Iterable[str]:
    """Rules that bind several keys, one sentence for each that is broken."""
    num_clients = config.federation.num_clients
    for table_name, table in config:
        for key, value in table:
            is_list = isinstance(value, tuple) and not (value and isinstance(value[0], str))
            if is_list and table_name != "model" and len(value) != num_clients:
                yield (
                    f"{table_name}.{key} must be a list of federation.num_clients = {num_clients} numbers, "
                    f"got {len(value)}"
                )
    yield from _method_checks(config)
    chooses_hz = config.planner.method != "random-frequency"
    if math.isinf(config.budget.latency_s) and chooses_hz and config.planner.frequency_policy == "least-energy":
        yield (
            'planner.frequency_policy must be "least-latency" where budget.latency_s = inf, got "least-energy", '
            "which would stop the clock; leave it out"
        )
    if config.planner.where == "client" and config.planner.method == "random-frequency":
        yield 'planner.where must be "server" for planner.method = "random-frequency", a baseline, got "client"'
    if config.federation.min_clients > num_clients:
        yield (
            f"federation.min_clients must be at most federation.num_clients = {num_clients}, "
            f"got {config.federation.min_clients}"
        )
    measured = ("reference_frequency_hz", "seconds_per_sample", "seconds_per_sample_per_rank")
    given = [key for key in measured if getattr(config.client, key) is not None]
    if given and len(given) < len(measured):
        lacking = next(key for key in measured if key not in given)
        yield f"client.{lacking} must be given beside client.{given[0]}, got nothing; leave all out to measure them"
    for key, text in (("path", config.data.path), ("label", config.data.label)):
        if text is not None and not text.strip():
            yield f"data.{key} must not be empty, got {text!r}; leave it out or name yours"
    if config.data.name is not None and not config.data.name.strip():
        yield 'data.name must be a data set\'s name, got ""; try data.name = "fancyzhx/ag_news"'
    if not config.model.name.strip():
        yield 'model.name must be a model\'s name or folder, got ""; try model.name = "roberta-base"'


def _method_checks(config: Config) -> Iterable[str]:
    """Rules on adapter method, aggregation rule and ranks, all of them look-ups of their traits."""
    method, rule = config.adapter.method, config.federation.aggregation
    traits = METHOD_TRAITS[method]
    missing = RULE_TRAITS[rule].needs - traits.kinds
    if missing:
        others = [name for name, other in RULE_TRAITS.items() if other.needs <= traits.kinds]
        yield (
            f'federation.aggregation must be {_quoted(others)} for adapter.method = "{method}", which has no '
            f'{" and no ".join(sorted(missing))}, got "{rule}"; try federation.aggregation = "{others[0]}"'
        )
    if config.workload.model == "paper" and not traits.in_paper:
        yield (
            f'workload.model must be "flops" or "measured" for adapter.method = "{method}", got "paper"; '
            'try workload.model = "flops"'
        )
    if config.planner.rank_policy == "common" or config.adapter.rank is not None or not traits.has_rank:
        return
    if "unequal_ranks" not in RULE_TRAITS[rule].tags and not missing:
        able = [name for name, other in RULE_TRAITS.items() if "unequal_ranks" in other.tags]
        suggested = "flexlora" if "flexlora" in able else able[0]
        yield (
            f'planner.rank_policy must be "common" for federation.aggregation = "{rule}", which averages factors of '
            f'one rank, got "per-client"; try federation.aggregation = "{suggested}"'
        )
    if config.radio.downlink == "broadcast":
        yield (
            'planner.rank_policy must be "common" for radio.downlink = "broadcast", which sends everybody the same '
            'adapter, got "per-client"; try radio.downlink = "unicast"'
        )


def _quoted(names: Sequence[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)


def flatten(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys of the tables of a configuration file."""
    flat: dict[str, Any] = {}
    for table, content in tables.items():
        if isinstance(content, dict) and table in Config.model_fields:
            flat.update({f"{table}.{key}": value for key, value in content.items()})
        else:
            flat[table] = content
    return flat


def _unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    no_tables = [f"{key} must be a table of keys, got {_show(flat[key])}" for key in flat if key in Config.model_fields]
    if no_tables:
        raise ConfigError(no_tables)
    for dotted, value in flat.items():
        table, _, key = dotted.partition(".")
        if key:
            tables.setdefault(table, {})[key] = value
        else:
            tables[table] = value
    return tables


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, literal = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"--set must be key=value, got {text!r}; try --set federation.rounds=5")
    try:
        return key, tomllib.loads(f"value = {literal}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return key, literal.strip()


def _layer(base: Mapping[str, Any], added: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Put one layer over another; problems name either/or groups of which the layer names both sides."""
    merged, problems = dict(base), []
    for first, second in _EITHER_OR:
        in_first = [key for key in first if key in added]
        in_second = [key for key in second if key in added]
        if in_first and in_second:
            problems.append(f"{in_first[0]} and {in_second[0]} must not both be given; leave one of them out")
        elif in_first or in_second:
            for key in second if in_first else first:
                merged.pop(key, None)
    if "budget.latency_s" in added and merged.get(_POLICY) == _default_policy(merged):
        merged.pop(_POLICY, None)  # it followed from the latency budget, which is another one now
    merged.update(added)
    return merged, problems


_POLICY = "planner.frequency_policy"


def _default_policy(flat: Mapping[str, Any]) -> str:
    """Return the frequency policy that is taken where none is given: the lowest frequency needs a time limit."""
    return "least-latency" if flat.get("budget.latency_s") == math.inf else "least-energy"


def _with_group_defaults(flat: dict[str, Any]) -> dict[str, Any]:
    filled = dict(flat)
    for first, second in _EITHER_OR:
        side = second if any(key in filled for key in second) else first
        for key in side:
            if key in _GROUP_DEFAULTS:
                filled.setdefault(key, _GROUP_DEFAULTS[key])
    filled.setdefault(_POLICY, _default_policy(filled))
    return filled


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _unknown_key(dotted: str) -> str:
    for later in _LATER_KEYS:
        if dotted == later or dotted.startswith(later + "."):
            return f"{dotted} is not available yet; leave it out"
    known = [f"{table}.{key}" for table in Config.model_fields for key in _fields_of(table)]
    elsewhere = [name for name in known if name.partition(".")[2] == dotted.rpartition(".")[2]]
    close = difflib.get_close_matches(dotted, known, n=1, cutoff=0.75) or elsewhere
    hint = f"did you mean {close[0]}?" if close else "see `splitrank config show` for the keys there are"
    return f"{dotted} must be a known key, got an unknown one; {hint}"


def _fields_of(table: str) -> Iterable[str]:
    annotation = Config.model_fields[table].annotation
    return cast(type[BaseModel], annotation).model_fields


_TYPE_RULES = {"string_type": "a text", "bool_type": "true or false", "model_type": "a table of keys"}


def _sentences(error: ValidationError) -> Iterable[str]:
    seen: set[str] = set()
    for problem in error.errors():
        dotted = ".".join(str(part) for part in problem["loc"][:2])
        if dotted in seen:
            continue
        seen.add(dotted)
        kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
        if kind == "extra_forbidden":
            yield _unknown_key(dotted)
        elif isinstance(value, str) and value in _LATER_VALUES.get(dotted, ()):
            yield f'{dotted} = "{value}" is not available yet; try {context["expected"]}'
        elif kind == "literal_error":
            yield f"{dotted} must be one of {context['expected']}, got {_show(value)}"
        elif kind == "value_error":
            yield f"{dotted} must be {context['error']}, got {_show(value)}"
        else:
            yield f"{dotted} must be {_TYPE_RULES.get(kind, problem['msg'].lower())}, got {_show(value)}"


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file; what cannot be read is an InputError that names it."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path} must be a TOML file, got a syntax error: {error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} must be a TOML file in UTF-8, got other bytes") from None
    except OSError as error:
        raise InputError(f"{path} must be a readable file, got: {error.strerror}") from None


def is_preset(source: str) -> bool:
    """Whether a CONFIG argument names a preset rather than a file."""
    return source in PRESETS


def _read_source(source: str) -> dict[str, Any]:
    if is_preset(source):
        return tomllib.loads((resources.files("splitrank") / "presets" / f"{source}.toml").read_text(encoding="utf-8"))
    path = Path(source)
    if path.is_file():
        return read_toml(path)
    close = difflib.get_close_matches(source, PRESETS, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise InputError(f"CONFIG must be a preset ({', '.join(PRESETS)}) or a TOML file, got {source!r}{hint}")


def load_config(source: str = "offline", overrides: Sequence[str] = ()) -> Config:
    """Read a preset or a TOML file, put ``key=value`` overrides over it, and check everything.

    Args:
        source: a preset's name or a path. A file names only what differs from the built-in defaults.
        overrides: ``--set`` arguments; values are TOML literals, what isn't TOML is taken as a string.

    Raises:
        ConfigError: one sentence for every broken rule.
        InputError: the source cannot be read, or an override is not key=value.
    """
    return config_of(source, parse_overrides(overrides))


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The dotted keys and values of ``key=value`` texts.

    Raises:
        InputError: one is not key=value.
    """
    parsed: dict[str, Any] = {}
    for key, value in map(_parse_override, overrides):
        parsed.update(flatten({key: value}))
    return parsed


def config_of(source: str, *layers: Mapping[str, Any]) -> Config:
    """Read a preset or a TOML file and put layers of dotted keys over it, as :func:`load_config` does with texts."""
    base = flatten(_read_source(source))
    flat, problems = _layer({}, base)
    given = set() if is_preset(source) else set(base)
    for layer in layers:
        flat, more = _layer(flat, layer)
        problems += more
        given |= set(layer)
    return _checked(flat, given & set(flat), problems)


def config_from(*layers: Mapping[str, Any]) -> Config:
    """Settings from layers of dotted keys over the built-in defaults, checked."""
    flat: dict[str, Any] = {}
    problems: list[str] = []
    for layer in layers:
        flat, more = _layer(flat, layer)
        problems += more
    return _checked(flat, set(), problems)


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """The same settings with some dotted keys replaced, checked anew."""
    flat, problems = _layer(flatten(plain_values(config)), values)
    return _checked(flat, set(), problems)


def _checked(flat: dict[str, Any], given: set[str], problems: list[str]) -> Config:
    tables = _unflatten(_with_group_defaults(flat))
    try:
        config = Config.model_validate(tables)
    except ValidationError as error:
        raise ConfigError(problems + list(_sentences(error))) from None
    problems = problems + list(_cross_checks(config))
    problems += [
        f"{key} must have an effect when it is given, got a setting that is never read: {why}; leave it out"
        for key, why in _no_effect(config).items()
        if key in given
    ]
    if problems:
        raise ConfigError(problems)
    return config


def plain_values(config: Config) -> dict[str, Any]:
    """Nested plain values without keys that are unset or have no effect."""
    unread = _no_effect(config)
    return {
        table: {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in content.items()
            if value is not None and f"{table}.{key}" not in unread
        }
        for table, content in config.model_dump().items()
    }


def to_toml(config: Config) -> str:
    """The fully resolved configuration as TOML; loading it gives the same configuration back."""
    return tomli_w.dumps(plain_values(config))
