"""``feddat answer``: stub."""


def answer() -> None:
    """Ask."""
