"""The ClientApp."""

from splitrank.federation.flower.client_app import app

__all__ = ["app"]
