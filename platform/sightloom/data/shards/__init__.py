"""Shards: the manifest, the deterministic tar, packing, verifying and reading back."""
