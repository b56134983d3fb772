"""A client's way to the server: nginx on the client's loopback, which presents the client's certificate.

The server's proxy talks to nobody without one, and a SuperNode of Flower 1.41 has none to present. So the SuperNode
talks to this nginx, and this one to the server's. It checks the server's certificate by :data:`SERVER_NAME`, which only
the server's has: nginx looks for names in certificates, not for addresses.
"""

from __future__ import annotations

from splitrank.federation.flower.client_config import ClientConfig
from splitrank.files import write_atomically

SERVER_NAME = "splitrank-server"

_CONFIGURATION = """\
# Written at every start from client.toml.
daemon off;
pid nginx.pid;
error_log nginx-error.log;
worker_processes 1;
events { }
http {
  access_log off;
  client_body_temp_path nginx-temp;     # named, but not used: what is sent goes through as it comes
  proxy_temp_path nginx-temp;
  fastcgi_temp_path nginx-temp;
  uwsgi_temp_path nginx-temp;
  scgi_temp_path nginx-temp;
  upstream server {
    server @SERVER@;
    keepalive 4;
  }
  server {
    listen 127.0.0.1:@PORT@ ssl;
    ssl_certificate "@CERTIFICATE@";
    ssl_certificate_key "@KEY@";
    ssl_protocols TLSv1.3;
    client_max_body_size 64m;
    proxy_read_timeout 300s;
    proxy_send_timeout 300s;
    proxy_http_version 1.1;
    proxy_request_buffering off;
    proxy_buffering off;
    location / {
      proxy_pass https://server;
      proxy_set_header Connection "";
      proxy_ssl_protocols TLSv1.3;
      proxy_ssl_certificate "@CERTIFICATE@";
      proxy_ssl_certificate_key "@KEY@";
      proxy_ssl_trusted_certificate "@ROOT@";
      proxy_ssl_verify on;
      proxy_ssl_name @NAME@;
    }
  }
}
"""


def client_proxy_command(own: ClientConfig) -> list[str]:
    """Write the client's ``nginx.conf``; gives the command that starts it, in the client's folder."""
    values = {
        "SERVER": own.node["server"],
        "PORT": own.proxy_port,
        "CERTIFICATE": own.node["certificate"],
        "KEY": own.node["certificate_key"],
        "ROOT": own.node["root_certificates"],
        "NAME": SERVER_NAME,
    }
    text = _CONFIGURATION
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    write_atomically(own.folder / "nginx.conf", text)
    return ["nginx", "-p", str(own.folder), "-c", "nginx.conf", "-e", "nginx-error.log"]
