"""FedSA-LoRA: A learns what all have in common and travels; B stays with its client.

Guo, Zeng, Wang, Wang, Xu, Qu, "Selective Aggregation for Low-Rank Adaptation in Federated Learning", ICLR
2025, arXiv 2410.01463.
"""

from .half_lora import A, B, HalfLora


class FedSALora(HalfLora):
    """Both matrices are trained; A is averaged."""

    name = "fedsa-lora"
    trained = ("shared", "local")
    note = (
        "Each client keeps its own matrices B of the LoRA: in the exported adapter their first weights"
        " stand in, and the scores are those of the clients' own."
    )
    halves = {"shared": A, "local": B}
