"""The four corners of a picture and the way from one to another."""

from typing import Final

PLACES: Final = ("top left", "top right", "bottom left", "bottom right")

# From a corner: the words of a way, and the corner where it ends.
WAYS: Final = (
    (("right of", 1), ("below", 2)),
    (("left of", 0), ("below", 3)),
    (("above", 0), ("right of", 3)),
    (("above", 1), ("left of", 2)),
)
