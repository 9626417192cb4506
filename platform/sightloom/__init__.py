"""Sightloom: universal vision-language reasoning models, from raw data to a served endpoint, on Ray."""

__version__ = "0.1.0"
