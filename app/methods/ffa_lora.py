"""FFA-LoRA: A stays as the seed made it; B is trained and travels, so that the mean of B·A is exact.

Sun, Li, Li, Ding, "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv 2403.12313.
"""

from .half_lora import B, HalfLora


class FFALora(HalfLora):
    """B is trained and averaged."""

    name = "ffa-lora"
    halves = {"shared": B}
