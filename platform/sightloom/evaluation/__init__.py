"""Measuring a model per domain, and deciding whether it may become champion."""
