"""The procedural corpus and the demo run over the whole road."""
