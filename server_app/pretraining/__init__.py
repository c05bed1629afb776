"""Stage 1: a backbone, or the shared adapter alone, learns on the server from public images.

One trainer (`trainer`) for three objectives. Masked captions (`masked_captions`), then questions
(`question_answering`), made the built-in backbone; dynamic weighted pretraining (`dynamic_weighting`) is
stage 1 of MLLM-LLaVA-FL (Zhang et al., WACV 2025, arXiv 2409.06067), for any backbone.

``python -m server_app.pretraining OBJECTIVE`` trains a backbone and saves it: a folder that a run takes by
``backbone = '<folder>'``. `initial_adapter` trains the shared adapter inside a run, before its first round.
"""
