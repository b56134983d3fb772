"""The signed app: SuperNodes run no other code than what the holder of the signing key has signed.

    python -m splitrank.deployment.app_store sign APP SIGNING_KEY FOLDER    where the key is kept
    python -m splitrank.deployment.app_store serve FOLDER PORT              on the server, loopback only

Flower 1.41 checks signatures (``flower-supernode --trusted-entities``), but takes signed apps from its hub alone. The
hub's address is a setting of the SuperLink (FLWR_SUPERGRID_API_URL), so this serves the one question that a SuperLink
asks a hub: where is the app, and who signed it? The signature is Ed25519 over the time of signing, as eight bytes, and
the bundle's SHA-256.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from splitrank.errors import InputError
from splitrank.files import write_atomically

BUNDLE, SIGNATURE = "app.fab", "app.json"
KEY_NAME = "splitrank"


def sign(app: Path, key_file: Path, folder: Path) -> None:
    """Bundle an app, sign it, and put bundle and signature into a folder.

    Args:
        app: the app's folder.
        key_file: an Ed25519 key as ``ssh-keygen -t ed25519`` makes it, without a passphrase.
        folder: where to.

    Raises:
        InputError: the key is another kind of key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    key = load_ssh_private_key(key_file.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(
            f"SIGNING_KEY must be an Ed25519 key, got another kind in {key_file}; try ssh-keygen -t ed25519"
        )
    with tempfile.TemporaryDirectory() as temporary:
        build = [sys.executable, "-m", "flwr.cli.app", "build", "--app", str(app.resolve())]
        subprocess.run(build, cwd=temporary, check=True, stdout=subprocess.DEVNULL)
        (built,) = Path(temporary).glob("*.fab")
        bundle = built.read_bytes()
    signed_at = int(time.time())
    signature = key.sign(signed_at.to_bytes(8, "big") + hashlib.sha256(bundle).digest())
    about = {
        "public_key_id": KEY_NAME,
        "signature": base64.urlsafe_b64encode(signature).decode(),
        "signed_at": signed_at,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / BUNDLE, bundle)
    write_atomically(folder / SIGNATURE, json.dumps(about) + "\n")


def serve(folder: Path, port: int) -> None:
    """Answer a SuperLink on this machine until stopped."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if self.path != "/hub/fetch-fab":
                self.send_error(404)
                return
            verification = json.loads((folder / SIGNATURE).read_text())
            url = f"http://127.0.0.1:{port}/{BUNDLE}"
            self._send(json.dumps({"fab_url": url, "verifications": [verification]}).encode())

        def do_GET(self) -> None:
            if self.path != f"/{BUNDLE}":
                self.send_error(404)
                return
            self._send((folder / BUNDLE).read_bytes())

        def _send(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", port), Answers).serve_forever()


def main() -> None:
    """Run one of the two commands of this module."""
    match sys.argv[1:]:
        case ["sign", app, key, folder]:
            sign(Path(app), Path(key), Path(folder))
            print(f"{folder}/{BUNDLE} is signed; its signature is {folder}/{SIGNATURE}.")
        case ["serve", folder, port]:
            try:
                serve(Path(folder), int(port))
            except OSError as error:
                sys.exit(f"Error: the app store must have port {port} of loopback, got: {error.strerror}")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
