"""The tables of a configuration file: every setting with its kind, its default, when it is read, and what it does.

The defaults are the paper's numbers (Table 2 of Xie and Wen) where the paper gives them; ``presets/paper.toml`` names
the others as our choice. A new setting is one field here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from splitrank.config.conditions import Condition, given, left_out, limited, one_of, other_than
from splitrank.config.resources import BudgetTable, ClientTable, RadioTable, WorkloadTable
from splitrank.config.values import (
    Accuracy,
    ClassCount,
    ClientCount,
    ColumnNames,
    Columns,
    Count,
    CountOrZero,
    Device,
    Encoding,
    Layers,
    Modules,
    NotNegative,
    OpenShare,
    PartitionBy,
    Positive,
    Separator,
    Share,
    ThreadCount,
    TokenCount,
)
from splitrank.config.variants import (
    AdaptiveTable,
    FedavgmTable,
    HetloraTable,
    LoraA2Table,
    PrefixTable,
    Table,
    TrimmedMeanTable,
)
from splitrank.traits import METHOD_TRAITS, RULE_TRAITS


def _methods(setting: str) -> Condition:
    """Return the condition that the adapter method reads a key of the table ``[adapter]``."""
    return one_of("adapter.method", tuple(name for name, traits in METHOD_TRAITS.items() if setting in traits.settings))


Aggregation = Literal[
    "fedavg",
    "ffa",
    "flexlora",
    "fedex",
    "flora",
    "fedsvd",
    "raflora",
    "hetlora",
    "rolora",
    "fedsa",
    "lora-a2",
    "median",
    "trimmed-mean",
]
_MERGES = one_of("federation.aggregation", tuple(name for name, rule in RULE_TRAITS.items() if "merges" in rule.tags))
_HAS_RANK = one_of("adapter.method", tuple(name for name, traits in METHOD_TRAITS.items() if traits.has_rank))
_PLANS_RANK = left_out("adapter.rank")
_OWN_FILES = given("data.path")
_OWN_COLUMNS = other_than("data.name", "docstrings")
_SELECTS = given("federation.clients_per_round")
_BY_DIRICHLET = ("dirichlet", "dirichlet-clients", "quantity")


class ModelTable(Table):
    """The encoder: which weights, where it is cut, how it computes."""

    name: str = Field("roberta-base", description='hub name or folder of the encoder, or `"minilm"` (offline)')
    trained_layers: Layers = Field(
        "last:3", description="layers that are trained; what lies below the first of them is frozen and cached"
    )
    max_length: TokenCount = Field(128, description="tokens per text; longer texts are cut")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="number format of the computation; auto: bf16 where the hardware multiplies it"
    )
    head: Literal["full", "out_proj", "frozen", "local"] = Field(
        "full",
        description='`"full"` trains and sends the classifier, `"out_proj"` its last linear layer, `"frozen"` none of '
        'it; `"local"` trains and never sends it',
    )
    hidden_size: Count | None = Field(
        None, description="for `plan`, where the model is neither known by name nor a folder"
    )
    intermediate_size: Count | None = Field(None, description="as `model.hidden_size`")
    num_layers: Count | None = Field(None, description="as `model.hidden_size`")
    num_labels: ClassCount | None = Field(None, description="classes; left out, those of the data, and 4 for `plan`")


class AdapterTable(Table):
    """The adapter: what is trained in each layer."""

    method: Literal["lora", "rslora", "dora", "full", "bitfit", "ia3", "bottleneck", "prefix"] = Field(
        "lora",
        description='`"rslora"`: LoRA with its scaling divided by √r; `"dora"`: LoRA with a trained magnitude of each '
        'output; `"full"`: all weights of the trained layers, `"bitfit"`: their biases, `"ia3"`: scales of '
        'their keys, values and inner activations, all three without a rank; `"bottleneck"`: small networks after '
        'attention and feed-forward part, whose number of units is the rank; `"prefix"`: learned keys and values, '
        "whose number is the rank, chosen in the first round for the whole run",
    )
    target_modules: Annotated[Modules, _methods("target_modules")] = Field(
        "query-value", description="linear layers that get an adapter"
    )
    scaling: Annotated[Positive, _methods("scaling")] = Field(
        2.0, description='alpha/r, the same at every rank; `"rslora"` divides it by √r'
    )
    dropout: Annotated[Share, _methods("dropout")] = Field(0.0, description="dropout before lora_A")
    rank: Annotated[Count | None, _HAS_RANK] = Field(None, description="fixes the rank; left out, it is planned")
    prefix: Annotated[PrefixTable, one_of("adapter.method", ("prefix",))] = Field(default_factory=PrefixTable)


class DataTable(Table):
    """The labelled texts."""

    name: str | None = Field(
        None, description='data set on the Hugging Face hub, or `"docstrings"`, which any installation has'
    )
    path: str | None = Field(None, description="folder with train.* and test.*, or one file")
    text: Annotated[Columns | None, _OWN_COLUMNS] = Field(
        None, description='columns of the text, joined by a space; left out, `"text"` or what the data set is known by'
    )
    label: Annotated[str | None, _OWN_COLUMNS] = Field(None, description='column of the class; left out, `"label"`')
    train_rows: Count | None = Field(
        None, description="takes that many training rows, drawn by seed, class shares kept; left out, all"
    )
    test_rows: Count | None = Field(None, description="as `data.train_rows`, of the test rows")
    test_share: Annotated[OpenShare | None, _OWN_COLUMNS] = Field(
        None, description="share of the training rows held out where there is no test split; left out, 0.2"
    )
    encoding: Annotated[Encoding | None, _OWN_FILES] = Field(
        None, description="of CSV, TSV and JSON files; left out, UTF-8 or what a byte order mark tells"
    )
    separator: Annotated[Separator | None, _OWN_FILES] = Field(
        None,
        description="between fields of CSV and TSV files; left out, commas and tabs by the file's ending, and another "
        "where the first line makes it plain",
    )
    columns: Annotated[ColumnNames | None, _OWN_FILES] = Field(
        None,
        description='names of the columns of CSV and TSV files without a header, such as `["label", "title", '
        '"description"]`, AG News\'s',
    )
    config: Annotated[str | None, given("data.name"), _OWN_COLUMNS] = Field(
        None, description='which configuration of a hub data set that has several, such as `"sst2"` of `nyu-mll/glue`'
    )


class FederationTable(Table):
    """The rounds: how many clients take part, for how long, and how their work is joined."""

    num_clients: ClientCount = Field(3, description="number of clients")
    rounds: Count = Field(10, description="rounds of the run")
    local_epochs: Count = Field(1, description="passes of a client over its texts in a round")
    partition: PartitionBy = Field(
        "iid",
        description='who holds which rows, where clients have no texts of their own. `"iid"`: equal shares of every '
        'class; `"dirichlet"`: of each class shares drawn from Dir(α); `"dirichlet-clients"`: clients of equal size, '
        'each with class shares drawn from Dir(α); `"shards"`: equal parts of the rows sorted by class, some for each; '
        '`"pathological"`: so many classes for each, neighbours share some; `"quantity"`: amounts drawn from Dir(α), '
        'equal class shares; `{column = "hospital"}`: the column of the training rows that names their client',
    )
    partition_alpha: Annotated[Positive, one_of("federation.partition", _BY_DIRICHLET)] = Field(
        0.5, description="α: the smaller, the more the clients differ"
    )
    classes_per_client: Annotated[Count, one_of("federation.partition", ("pathological",))] = Field(
        2, description="classes of each client"
    )
    shards_per_client: Annotated[Count, one_of("federation.partition", ("shards",))] = Field(
        2, description="parts of each client"
    )
    partition_min_samples: Count = Field(
        1,
        description="training rows that every client must have; who was dealt fewer is given some of the largest "
        "client's, which `manifest.json` tells. Rows are not taken from whom a column names",
    )
    aggregation: Aggregation = Field(
        "fedavg",
        description='`"fedavg"`: averages every tensor, lora_A and lora_B apart; `"ffa"`: trains, sends and averages '
        'lora_B alone; `"flexlora"`: averages the products B·A and cuts the mean to the global rank; '
        '`"fedex"`: as fedavg, and what that loses goes into a frozen part beside the adapter; `"flora"`: stacks the '
        'products in a frozen part, every round starts from a new adapter; `"fedsvd"`: trains and averages lora_B '
        'alone, then makes the rows of lora_A orthonormal; `"raflora"`: averages each direction over the clients whose '
        'rank reaches it; `"hetlora"`: pads lora_A and lora_B with zeros, averages them by the size of the products, '
        'and clients prune their ranks; `"rolora"`: trains, sends and averages lora_B in even turns and lora_A in odd '
        'ones; `"fedsa"`: averages lora_A, while lora_B and the head stay with their clients; '
        '`"lora-a2"`: lora_B and lora_A in turn, of which each client trains and sends the directions that a trial '
        'epoch changes most, as many as its rank; `"median"`: the median of every number over the clients; '
        '`"trimmed-mean"`: their mean without the smallest and largest values. Under both every client counts the same',
    )
    hetlora: Annotated[HetloraTable, one_of("federation.aggregation", ("hetlora",))] = Field(
        default_factory=HetloraTable
    )
    trimmed_mean: Annotated[TrimmedMeanTable, one_of("federation.aggregation", ("trimmed-mean",))] = Field(
        default_factory=TrimmedMeanTable, alias="trimmed-mean"
    )
    server_optimizer: Literal["none", "fedavgm", "fedadam", "fedyogi"] = Field(
        "none",
        description="what the server makes of the aggregation's result: the next adapter as it is, or the direction of "
        'a step with momentum (`"fedavgm"`), of Adam or of Yogi; the last three at a fixed `adapter.rank`',
    )
    fedavgm: Annotated[FedavgmTable, one_of("federation.server_optimizer", ("fedavgm",))] = Field(
        default_factory=FedavgmTable
    )
    fedadam: Annotated[AdaptiveTable, one_of("federation.server_optimizer", ("fedadam",))] = Field(
        default_factory=AdaptiveTable
    )
    fedyogi: Annotated[AdaptiveTable, one_of("federation.server_optimizer", ("fedyogi",))] = Field(
        default_factory=AdaptiveTable
    )
    lora_a2: Annotated[LoraA2Table, one_of("federation.aggregation", ("lora-a2",))] = Field(
        default_factory=LoraA2Table, alias="lora-a2"
    )
    merged_rank: Annotated[Count | None, _MERGES] = Field(
        None,
        description="largest rank of the frozen part beside a linear's adapter, whose best approximation is kept; left "
        "out, all of it is kept, and the aggregation is exact",
    )
    target_accuracy: Accuracy | None = Field(None, description="stops the run when the test accuracy reaches it")
    patience: Count | None = Field(
        None,
        description="stops the run when the test accuracy has not risen above its best for that many rounds, rounds in "
        "which nobody trained among them; the result is the last round's, not the best one's. The test texts then "
        "decide when the run ends, so its accuracy is no longer one on texts kept aside. Left out, never",
    )
    min_clients: Count = Field(
        1,
        description="fewer updates than this leave the model as it is; through Flower a round also waits for so many "
        "clients",
    )
    clients_per_round: Count | None = Field(
        None,
        description="clients that a round takes, chosen among those who can take part; `radio.total_bandwidth_hz` is "
        "shared by as many. Left out, all",
    )
    selection: Annotated[Literal["random", "round-robin", "largest-rank", "fair"], _SELECTS] = Field(
        "random",
        description='who is chosen: `"random"`: drawn; `"round-robin"`: in turn; `"largest-rank"`: who can do the '
        'largest ranks, so that the weak may never be asked; `"fair"`: whoever was chosen least recently',
    )
    over_selection: Annotated[NotNegative, _SELECTS] = Field(
        0.0,
        description="share of clients that are chosen beyond `federation.clients_per_round`, 0.3 for 1.3 times as "
        "many; the first by planned time are aggregated, what comes later is spent in vain",
    )
    join_s: NotNegative = Field(
        120.0, description="through Flower: seconds to wait for all clients before the run starts with those present"
    )
    timeout_s: Positive = Field(
        3600.0,
        description="through Flower: seconds that a round waits where budgets are simulated, and that a run waits for "
        "clients to join",
    )
    grace_s: NotNegative = Field(
        10.0, description="through Flower, where budgets are measured: seconds that a round waits beyond its budget"
    )


class TrainTable(Table):
    """Local training with AdamW."""

    learning_rate: Positive = Field(5e-5, description="AdamW's learning rate")
    batch_size: Count = Field(32, description="texts per step")
    schedule: Literal["constant", "linear"] = Field(
        "constant", description='`"linear"`: the learning rate falls to 0 over the whole run'
    )
    weight_decay: NotNegative = Field(0.0, description="AdamW's weight decay")
    max_grad_norm: Positive = Field(1.0, description="gradients are clipped to this norm")
    dropout: Share = Field(0.0, description="the encoder's own dropout, in the trained layers")
    proximal: NotNegative = Field(
        0.0,
        description="μ of FedProx: a client's loss has the term μ/2·‖w − w_start‖², which pulls what it trains towards "
        "the round's start; 0 for none. Usual values are 0.001 to 1",
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none",
        description='`"balanced"`: class c weighs n/(C·n_c) in a client\'s loss, the weighted mean over a batch: n of '
        "the client's own training texts, n_c of them of class c, C classes. The counts are the client's own because "
        "the federation's would have to leave the clients. `train_loss` in records stays the mean without weights",
    )


class PlannerTable(Table):
    """How ranks and frequencies are chosen."""

    method: Literal["exact", "bisection", "branch-and-bound", "random-frequency"] = Field(
        "exact", description='the solver; `"random-frequency"` is the paper\'s baseline'
    )
    max_rank: Annotated[Count, _HAS_RANK, _PLANS_RANK] = Field(128, description="largest rank that may be planned")
    rank_policy: Annotated[Literal["common", "per-client"], _HAS_RANK, _PLANS_RANK] = Field(
        "common", description='one rank for all, that of the weakest; `"per-client"`: each client\'s own largest'
    )
    frequency_policy: Annotated[
        Literal["least-energy", "least-latency"],
        other_than("planner.method", "random-frequency"),
        one_of("planner.objective", ("largest-rank",)),
    ] = Field(
        "least-energy",
        description="of the frequencies with which a client meets its budgets, the lowest or the highest; without "
        "a time limit always the highest",
    )
    latency_margin: Annotated[Share, limited("budget.latency_s")] = Field(0.0, description="share of T0 kept free")
    random_range: Annotated[Literal["feasible", "full"], one_of("planner.method", ("random-frequency",))] = Field(
        "feasible", description="where frequencies are drawn: as rank 1 allows, or from 0 to the highest"
    )
    where: Literal["server", "client"] = Field(
        "server", description='`"client"`, through Flower: each client plans for itself and tells only its largest rank'
    )
    bandwidth: Annotated[
        Literal["equal", "joint"], given("radio.total_bandwidth_hz"), other_than("planner.method", "random-frequency")
    ] = Field(
        "equal",
        description='how the clients share `radio.total_bandwidth_hz`: in equal shares, or `"joint"`: together with '
        "the rank, so that whoever needs more of the band gets more",
    )
    objective: Annotated[
        Literal["largest-rank", "least-energy", "least-latency"], other_than("planner.method", "random-frequency")
    ] = Field(
        "largest-rank",
        description="what a plan is for: the largest rank that fits the budgets; or at rank `planner.min_rank`, or the "
        'fixed one, `"least-energy"`: what all spend together, or `"least-latency"`: the time of the slowest',
    )
    min_rank: Annotated[Count, _HAS_RANK, _PLANS_RANK] = Field(
        1, description="smallest rank at which a client takes part"
    )
    participation: Annotated[
        Literal["all", "worth"],
        _HAS_RANK,
        _PLANS_RANK,
        left_out("federation.clients_per_round"),
        one_of("planner.objective", ("largest-rank",)),
        one_of("planner.rank_policy", ("common",)),
    ] = Field(
        "all",
        description='who takes part: all who can, or `"worth"`: those for whom Σ n·log(1 + rank), n being their texts, '
        "is largest, so that a weak client does not hold the others down; at least `federation.min_clients`",
    )


class RunTable(Table):
    """How the program runs."""

    seed: CountOrZero = Field(0, description="every draw follows from it")
    threads: ThreadCount = Field(0, description="threads of a client's computation; 0 for all cores")
    device: Device = Field(
        "auto",
        description="where the encoder computes: the processor, CUDA's first card or its card N, or Apple's GPU; auto: "
        "CUDA's first card where there is one, else the processor. A resumed run may compute elsewhere, to other bits; "
        "in a deployment each machine's own file says where it computes",
    )
    cache_limit_gb: Positive = Field(20.0, description="all cached trunk outputs together")
    tracking: Literal["none", "tensorboard", "mlflow"] = Field(
        "none",
        description="where the rounds' numbers also go: `OUT/tensorboard`, or `OUT/mlflow` unless MLFLOW_TRACKING_URI "
        'says where; needs `pip install "splitrank[tracking]"`. MLflow reports its use to its makers unless '
        "MLFLOW_DISABLE_TELEMETRY=true",
    )


class Config(Table):
    """All settings of a run, checked. Build one with :func:`splitrank.load_config`."""

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
