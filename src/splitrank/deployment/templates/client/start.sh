#!/usr/bin/env bash
# Starts this client: its worker and its SuperNode. Ctrl-C stops both.
set -euo pipefail
cd "$(dirname "$0")"
export FLWR_HOME="$PWD/flwr"
exec python3 -m splitrank.federation.flower.station client.toml
