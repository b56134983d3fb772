#!/usr/bin/env bash
# Starts the server: SuperLink and signed app on loopback, nginx before them. Ctrl-C stops all three.
set -euo pipefail
cd "$(dirname "$0")"
fail() {
  echo "Error: $1" >&2
  exit 1
}
[ -e server.key ] && [ -e app/app.fab ] || fail "keys and signed app must be here; run ./make-keys.sh and copy server/ again"
command -v nginx >/dev/null || fail "nginx must be installed, got none on the PATH; try apt-get install nginx-light"
export FLWR_HOME="$PWD/flwr" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.05
# Arrays in pieces that a slow link carries within the 30 s that Flower gives a request.
export FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE=524288
export FLWR_SUPERGRID_API_URL="http://127.0.0.1:@APP_PORT@"
mkdir -p flwr
printf '[superlink.server]\naddress = "127.0.0.1:@SUPERLINK_PORT@"\nroot-certificates = "%s/ca.crt"\n' "$PWD" >flwr/config.toml
trap 'trap - EXIT; kill $(jobs -p) 2>/dev/null; wait' EXIT
trap 'exit 0' INT TERM
python3 -m splitrank.deployment.app_store serve app @APP_PORT@ &
flower-superlink --ssl-ca-certfile ca.crt --ssl-certfile server.crt --ssl-keyfile server.key --enable-supernode-auth \
  --database superlink.db --host 127.0.0.1 --port @SUPERLINK_PORT@ &
nginx -p "$PWD" -c nginx.conf -e nginx-error.log &
for second in $(seq 121); do
  sleep 1
  [ "$(jobs -r | wc -l)" -eq 3 ] || fail "one of the server's programs has ended, and what it said stands above; \
is another server running on ports @PORT@, @SUPERLINK_PORT@ or @APP_PORT@?"
  ! flwr supernode list server >/dev/null 2>&1 || break
  [ "$second" -le 120 ] || fail "the SuperLink does not answer; what it said stands above"
done
# A key that is registered already is refused, which is as good.
for key in nodes/*.pub; do flwr supernode register "$key" server >/dev/null 2>&1 || true; done
echo "The server is up on port @PORT@; ./run.sh starts a run." >&2
wait -n || true
fail "one of the server's programs has ended, and what it said stands above; start this again"
