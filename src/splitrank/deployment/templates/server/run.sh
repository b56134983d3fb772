#!/usr/bin/env bash
# Starts a run, or goes on with the one in ./run, shows its log, and at its end writes ./run/report.html. Ctrl-C ends the
# showing, not the run. Options go to `flwr run`.
set -euo pipefail
cd "$(dirname "$0")"
export FLWR_HOME="$PWD/flwr" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 PYTHONUNBUFFERED=1
splitrank config check config.toml
if ! flwr supernode list server >/dev/null 2>&1; then
  echo "Error: the server must be up, but does not answer; start ./start.sh first" >&2
  exit 1
fi
touch run.begun
# With its version named, Flower takes the app as it is signed now, not as it was at the first run.
flwr run @splitrank/splitrank-app==1.0.0 server --stream \
  --run-config "config=\"$PWD/config.toml\" out=\"$PWD/run\" clients=\"own\"" "$@"
if [ ! run/adapter/adapter_model.safetensors -nt run.begun ]; then
  echo "Error: the run is not finished; what stopped it stands above. When that is mended, ./run.sh goes on." >&2
  exit 1
fi
splitrank report run
