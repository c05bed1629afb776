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


class Prefilled:
    """Images and prompts that went through a model once.

    Parameters
    ----------
    model : PreTrainedModel
        A decoder that takes images and keeps a key–value cache.
    inputs : Mapping
        What its processor makes of images and prompts, padded on the left: ``input_ids`` and
        ``attention_mask`` (images, tokens), and the pixels.

    Attributes
    ----------
    first : Tensor
        Logits of the first token behind each prompt, shape (images, words).
    """

    def __init__(self, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> None:
        self._model, self._mask = model, inputs["attention_mask"]
        positions = {} if _has_own_positions(model) else {"position_ids": _positions(self._mask)}
        output = model(**inputs, **positions, use_cache=True, logits_to_keep=1)
        # Where positions have several axes, the model says by how much they are ahead of the tokens' number.
        self._ahead = getattr(model.base_model, "rope_deltas", None)
        self._cache, self.first = output.past_key_values, output.logits[:, -1]

    def behind(self, images: Sequence[int], texts: Sequence[Sequence[int]]) -> Tensor:
        """Return logits (texts, longest - 1, words) of the texts' tokens from the second on.

        Parameters
        ----------
        images : sequence of int
            Which image each text is behind.
        texts : sequence of sequence of int
            Token ids. Logits past a text's end mean nothing.
        """
        chosen = torch.tensor(images, device=self._mask.device)
        cache = copy.deepcopy(self._cache)
        for layer in cache.layers:  # of a spread model they lie on several devices
            layer.batch_select_indices(chosen.to(layer.keys.device))
        fed, valid = _pad([tokens[:-1] for tokens in texts], self._mask.device)
        whole = torch.cat([self._mask[chosen], valid.to(self._mask)], dim=1)
        where = _positions(whole)[:, self._mask.shape[1] :]
        if self._ahead is not None:
            where = (where + self._ahead.to(where)[chosen]).expand(3, -1, -1)
        output = self._model(
            input_ids=fed, attention_mask=whole, position_ids=where, past_key_values=cache, use_cache=True
        )
        return output.logits


@torch.inference_mode()
def log_likelihoods(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    candidates: Sequence[Sequence[Sequence[int]]],
    at_once: int = AT_ONCE,
) -> Tensor:
    """Sum each candidate's log-probabilities, token after token, behind each image and prompt.

    Parameters
    ----------
    model, inputs
        As `Prefilled` takes them.
    candidates : sequence of sequence of sequence of int
        Of each image its candidates' token ids, at least one each.
    at_once : int
        Candidates that are scored in one forward, for each image.

    Returns
    -------
    Tensor
        float32, shape (images, most candidates); -inf where an image has fewer.
    """
    known = Prefilled(model, inputs)
    first = known.first.float().log_softmax(-1)
    scores = first.new_full((len(candidates), max(map(len, candidates))), -torch.inf)
    for image, own in enumerate(candidates):
        scores[image, : len(own)] = first[image, [tokens[0] for tokens in own]]
    longer = [[index for index, tokens in enumerate(own) if len(tokens) > 1] for own in candidates]
    for start in range(0, max(map(len, longer)), at_once):
        pairs = [(image, index) for image, own in enumerate(longer) for index in own[start : start + at_once]]
        rows, columns = ([pair[place] for pair in pairs] for place in (0, 1))
        texts = [candidates[image][index] for image, index in pairs]
        targets, valid = _pad([tokens[1:] for tokens in texts], scores.device)
        logits = known.behind(rows, texts)
        found = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        scores[rows, columns] += (found * valid).sum(1)
    return scores


@torch.inference_mode()
def likeliest_words(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    texts: Sequence[Sequence[int]],
    words: int,
    most: int,
    temperature: float = 1.0,
) -> list[tuple[Tensor, Tensor]]:
    """Return, at each token of a text behind each image and prompt, how likely the likeliest words are.

    Parameters
    ----------
    model, inputs
        As `Prefilled` takes them.
    texts : sequence of sequence of int
        Of each image the text's token ids, at least one.
    words : int
        Only words below this number count.
    most : int
        How many are told.
    temperature : float
        Softens the distribution.

    Returns
    -------
    list of tuple of Tensor
        For each text their log-probabilities as `with_others` gives them, float32, (tokens, most + 1), and
        the words' numbers, the likeliest first, (tokens, most).
    """
    known = Prefilled(model, inputs)
    logits = known.first[:, None]
    if max(map(len, texts)) > 1:
        logits = torch.cat([logits, known.behind(range(len(texts)), texts)], dim=1)
    found = (logits[..., :words].float() / temperature).log_softmax(-1)
    chosen = found.topk(min(most, found.shape[-1])).indices
    told = with_others(found, chosen)
    return [(told[row, : len(text)].cpu(), chosen[row, : len(text)].cpu()) for row, text in enumerate(texts)]


def with_others(log_probabilities: Tensor, words: Tensor) -> Tensor:
    """Return the log-probabilities of some words, and of all others together.

    Parameters
    ----------
    log_probabilities : Tensor
        Of all words, shape (..., words).
    words : Tensor
        Some words' numbers, shape (..., some).

    Returns
    -------
    Tensor
        Shape (..., some + 1).
    """
    some = log_probabilities.gather(-1, words)
    # Not -inf: where there are no others, its gradient would be no number.
    others = log_probabilities.scatter(-1, words, -1e4).logsumexp(-1, keepdim=True)
    return torch.cat([some, others], dim=-1)


@torch.inference_mode()
def reference_log_likelihoods(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], candidates: Sequence[Sequence[int]]
) -> Tensor:
    """Compute what `log_likelihoods` does, by a full forward of image, prompt and answer a candidate.

    All images have the same `candidates`.
    """
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


def _pad(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return tokens filled up with zeros, and which are there, both (texts, longest)."""
    padded, valid = torch.zeros(2, len(texts), max(map(len, texts)), dtype=torch.long)
    for row, tokens in enumerate(texts):
        padded[row, : len(tokens)], valid[row, : len(tokens)] = torch.tensor(tokens), 1
    return padded.to(device), valid.to(device)
