"""The core: what server and clients compute with."""

__version__ = "0.1.0"
