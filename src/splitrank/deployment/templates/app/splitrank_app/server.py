"""The ServerApp."""

from splitrank.federation.flower.server_app import app

__all__ = ["app"]
