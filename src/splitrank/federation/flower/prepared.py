"""Load, once for one set of settings, what a worker needs of a run: model, texts and the trunk's cached output."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from splitrank.config import Config, config_from, flatten
from splitrank.errors import InputError
from splitrank.federation.data import announced, read_data, table_format
from splitrank.federation.flower.client_config import ClientConfig
from splitrank.federation.flower.device_profile import DeviceEstimate, profile_device
from splitrank.federation.flower.payload import Header
from splitrank.federation.model import Model, load_model, rule_of
from splitrank.federation.partitions import partition_of, shares_to_test_on
from splitrank.federation.state import State
from splitrank.federation.texts import TextStats, text_stats
from splitrank.learning.aggregation.rule import Rule
from splitrank.learning.data import has_test_split, load_split, text_data
from splitrank.learning.encoder import drop_trunk
from splitrank.learning.lengths import TokenIds
from splitrank.learning.stratified import hold_out
from splitrank.learning.text_rules import Split
from splitrank.learning.trunk import TrunkOutputs

_LOG = logging.getLogger("splitrank")


@dataclass(frozen=True, eq=False)
class Share:
    """Texts of each client that a worker may stand for.

    Attributes:
        outputs: the trunk's output of all of them.
        labels: their classes.
        rows: client → its rows; all rows where they are its own.
    """

    outputs: TrunkOutputs
    labels: NDArray[np.int64]
    rows: Mapping[int, NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Model and texts of a worker, for one set of settings.

    Attributes:
        settings, labels: those that it was loaded for.
        model, rule: of the run.
        training: texts to train on.
        test: texts to evaluate on where something is personal; None elsewhere.
        initial: the state of round 0, whose personal parts a client starts from.
        machines: client → what was measured of its machine.
    """

    settings: Header
    labels: list[str]
    model: Model
    rule: Rule
    training: Share
    test: Share | None
    initial: State
    machines: dict[int, DeviceEstimate] = field(default_factory=dict)

    def close(self) -> None:
        """Let go of the cached trunk output."""
        self.training.outputs.close()
        if self.test is not None:
            self.test.outputs.close()

    def amounts(self, client: int) -> TextStats:
        """Return the amounts of text of one client."""
        return text_stats([self.training.outputs.lengths[self.training.rows[client]]])

    def estimate(self, client: int) -> DeviceEstimate:
        """Return what this machine is, measured when it joins and kept running by the rounds."""
        if client not in self.machines:
            _LOG.info("Measuring this machine.")
            share = self.training
            measured = profile_device(self.model, self.rule, share.outputs, share.rows[client], share.labels, client)
            self.machines[client] = DeviceEstimate(measured)
            _LOG.info(f"{measured}")
        return self.machines[client]


def prepare(
    own: ClientConfig | None, settings: Header, labels: list[str], trunk_sha256: str, rule: Rule | None = None
) -> Prepared:
    """Load the model, and only if it is the server's the texts.

    Args:
        own: the client's own file; None where the settings say which texts are whose, as in a simulation.
        settings, labels, trunk_sha256: of the request.
        rule: an aggregation rule of one's own; None for that of the settings.

    Raises:
        InputError, ConfigError: settings, texts or weights that do not go together; no message holds a text.
    """
    if own is None:
        config = config_from(flatten(settings))
        model = _same_model(config, labels, trunk_sha256, rule)
        training, test = _shards(config, model, labels)
    else:
        # Which file and which columns is the client's to say alone: a server that could name them could read them.
        # The server's device is of its own machine.
        flat = flatten(settings)
        asked = {key: flat[key] for key in flat if not key.startswith("data.") and key != "run.device"}
        config = config_from(asked, own.layer)
        if own.client >= config.federation.num_clients:
            raise InputError(
                f"client must be below the server's federation.num_clients = {config.federation.num_clients}, "
                f"got {own.client}"
            )
        model = _same_model(config, labels, trunk_sha256, rule)
        try:
            training, test = _own_texts(config, model, labels, own.client)
        except InputError as error:
            _LOG.info(f"{error}")  # here alone: such a sentence may quote a text
            raise InputError("its texts cannot be used; the client's own log tells why") from None
    drop_trunk(model.encoder)
    rule = rule or rule_of(config)
    return Prepared(settings, labels, model, rule, training, test, model.initial_state())


def _same_model(config: Config, labels: list[str], trunk_sha256: str, rule: Rule | None) -> Model:
    """Load the model of a request's settings, if its frozen weights are the server's."""
    model = load_model(config, labels, rule=rule)
    found = model.encoder.trunk_digest
    if trunk_sha256 != found:
        raise InputError(
            f"the frozen weights must be those of the server ({trunk_sha256[:12]}), got {found[:12]} for "
            f"{config.model.name}; give every machine the same model"
        )
    return model


def _shards(config: Config, model: Model, labels: list[str]) -> tuple[Share, Share | None]:
    """Return each client's share of the settings' texts, as a run in one process shares them out."""
    data = read_data(config)
    if data.label_names != labels:
        raise InputError(f"the classes must be those of the server ({labels}), got {data.label_names}")
    dealt = partition_of(config, data)
    assert dealt is not None
    outputs = model.prepare(model.tokenize(data.train_texts), "training texts")
    training = Share(outputs, data.train_labels, dict(enumerate(dealt.rows)))
    if not model.personal:
        return training, None
    tests = dict(enumerate(shares_to_test_on(config, data, dealt)))
    nothing = np.zeros(0, dtype=np.int64)
    rows = {client: tests.get(client, nothing) for client in training.rows}
    return training, Share(model.prepare(model.tokenize(data.test_texts), "test texts"), data.test_labels, rows)


def _own_texts(config: Config, model: Model, labels: list[str], client: int) -> tuple[Share, Share | None]:
    """Return a client's own texts; where something is personal its own test texts, or a share held out for testing."""
    table = config.data
    assert table.path is not None
    read = partial(
        load_split,
        table.path,
        text=list(table.text) if table.text else None,
        label=table.label,
        form=table_format(config),
        classes=labels,
    )
    train, _, origin = read("train")
    test = Split([], train.labels[:0])
    if model.personal and has_test_split(table.path):
        test, _, tested = read("test")
        origin = replace(origin, test=tested.test)
    elif model.personal:
        held_out = hold_out(train.labels, config.client.test_share, config.run.seed, str(table.path))
        test = train.select(held_out)
        train = train.select(np.setdiff1d(np.arange(len(train.texts)), held_out))
        origin = replace(origin, test=f"held out of {origin.train} by seed {config.run.seed}")
    train_ids, test_ids = model.tokenize(train.texts), model.tokenize(test.texts)
    model.measure(announced(text_data(train, test, labels, str(table.path), origin)), train_ids, test_ids)
    training = _whole(model, train_ids, train.labels, client, "training texts")
    if not model.personal:
        return training, None
    return training, _whole(model, test_ids, test.labels, client, "test texts")


def _whole(model: Model, ids: TokenIds, labels: NDArray[np.int64], client: int, what: str) -> Share:
    return Share(model.prepare(ids, what), labels, {client: np.arange(len(labels))})
