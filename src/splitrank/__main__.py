"""`python -m splitrank`."""

from splitrank.cli import app

app()
