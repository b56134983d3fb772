"""Rules that bind several settings, one sentence for each that is broken."""

from __future__ import annotations

import math
from collections.abc import Iterable

from splitrank.config.conditions import quoted
from splitrank.config.fields import settings_of, values_of
from splitrank.config.tables import Config
from splitrank.config.values import ByColumn
from splitrank.traits import METHOD_TRAITS, RULE_TRAITS, why_no_server_optimizer


def broken_rules(config: Config) -> Iterable[str]:
    """Yield a sentence for every rule between settings that these break."""
    yield from _lists_of_clients(config)
    yield from _method_and_rule(config)
    yield from _enough_updates(config)
    yield from _server_optimizer(config)
    yield from _planning(config)
    yield from _measured_numbers(config)
    yield from _partition(config)
    yield from _selection(config)
    yield from _empty_names(config)


def _lists_of_clients(config: Config) -> Iterable[str]:
    num_clients = config.federation.num_clients
    for key, value in values_of(config).items():
        if settings_of()[key].per_client and isinstance(value, tuple) and len(value) != num_clients:
            yield f"{key} must be a list of federation.num_clients = {num_clients} numbers, got {len(value)}"
    if config.federation.min_clients > num_clients:
        yield (
            f"federation.min_clients must be at most federation.num_clients = {num_clients}, "
            f"got {config.federation.min_clients}"
        )


def _method_and_rule(config: Config) -> Iterable[str]:
    """Check adapter method, aggregation rule and ranks, all of them look-ups of their traits."""
    method, rule = config.adapter.method, config.federation.aggregation
    traits = METHOD_TRAITS[method]
    missing = RULE_TRAITS[rule].needs - traits.kinds
    others = [name for name, other in RULE_TRAITS.items() if other.takes(traits.kinds)]
    if not missing and rule not in others:
        yield (
            f'federation.aggregation must be {quoted(others)} for adapter.method = "{method}", got "{rule}", which '
            f'merges plain LoRA alone; try federation.aggregation = "{others[0]}"'
        )
    if missing:
        yield (
            f'federation.aggregation must be {quoted(others)} for adapter.method = "{method}", which has no '
            f'{" and no ".join(sorted(missing))}, got "{rule}"; try federation.aggregation = "{others[0]}"'
        )
    if config.workload.model == "paper" and not traits.in_paper:
        yield (
            f'workload.model must be "flops" or "measured" for adapter.method = "{method}", got "paper"; '
            'try workload.model = "flops"'
        )
    if "prunes" in RULE_TRAITS[rule].tags and traits.has_rank:
        yield from _planned_for_each(config)
    whole = config.federation.lora_a2.rank
    if "slices" in RULE_TRAITS[rule].tags and config.adapter.rank is not None and config.adapter.rank > whole:
        yield (
            f"adapter.rank must be at most federation.lora-a2.rank = {whole}, the rank of the adapter of which clients "
            f"choose slices, got {config.adapter.rank}"
        )
    if "needs_fixed_rank" in RULE_TRAITS[rule].tags and traits.has_rank and config.adapter.rank is None:
        yield (
            f'adapter.rank must be given for federation.aggregation = "{rule}", which needs one rank in all rounds, '
            "got nothing; try adapter.rank = 8"
        )
    if config.planner.rank_policy == "common" or config.adapter.rank is not None or not traits.has_rank:
        return
    if "unequal_ranks" not in RULE_TRAITS[rule].tags and not missing:
        able = [name for name in others if "unequal_ranks" in RULE_TRAITS[name].tags]
        suggested = "flexlora" if "flexlora" in able else next(iter(able), None)
        yield (
            f'planner.rank_policy must be "common" for federation.aggregation = "{rule}", which averages factors of '
            f'one rank, got "per-client"; try federation.aggregation = "{suggested}"'
            if suggested
            else f'planner.rank_policy must be "common" for adapter.method = "{method}", which no rule averages at '
            'unequal ranks, got "per-client"; leave it out'
        )
    if config.radio.downlink == "broadcast":
        yield (
            'planner.rank_policy must be "common" for radio.downlink = "broadcast", which sends everybody the same '
            'adapter, got "per-client"; try radio.downlink = "unicast"'
        )


def _planned_for_each(config: Config) -> Iterable[str]:
    """Check what a rule needs under which clients give up ranks of their own."""
    rule = config.federation.aggregation
    if config.adapter.rank is not None:
        yield (
            f'adapter.rank must be left out for federation.aggregation = "{rule}", whose clients prune their ranks, '
            f"got {config.adapter.rank}; planner.max_rank limits them"
        )
    elif config.planner.rank_policy == "common":
        yield (
            f'planner.rank_policy must be "per-client" for federation.aggregation = "{rule}", whose clients prune '
            'their ranks, got "common"; try planner.rank_policy = "per-client"'
        )


def _enough_updates(config: Config) -> Iterable[str]:
    """Check that a round can have as many updates as the aggregation rule needs."""
    federation = config.federation
    key, most = "federation.num_clients", federation.num_clients
    if federation.clients_per_round is not None:
        key, most = "federation.clients_per_round", min(most, federation.clients_per_round)
    fewest = RULE_TRAITS[federation.aggregation].min_updates
    if most < fewest:
        yield (
            f'{key} must be at least {fewest} for federation.aggregation = "{federation.aggregation}", got {most}; '
            'try federation.aggregation = "fedavg"'
        )
    elif federation.aggregation == "trimmed-mean" and 0 < (fraction := federation.trimmed_mean.fraction) < 1 / most:
        least = math.ceil(100 / most) / 100
        yield (
            f"federation.trimmed-mean.fraction must leave out at least one of a round's {most} updates at each end, or "
            f"be 0 for the unweighted mean, got {fraction:g}; try federation.trimmed-mean.fraction = {least:g}"
        )


def _server_optimizer(config: Config) -> Iterable[str]:
    """Check that moments of one round mean something in the next."""
    chosen, rule = config.federation.server_optimizer, config.federation.aggregation
    if chosen == "none":
        return
    if (why := why_no_server_optimizer(RULE_TRAITS[rule])) is not None:
        yield (
            f'federation.server_optimizer must be "none" for federation.aggregation = "{rule}", which {why}, '
            f'got "{chosen}"; try federation.aggregation = "fedavg"'
        )
    elif METHOD_TRAITS[config.adapter.method].has_rank and config.adapter.rank is None:
        yield (
            f'adapter.rank must be given for federation.server_optimizer = "{chosen}", since a planned rank that falls '
            "turns the basis of the factors, got a planned one; try adapter.rank = 8"
        )


def _planning(config: Config) -> Iterable[str]:
    yield from _objective(config)
    chooses_hz = config.planner.method != "random-frequency" and config.planner.objective == "largest-rank"
    if math.isinf(config.budget.latency_s) and chooses_hz and config.planner.frequency_policy == "least-energy":
        yield (
            'planner.frequency_policy must be "least-latency" where budget.latency_s = inf, got "least-energy", '
            "which would stop the clock; leave it out"
        )
    if config.planner.where == "client" and config.planner.method == "random-frequency":
        yield 'planner.where must be "server" for planner.method = "random-frequency", a baseline, got "client"'
    if config.planner.where == "client" and config.planner.bandwidth == "joint":
        yield (
            'planner.where must be "server" for planner.bandwidth = "joint", where one client\'s sub-band depends on '
            'what the others need, got "client"'
        )
    shares = config.planner.bandwidth == "joint" and config.planner.participation == "worth"
    if shares and config.radio.downlink == "broadcast":
        yield (
            'planner.participation must be "all" for radio.downlink = "broadcast" and planner.bandwidth = "joint", '
            'where the slowest participant decides everybody\'s rate, got "worth"; try radio.downlink = "unicast"'
        )
    is_measured = config.workload.model == "measured" and config.client.seconds_per_sample is None
    if is_measured and config.planner.bandwidth == "joint":
        yield (
            'planner.bandwidth must be "equal" where machines and links are measured, whose band nobody can share out, '
            'got "joint"; leave it out'
        )


def _objective(config: Config) -> Iterable[str]:
    """Check what a plan is for, and the smallest rank."""
    planner, rule = config.planner, config.federation.aggregation
    plans_rank = METHOD_TRAITS[config.adapter.method].has_rank and config.adapter.rank is None
    if math.isinf(config.budget.latency_s) and planner.objective == "least-energy":
        yield (
            'planner.objective must be "largest-rank" or "least-latency" where budget.latency_s = inf, got '
            '"least-energy", which would stop the clock'
        )
    if planner.objective != "largest-rank" and planner.rank_policy == "per-client" and plans_rank:
        yield (
            f'planner.rank_policy must be "common" for planner.objective = "{planner.objective}", with which all train '
            'at planner.min_rank, got "per-client"'
        )
    if plans_rank and planner.min_rank > planner.max_rank:
        yield f"planner.min_rank must be at most planner.max_rank = {planner.max_rank}, got {planner.min_rank}"
    if plans_rank and planner.min_rank > 1 and "prunes" in RULE_TRAITS[rule].tags:
        yield (
            f'planner.min_rank must be 1 for federation.aggregation = "{rule}", whose clients prune their ranks, got '
            f"{planner.min_rank}"
        )


def _measured_numbers(config: Config) -> Iterable[str]:
    measured = ("reference_frequency_hz", "seconds_per_sample", "seconds_per_sample_per_rank")
    given = [key for key in measured if getattr(config.client, key) is not None]
    if given and len(given) < len(measured):
        lacking = next(key for key in measured if key not in given)
        yield f"client.{lacking} must be given beside client.{given[0]}, got nothing; leave all out to measure them"


def _partition(config: Config) -> Iterable[str]:
    if isinstance(config.federation.partition, ByColumn) and config.data.name == "docstrings":
        yield (
            'federation.partition must be one by name for data.name = "docstrings", which has no columns, got '
            f'{config.federation.partition}; try federation.partition = "dirichlet"'
        )


def _selection(config: Config) -> Iterable[str]:
    federation, planner = config.federation, config.planner
    wanted = federation.clients_per_round
    if wanted is None:
        return
    if wanted > federation.num_clients:
        yield (
            f"federation.clients_per_round must be at most federation.num_clients = {federation.num_clients}, "
            f"got {wanted}; leave it out for all"
        )
    if federation.min_clients > wanted:
        yield (
            f"federation.min_clients must be at most federation.clients_per_round = {wanted}, or no round would "
            f"change the model, got {federation.min_clients}"
        )
    if not federation.over_selection:
        return
    if planner.where == "client":
        yield (
            'federation.over_selection must be 0 for planner.where = "client", where planned times stay with the '
            f"clients, got {federation.over_selection:g}"
        )
    goal = planner.frequency_policy if planner.objective == "largest-rank" else planner.objective
    if planner.method != "random-frequency" and goal == "least-energy":
        key = "frequency_policy" if planner.objective == "largest-rank" else "objective"
        yield (
            f'federation.over_selection must be 0 for planner.{key} = "least-energy", with which all end '
            f'at the deadline, got {federation.over_selection:g}; try planner.{key} = "least-latency"'
        )


def _empty_names(config: Config) -> Iterable[str]:
    for key in ("path", "label", "config"):
        text = getattr(config.data, key)
        if text is not None and not text.strip():
            yield f"data.{key} must not be empty, got {text!r}; leave it out or name yours"
    if config.data.name is not None and not config.data.name.strip():
        yield 'data.name must be a data set\'s name, got ""; try data.name = "fancyzhx/ag_news"'
    if not config.model.name.strip():
        yield 'model.name must be a model\'s name or folder, got ""; try model.name = "roberta-base"'
