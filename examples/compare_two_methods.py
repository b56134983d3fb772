"""LoRA or DoRA? Both at the same rank, on the same texts, clients and links: what each reaches and what it costs.

Needs no network: the encoder and the texts come with the extra `offline`.

    python examples/compare_two_methods.py
"""

from splitrank import load_config, load_data, make_clients, run_round

METHODS = ["lora", "dora"]
SMALL = [
    "data.train_rows=300",  # 100 for each of three clients
    "data.test_rows=200",
    "model.max_length=64",
    "federation.rounds=2",
    "train.learning_rate=2e-3",
    "adapter.rank=8",
    "run.threads=1",  # so small a task gains nothing by more
]
configs = {method: load_config("offline", [*SMALL, f"adapter.method={method}"]) for method in METHODS}
data = load_data(configs["lora"])

print("method  accuracy  Mbit up  seconds")
for method, config in configs.items():
    clients = make_clients(config, data)
    state, records = clients.initial_state(), []
    for _ in range(config.federation.rounds):
        state, record = run_round(state, clients)
        records.append(record)
    clients.close()
    bits = sum(client.uplink_bits for record in records for client in record.clients)
    seconds = sum(record.wall_s for record in records)
    print(f"{method:6} {records[-1].accuracy:9.1%} {bits / 1e6:8.2f} {seconds:8.1f}")
