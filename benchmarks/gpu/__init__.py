"""What a GPU makes of the step: checks and measurements, most important first.

    python -m benchmarks.gpu --minutes 8

needs torch, transformers, peft, pydantic and Pillow, and no network: all models have random weights.
"""
