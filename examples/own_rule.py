"""An aggregation rule of one's own: every client counts the same, however many texts it has.

Mohri et al., "Agnostic federated learning", ICML 2019, say why one may not want the clients with most texts to decide.
No change in the package is needed, and no network: the encoder and the texts come with the extra `offline`.

    python examples/own_rule.py
"""

import torch

from splitrank import load_config, load_data, make_clients, run_round
from splitrank.learning.aggregation.rule import Combined, Rule
from splitrank.traits import RuleTraits


def plain_mean(starts, updates, weights, memory):
    """Take the mean of each number over the clients; their weights do not count."""
    whole = starts.whole
    means = {
        name: torch.stack([update.tensors[name] for update in updates.values()]).double().mean(dim=0).float()
        for name in whole.tensors
    }
    return Combined(whole.with_tensors(means), memory={})


# Direction j of the new factors is direction j of the old ones. All clients must train at one rank.
PLAIN_MEAN = Rule("plain-mean", RuleTraits(tags=frozenset({"keeps_basis", "unweighted"})), plain_mean)

config = load_config(
    "offline",
    [
        "data.train_rows=300",  # 100 for each of three clients
        "data.test_rows=200",
        "model.max_length=64",
        "federation.rounds=3",
        "train.learning_rate=2e-3",
        "planner.max_rank=16",
        "run.threads=1",  # so small a task gains nothing by more
    ],
)
clients = make_clients(config, load_data(config), rule=PLAIN_MEAN)
state = clients.initial_state()
print(f"before training: accuracy {clients.evaluate(state).accuracy:.1%}")
for _ in range(config.federation.rounds):
    state, record = run_round(state, clients)
    print(f"round {record.round}: rank {record.rank}, accuracy {record.accuracy:.1%}")
clients.close()
