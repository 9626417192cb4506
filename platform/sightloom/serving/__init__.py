"""Serving: an OpenAI-compatible endpoint for vision-language reasoning models, on Ray Serve or in one process."""
