"""Signals: what is measured about a sample. A signal computes columns and never drops."""
