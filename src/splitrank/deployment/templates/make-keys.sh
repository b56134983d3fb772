#!/usr/bin/env bash
# Makes all keys of the federation in ./keys and hands every machine what it needs, nothing more. Run once, where the
# keys are to be kept. To add a client later: ./make-keys.sh NUMBER
#   ca.*        a certificate authority of your own; its key signs the server's certificate
#   server.*    TLS certificate of the server
#   node-N.*    the key by which the SuperLink knows client N
#   signing.*   the key with which the app is signed; clients run nothing that it has not signed
set -euo pipefail
cd "$(dirname "$0")"
umask 077
mkdir -p keys
server="@SERVER@"

if [ ! -e keys/ca.key ]; then
  openssl ecparam -name secp384r1 -genkey -noout -out keys/ca.key
  openssl req -x509 -new -key keys/ca.key -sha384 -days 3650 -subj "/CN=splitrank CA" -out keys/ca.crt \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"
fi
if [ ! -e keys/server.key ]; then
  case "$server" in
    *[!0-9.]*) name="DNS:$server" ;;
    *) name="IP:$server" ;;
  esac
  openssl ecparam -name secp384r1 -genkey -noout -out keys/server.key
  openssl req -new -key keys/server.key -subj "/CN=$server" -out keys/server.csr
  printf 'subjectAltName=%s,DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n' "$name" >keys/server.ext
  openssl x509 -req -in keys/server.csr -CA keys/ca.crt -CAkey keys/ca.key -CAcreateserial -sha384 -days 825 \
    -extfile keys/server.ext -out keys/server.crt 2>/dev/null
  rm keys/server.csr keys/server.ext
fi
if [ ! -e keys/signing ]; then
  ssh-keygen -q -t ed25519 -N "" -C splitrank -f keys/signing
fi
printf 'splitrank: "%s"\n' "$(cat keys/signing.pub)" >keys/trusted.yaml

clients=${1:-$(seq 0 $((@NUM_CLIENTS@ - 1)))}
for client in $clients; do
  [ -e "keys/node-$client" ] || ssh-keygen -q -t ecdsa -b 384 -N "" -C "client $client" -f "keys/node-$client"
  mkdir -p "client-$client"
  [ -e "client-$client/client.toml" ] || sed "s/^client = .*/client = $client/" client-0/client.toml >"client-$client/client.toml"
  [ -e "client-$client/start.sh" ] || cp client-0/start.sh "client-$client/start.sh"
  cp keys/ca.crt keys/trusted.yaml "client-$client/"
  cp "keys/node-$client" "client-$client/node.key"
done
mkdir -p server/nodes server/app
cp keys/ca.crt keys/server.crt keys/server.key server/
cp keys/node-*.pub server/nodes/
python3 -m splitrank.deployment.app_store sign app keys/signing server/app
echo "Copy server/ to the server and each client-N/ to its machine; keep keys/ where it is."
