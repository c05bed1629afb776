"""pLoRA: B travels; A stays with its client.

Mitra et al., "FedVLM: Scalable Personalized Vision-Language Models through Federated Learning", 2025, arXiv
2507.17088.
"""

from .half_lora import A, B, HalfLora


class PLora(HalfLora):
    """Both matrices are trained; B is averaged."""

    name = "plora"
    trained = ("shared", "local")
    note = (
        "Each client keeps its own matrices A of the LoRA: in the exported adapter their first weights"
        " stand in, and the scores are those of the clients' own."
    )
    halves = {"shared": B, "local": A}
