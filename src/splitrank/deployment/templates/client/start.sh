#!/usr/bin/env bash
# Starts this client: its worker, its SuperNode, and nginx as its way to the server. Ctrl-C stops all three.
set -euo pipefail
cd "$(dirname "$0")"
export FLWR_HOME="$PWD/flwr"
exec python3 -m splitrank.federation.flower.supervisor client.toml
