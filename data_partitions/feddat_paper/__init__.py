"""The four benchmarks of FedDAT's paper (AAAI 2024), from files as their owners publish them.

Its splits were never published; it trains on about 2,500 pairs a client and tests on 500, over a client's 100
most frequent answers: ``train-examples=2500 test-examples=500``.
"""

from .benchmarks import DOMAIN, FUNCTION, SCENE, TASK

__all__ = ["DOMAIN", "FUNCTION", "SCENE", "TASK"]
