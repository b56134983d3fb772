#!/usr/bin/env bash
# Makes all keys of the federation in ./keys and hands every machine what it needs, nothing more. Run once, where the
# keys are kept; what is there already stays. To add a client later: ./make-keys.sh NUMBER
#   ca.*        a certificate authority of your own; its key signs the certificates
#   server.*    TLS certificate of the server
#   client-N.*  TLS certificate of client N, without which the server's port answers nothing
#   node-N.*    the key by which the SuperLink knows client N
#   signing.*   the key with which the app is signed; clients run nothing that it has not signed
set -euo pipefail
cd "$(dirname "$0")"
umask 077

fail() {
  echo "Error: $1" >&2
  exit "${2:-1}"
}
if [ $# -gt 0 ] && ! [[ "$1" =~ ^(0|[1-9][0-9]{0,3})$ ]]; then
  fail "NUMBER must be a client's number, 0 or greater, got '$1'" 2
fi
for tool in openssl ssh-keygen python3; do
  command -v $tool >/dev/null || fail "$tool must be installed, got none on the PATH"
done
python3 -c "import splitrank, flwr" 2>/dev/null || fail 'python3 must have splitrank; try pip install "splitrank[flower]"'
[ -e client-0/client.toml ] || fail "client-0 must be here to copy from; \`splitrank deploy init\` writes it"

# quietly COMMAND: shows what it says only if it fails
quietly() {
  "$@" 2>keys/said || fail "$1 said: $(cat keys/said)"
}
# has FILE...: all are there and not empty
has() {
  for file in "$@"; do [ -s "keys/$file" ] || return 1; done
}
# Every key is made under another name and then given its own, so that one whose making broke off is made again.
# certificate NAME COMMON_NAME EXTENSIONS...: a key, and its certificate by our authority
certificate() {
  ! has "$1.key" "$1.crt" || return 0
  quietly openssl ecparam -name secp384r1 -genkey -noout -out keys/new.key
  quietly openssl req -new -key keys/new.key -subj "/CN=$2" -out keys/new.csr
  printf '%s\n' "${@:3}" >keys/new.ext
  quietly openssl x509 -req -in keys/new.csr -CA keys/ca.crt -CAkey keys/ca.key -CAcreateserial -sha384 -days 825 \
    -extfile keys/new.ext -out keys/new.crt
  mv keys/new.key "keys/$1.key"
  mv keys/new.crt "keys/$1.crt"
}
# pair NAME OPTIONS...: a key pair of ssh-keygen's
pair() {
  ! has "$1" "$1.pub" || return 0
  if ! has "$1"; then
    rm -f keys/new keys/new.pub
    quietly ssh-keygen -q -N "" -f keys/new "${@:2}"
    mv keys/new "keys/$1"
  fi
  quietly ssh-keygen -y -f "keys/$1" >keys/new.pub
  mv keys/new.pub "keys/$1.pub"
}

mkdir -p keys
if ! has ca.key ca.crt; then
  quietly openssl ecparam -name secp384r1 -genkey -noout -out keys/new.key
  quietly openssl req -x509 -new -key keys/new.key -sha384 -days 3650 -subj "/CN=splitrank CA" -out keys/new.crt \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"
  rm -f keys/server.* keys/client-*  # signed by another authority, if there are any
  mv keys/new.key keys/ca.key
  mv keys/new.crt keys/ca.crt
fi
server="@SERVER@"
case "$server" in
  *[!0-9.]*) name="DNS:$server" ;;
  *) name="IP:$server" ;;
esac
# Clients look for the name splitrank-server, the server's own programs for localhost.
certificate server "splitrank server" "subjectAltName=$name,DNS:splitrank-server,DNS:localhost,IP:127.0.0.1" \
  extendedKeyUsage=serverAuth
pair signing -t ed25519 -C splitrank
signer=$(cat keys/signing.pub)
printf 'splitrank: "%s"\n' "$signer" >keys/trusted.yaml

for client in ${1:-$(seq 0 $((@NUM_CLIENTS@ - 1)))}; do
  pair "node-$client" -t ecdsa -b 384 -C "client $client"
  # It opens the server's port, and serves the SuperNode on the client's own loopback.
  certificate "client-$client" "client $client" subjectAltName=IP:127.0.0.1 extendedKeyUsage=clientAuth,serverAuth
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
rm -f keys/new* keys/said
echo "Copy server/ to the server and each client-N/ to its machine; keep keys/ where it is."
