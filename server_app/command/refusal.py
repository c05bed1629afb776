"""How a command ends that cannot do what it was asked."""


class Refusal(Exception):  # noqa: N818
    """One line that says why; the process ends with `code`."""

    def __init__(self, line: str, code: int = 1) -> None:
        super().__init__(" ".join(line.split()))
        self.code = code
