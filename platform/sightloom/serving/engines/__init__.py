"""Engines: what turns a request into text. Each implements `engines.base.Engine`."""
