"""Teachers: what a multimodal model on the server says about public images.

A teacher answers in two ways: a caption for an image, or log-probabilities over candidate answers to a prompt
about it. `open_teacher` gives one by name (`teacher.model`), `annotate` and `annotate_captions` ask it about
many images, each once, and keep what it said (`annotating`, `annotations`); a teacher whose every answer is
kept is never loaded. How models are asked is in `models`; `toy` makes a small one.

    teacher = open_teacher("llava-hf/llava-1.5-7b-hf", normalise="pmi")
    q = annotate(teacher, images, "what is in the picture ?", ["a cat", "a dog"], cache=Path("kept.parquet"))

Run ``python -m server_app.teachers --model NAME --data FILE --out FILE`` to annotate beforehand, elsewhere.
"""
