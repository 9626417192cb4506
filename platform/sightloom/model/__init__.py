"""The model: presets, scratch, loading, chat format, packed attention, heads, generation, reasoning control."""
