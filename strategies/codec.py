"""What arrays look like on the wire when they do not travel as Flower writes them."""

from typing import Protocol

from flwr.app import ArrayRecord


class Codec(Protocol):
    """Whoever writes arrays in fewer bytes, and reads what clients send back in the same way.

    Clients must read and write them in that way too: Flower's own `Array.numpy` refuses them.
    """

    def encode(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return the same names, dtypes and shapes, written with a `stype` of its own.

        How many bytes an array takes depends on nothing but its shape.
        """

    def decode(self, arrays: ArrayRecord, reply: ArrayRecord) -> ArrayRecord:
        """Return what a client made of `arrays`, which it was sent encoded.

        Raises
        ------
        ValueError
            One line: what is wrong with the reply. Its names, dtypes, shapes and lengths are right.
        """
