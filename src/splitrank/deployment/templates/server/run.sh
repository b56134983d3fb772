#!/usr/bin/env bash
# Starts a run, or goes on with the one in ./run, and shows its log. Options go to `flwr run`.
set -euo pipefail
cd "$(dirname "$0")"
export FLWR_HOME="$PWD/flwr" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
# With its version named, Flower takes the app as it is signed now, not as it was at the first run.
exec flwr run @splitrank/splitrank-app==1.0.0 server --stream \
  --run-config "config=\"$PWD/config.toml\" out=\"$PWD/run\" clients=\"own\"" "$@"
