"""A client's way to the server: nginx on the client's loopback, which presents the client's certificate.

The server's proxy talks to nobody without one, and a SuperNode of Flower 1.41 has none to present. So the SuperNode
talks to this nginx, and this one to the server's. It checks the server's certificate by :data:`SERVER_NAME`, which only
the server's has: nginx looks for names in certificates, not for addresses.
"""

from __future__ import annotations

from importlib import resources

from splitrank.federation.flower.client_config import ClientConfig
from splitrank.files import fill_in, write_atomically

SERVER_NAME = "splitrank-server"


def client_proxy_command(own: ClientConfig) -> list[str]:
    """Write the client's ``nginx.conf``, and return the command that starts it, in the client's folder."""
    # Read as data: it lies beside the server's, which `deploy init` fills in.
    template = resources.files("splitrank.deployment") / "templates" / "client-proxy" / "nginx.conf"
    values = {
        "SERVER": own.node["server"],
        "PORT": str(own.proxy_port),
        "CERTIFICATE": own.node["certificate"],
        "KEY": own.node["certificate_key"],
        "ROOT": own.node["root_certificates"],
        "NAME": SERVER_NAME,
    }
    write_atomically(own.folder / "nginx.conf", fill_in(template.read_text(encoding="utf-8"), values))
    return ["nginx", "-p", str(own.folder), "-c", "nginx.conf", "-e", "nginx-error.log"]
