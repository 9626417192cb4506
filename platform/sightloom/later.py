"""Modules that are imported when something of them is first used.

A mistake in a recipe is told before torch loads, and a driver that lives beside its workers need not hold torch at all.
"""

import importlib
from typing import Any


class Later:
    """Stands for a module; type checkers are shown the module itself (`if TYPE_CHECKING: from … import …`)."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)
