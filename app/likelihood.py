"""Log-likelihoods of candidate answers, all from one prefill of image and prompt.

An image is hundreds of tokens and an answer a few: most of a forward is the same for every candidate. So the
first goes through the model once, and each candidate continues from a copy of the key–value cache.
`reference_log_likelihoods` is the plain version, a full forward a candidate; tests hold the fast one to it.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

# Candidates that continue an image's cache at a time: more are faster and hold more copies of it.
AT_ONCE = 16


@torch.inference_mode()
def log_likelihoods(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    candidates: Sequence[Sequence[int]],
    at_once: int = AT_ONCE,
) -> Tensor:
    """Sum each candidate's log-probabilities, token after token, behind each image and prompt.

    Parameters
    ----------
    model : PreTrainedModel
        A decoder that takes images and keeps a key–value cache.
    inputs : Mapping
        What its processor makes of images and prompts, padded on the left: ``input_ids`` and
        ``attention_mask`` (images, tokens), and the pixels.
    candidates : sequence of sequence of int
        Token ids, at least one each.
    at_once : int
        Candidates that are scored in one forward, for each image.

    Returns
    -------
    Tensor
        float32, shape (images, candidates).
    """
    mask = inputs["attention_mask"]
    positions = {} if _has_own_positions(model) else {"position_ids": _positions(mask)}
    output = model(**inputs, **positions, use_cache=True, logits_to_keep=1)
    # Where positions have several axes, the model says by how much they are ahead of the number of tokens.
    ahead = getattr(model.base_model, "rope_deltas", None)
    scores = output.logits[:, -1].float().log_softmax(-1)[:, [tokens[0] for tokens in candidates]]

    longer = [index for index, tokens in enumerate(candidates) if len(tokens) > 1]
    for start in range(0, len(longer), at_once):
        chosen = longer[start : start + at_once]
        fed, targets, valid = _pad([candidates[index] for index in chosen], mask.device)
        cache = copy.deepcopy(output.past_key_values)
        cache.batch_repeat_interleave(len(chosen))
        fed, targets, valid = (tensor.repeat(len(mask), 1) for tensor in (fed, targets, valid))
        whole = torch.cat([mask.repeat_interleave(len(chosen), dim=0), valid.to(mask)], dim=1)
        where = _positions(whole)[:, mask.shape[1] :]
        if ahead is not None:
            where = (where + ahead.to(where).repeat_interleave(len(chosen), dim=0)).expand(3, -1, -1)
        logits = model(
            input_ids=fed, attention_mask=whole, position_ids=where, past_key_values=cache, use_cache=True
        ).logits
        found = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        scores[:, chosen] += (found * valid).sum(1).view(len(mask), len(chosen))
    return scores


@torch.inference_mode()
def reference_log_likelihoods(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], candidates: Sequence[Sequence[int]]
) -> Tensor:
    """Compute what `log_likelihoods` does, by a full forward of image, prompt and answer a candidate."""
    mask = inputs["attention_mask"]
    columns = []
    for tokens in candidates:
        answer = torch.tensor(tokens, device=mask.device).expand(len(mask), -1)
        added = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
        # What else has an entry a token (such as its kind) is zero for text.
        whole = {
            name: torch.cat([value, added.get(name, torch.zeros_like(answer)).to(value)], dim=1)
            if value.shape == mask.shape
            else value
            for name, value in inputs.items()
        }
        if not _has_own_positions(model):
            whole["position_ids"] = _positions(whole["attention_mask"])
        logits = model(**whole, use_cache=False, logits_to_keep=len(tokens) + 1).logits[:, :-1]
        found = logits.float().log_softmax(-1).gather(-1, answer[..., None])[..., 0]
        columns.append(found.sum(1))
    return torch.stack(columns, dim=1)


def _has_own_positions(model: PreTrainedModel) -> bool:
    """Whether the model computes positions of several axes itself (multimodal rotary embedding)."""
    return hasattr(model.base_model, "rope_deltas")


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _pad(candidates: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens to feed, tokens to find and which are there, (candidates, longest - 1) each."""
    shape = (len(candidates), max(len(tokens) for tokens in candidates) - 1)
    fed, targets, valid = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    for row, tokens in enumerate(candidates):
        length = len(tokens) - 1
        fed[row, :length], targets[row, :length] = torch.tensor(tokens[:-1]), torch.tensor(tokens[1:])
        valid[row, :length] = 1
    return fed.to(device), targets.to(device), valid.to(device)
