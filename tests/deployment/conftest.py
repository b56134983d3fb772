"""Flower is an extra: without it there is nothing here to collect, and asking for it by its marker finds no test."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("flwr") else ["test_*.py"]
