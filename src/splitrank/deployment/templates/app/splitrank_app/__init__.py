"""Splitrank for Flower."""
