#!/usr/bin/env bash
# Makes all keys of the federation in ./keys and hands every machine what it needs, nothing more. Run once, where the
# keys are to be kept. To add a client later: ./make-keys.sh NUMBER
#   ca.*        a certificate authority of your own; its key signs the certificates
#   server.*    TLS certificate of the server
#   client-N.*  TLS certificate of client N, without which the server's port answers nothing
#   node-N.*    the key by which the SuperLink knows client N
#   signing.*   the key with which the app is signed; clients run nothing that it has not signed
set -euo pipefail
cd "$(dirname "$0")"
umask 077
case "${1:-0}" in
  *[!0-9]*) echo "Error: NUMBER must be a client's number, 0 or greater, got $1" >&2; exit 2 ;;
esac
mkdir -p keys
server="@SERVER@"

if [ ! -e keys/ca.key ]; then
  openssl ecparam -name secp384r1 -genkey -noout -out keys/ca.key
  openssl req -x509 -new -key keys/ca.key -sha384 -days 3650 -subj "/CN=splitrank CA" -out keys/ca.crt \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"
fi
# certificate FILE NAME EXTENSIONS: a key, and its certificate by our authority
certificate() {
  [ ! -e "keys/$1.crt" ] || return 0
  openssl ecparam -name secp384r1 -genkey -noout -out "keys/$1.key"
  openssl req -new -key "keys/$1.key" -subj "/CN=$2" -out "keys/$1.csr"
  openssl x509 -req -in "keys/$1.csr" -CA keys/ca.crt -CAkey keys/ca.key -CAcreateserial -sha384 -days 825 \
    -extfile <(printf '%s\n' "${@:3}") -out "keys/$1.crt" 2>/dev/null
  rm "keys/$1.csr"
}
case "$server" in
  *[!0-9.]*) name="DNS:$server" ;;
  *) name="IP:$server" ;;
esac
# Clients look for the name splitrank-server, the server's own programs for localhost.
certificate server "$server" "subjectAltName=$name,DNS:splitrank-server,DNS:localhost,IP:127.0.0.1" extendedKeyUsage=serverAuth
if [ ! -e keys/signing ]; then
  ssh-keygen -q -t ed25519 -N "" -C splitrank -f keys/signing
fi
printf 'splitrank: "%s"\n' "$(cat keys/signing.pub)" >keys/trusted.yaml

clients=${1:-$(seq 0 $((@NUM_CLIENTS@ - 1)))}
for client in $clients; do
  [ -e "keys/node-$client" ] || ssh-keygen -q -t ecdsa -b 384 -N "" -C "client $client" -f "keys/node-$client"
  # It opens the server's port, and serves the SuperNode on the client's own loopback.
  certificate "client-$client" "client $client" "subjectAltName=IP:127.0.0.1" extendedKeyUsage=clientAuth,serverAuth
  mkdir -p "client-$client"
  [ -e "client-$client/client.toml" ] || sed "s/^client = .*/client = $client/" client-0/client.toml >"client-$client/client.toml"
  [ -e "client-$client/start.sh" ] || cp client-0/start.sh "client-$client/start.sh"
  cp keys/ca.crt keys/trusted.yaml "client-$client/"
  cp "keys/client-$client.crt" "client-$client/client.crt"
  cp "keys/client-$client.key" "client-$client/client.key"
  cp "keys/node-$client" "client-$client/node.key"
done
mkdir -p server/nodes server/app
cp keys/ca.crt keys/server.crt keys/server.key server/
cp keys/node-*.pub server/nodes/
python3 -m splitrank.deployment.app_store sign app keys/signing server/app
echo "Copy server/ to the server and each client-N/ to its machine; keep keys/ where it is."
