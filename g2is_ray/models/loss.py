"""SupervisedLoss: a causal LM's loss at supervised positions only, in chunks.

Shapes: b examples, t tokens, h hidden size, n supervised tokens, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch.profiler import record_function

from g2is_ray.errors import SettingError
from g2is_ray.models.batches import Batch
from g2is_ray.models.decoder import Found, find_decoder
from g2is_ray.models.rope import regimes

_MAX_LOGITS = 2**25  # 128 MiB in float32, and about three times that with gradients


class SupervisedLoss:
    """Negative log-likelihood of the supervised tokens of a batch.

    Only hidden states that predict a supervised token reach the output layer, and only a
    chunk of them at a time, so that [n, v] never exists.

    Args:
        model: a transformers causal LM, with an adapter or without, in evaluation mode.
        max_logits: logits computed at a time, which bounds memory.

    Raises:
        SettingError: the model's logits are not a function of its decoder's last hidden states.
    """

    def __init__(self, model: Any, *, max_logits: int = _MAX_LOGITS) -> None:
        self._lm: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        found = find_decoder(self._lm, with_loss=True)
        self._decoder: Any = found.decoder
        self._output: Any = found.decoder_output
        self._require_same(found)
        self._chunk = max(1, max_logits // found.model_output.logits.shape[-1])
        self.regimes = regimes(self._lm)

    @torch.no_grad()
    def _require_same(self, found: Found) -> None:
        """Raise SettingError if the model computes its logits or loss unlike this class."""
        tolerance = 1e-3 if self._lm.dtype == torch.float32 else 0.1
        wanted_tv = found.model_output.logits[0].float()
        try:
            found_tv = self._logits(self._output.last_hidden_state[0]).float()
        except (RuntimeError, ValueError, TypeError, IndexError):
            found_tv = torch.empty(0)
        if not bool(wanted_tv.isfinite().all()):
            return  # each row reports its non-finite loss
        norm = torch.linalg.vector_norm
        same = found_tv.shape == wanted_tv.shape
        if not same or norm(found_tv - wanted_tv) > tolerance * norm(wanted_tv):
            raise SettingError(
                f"{type(self._lm).__name__} does not form its logits from its decoder's last "
                "hidden states alone, so its loss at single tokens is unknown; choose another model"
            )
        own, ids_t = float(found.model_output.loss), found.ids_1t[0]
        nll = torch.nn.functional.cross_entropy(wanted_tv[:-1], ids_t[1:])
        if abs(float(nll) - own) > tolerance * abs(own):
            raise SettingError(
                f"the loss of {type(self._lm).__name__} is not the negative log-likelihood of the "
                "next token; choose a decoder-only language model"
            )

    def sums(self, batch: Batch) -> torch.Tensor:
        """Sum of the negative log-likelihoods of each example, float32 [b]."""
        hidden_nh = self.hidden_states(batch)
        sums_b = torch.zeros(len(batch.ids_bt), device=hidden_nh.device)
        for chunk in self._chunks(len(hidden_nh)):
            nll_n = self._nll(hidden_nh[chunk], batch.targets_n[chunk])
            sums_b.index_add_(0, batch.rows_n[chunk], nll_n)
        return sums_b

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        """The decoder's last hidden states [n, h] at the positions before supervised tokens."""
        with record_function("g2is.forward"):
            output = self._decoder(input_ids=batch.ids_bt, use_cache=False)
            hidden_nh = output.last_hidden_state.flatten(0, 1).index_select(0, batch.positions_n)
        output.last_hidden_state = hidden_nh.detach()
        self._output = output  # of the decoder's own type, for `_logits`
        return hidden_nh

    def backward(self, batch: Batch, hidden_nh: torch.Tensor) -> torch.Tensor:
        """Back-propagate each example's mean loss; returns the means, float32 [b].

        Each chunk computes its logits, their gradient and the gradient of its hidden states before
        the next chunk starts; then the decoder runs backward once.

        Args:
            hidden_nh: the batch's `hidden_states`, with their autograd graph.
        """
        gradient_nh = torch.empty_like(hidden_nh)
        means_b = torch.zeros(len(batch.ids_bt), device=hidden_nh.device)
        with record_function("g2is.logits"):
            for chunk in self._chunks(len(hidden_nh)):
                rows = batch.rows_n[chunk]
                part = hidden_nh[chunk].detach().requires_grad_()
                nll_n = self._nll(part, batch.targets_n[chunk]) / batch.counts_b[rows]
                (gradient_nh[chunk],) = torch.autograd.grad(nll_n.sum(), part)
                means_b.index_add_(0, rows, nll_n.detach())
        with record_function("g2is.backward"):
            hidden_nh.backward(gradient_nh)
        return means_b

    def _chunks(self, count: int) -> Iterator[slice]:
        return (slice(start, start + self._chunk) for start in range(0, count, self._chunk))

    def _nll(self, hidden_nh: torch.Tensor, targets_n: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(
            self._logits(hidden_nh).float(), targets_n, reduction="none"
        )

    def _logits(self, hidden_nh: torch.Tensor) -> torch.Tensor:
        """Logits [n, v], by the model's forward pass with a decoder that returns `hidden_nh`.

        Architectures scale or cap their logits in different ways, so the model computes them.
        """
        self._output.last_hidden_state = hidden_nh[None]
        before = self._decoder.__dict__.get("forward")
        self._decoder.forward = lambda *args, **kwargs: self._output
        try:
            return self._lm(input_ids=torch.zeros_like(hidden_nh[None, :, 0]).long()).logits[0]
        finally:
            del self._decoder.forward
            if before is not None:
                self._decoder.forward = before
