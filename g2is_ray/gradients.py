"""Per-example LoRA gradients, one forward and one backward pass per batch.

Shapes: b examples, t tokens, i and o a module's inputs and outputs, n supervised tokens,
v vocabulary.

No parameter asks autograd for a gradient. Hooks keep each LoRA linear's input x [b, t, i]
and receive its output's gradient δ [b, t, o]; the examples' own gradients are δᵀx,
[b, o, i]. They are adjusted with AdamW's moments, projected, and dropped, so that memory
holds one module's gradients at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from g2is_ray.chat import Encoded
from g2is_ray.errors import InputError, SettingError
from g2is_ray.models import Moments, lora_parameters, parameter_name

IGNORED = -100
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # AdamW's, as LESS uses them

Project = Callable[[torch.Tensor, str, torch.Tensor], None]
"""(out_bd, parameter name, gradient [b, o, i]): adds the gradient's projection to out."""


def adjusted(g: torch.Tensor, moments: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """AdamW's update direction Γ for the gradient `g`, given its moments before the step.

    Γ = (β1·m + (1-β1)·g) / sqrt(β2·v + (1-β2)·g² + ε), with ε inside the root and no bias
    correction: LESS (arXiv 2402.04333), as its published code computes it.
    """
    m, v = moments
    numerator = g * (1 - BETA1) + BETA1 * m
    return numerator.mul_(torch.rsqrt((1 - BETA2) * g.square() + (BETA2 * v + EPSILON)))


def batches_by_length(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Group examples so that little is padded.

    1. Every index of `lengths` is in exactly one batch.
    2. Examples go from long to short, so padding within a batch is small, and a batch that
       is too large for memory shows at once.
    3. Longest x count of a batch is at most `token_budget`, unless it is one example.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))  # 2
    batch: list[int] = []
    for i in order:
        if batch and lengths[batch[0]] * (len(batch) + 1) > token_budget:  # 3
            yield batch
            batch = []
        batch.append(i)  # 1
    if batch:
        yield batch


def pad(
    examples: Sequence[Encoded], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask and labels, each int64 [b, t], padded on the right."""
    longest = max(len(one.input_ids) for one in examples)
    ids = torch.full((len(examples), longest), pad_id)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, one in enumerate(examples):
        length = len(one.input_ids)
        ids[row, :length] = torch.tensor(one.input_ids)
        mask[row, :length] = 1
        labels[row, :length] = torch.tensor(one.labels)
    return ids.to(device), mask.to(device), labels.to(device)


class SupervisedLoss:
    """A causal LM's loss at supervised positions only.

    The output layer sees those positions' hidden states and no others, so logits are
    [n, v]; what the model does to its logits afterwards (scaling, soft caps) still happens.
    """

    def __init__(self, model: torch.nn.Module, output_layer: torch.nn.Module) -> None:
        self._model = model
        self._positions: torch.Tensor | None = None
        self._handle = output_layer.register_forward_pre_hook(self._keep_supervised)

    def detach(self) -> None:
        """Give the output layer back as it was."""
        self._handle.remove()

    def _keep_supervised(self, module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> Any:
        if self._positions is None:
            return None
        return (args[0][self._positions], *args[1:])

    def __call__(
        self, ids_bt: torch.Tensor, mask_bt: torch.Tensor, labels_bt: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of negative log-likelihoods, and number of supervised tokens, both [b]."""
        next_bt = torch.nn.functional.pad(labels_bt[:, 1:], (0, 1), value=IGNORED)
        self._positions = next_bt != IGNORED
        try:
            logits_nv = self._model(
                input_ids=ids_bt, attention_mask=mask_bt, use_cache=False
            ).logits
        finally:
            positions_bt, self._positions = self._positions, None
        nll_n = torch.nn.functional.cross_entropy(
            logits_nv.float(), next_bt[positions_bt], reduction="none"
        )
        sums_b = torch.zeros(len(ids_bt), device=ids_bt.device)
        sums_b = sums_b.index_add(0, positions_bt.nonzero()[:, 0], nll_n)
        return sums_b, positions_bt.sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class GradientRows:
    """Projected gradients of some examples, in their order."""

    projected: NDArray[np.float32]  # [n, d]; rows of zeros where invalid
    losses: NDArray[np.float32]  # [n], mean over supervised tokens
    invalid: dict[int, str]  # position -> reason


class GradientComputer:
    """Projected gradients of examples with respect to a model's LoRA parameters.

    Args:
        model: a PEFT model with one LoRA adapter, in evaluation mode. It is given hooks
            and its parameters stop asking for gradients: do not train it afterwards.
        project: adds a gradient's projection to the examples' rows.
        dimensions: of the projected rows.
        moments: AdamW's, for momentum-adjusted gradients Γ; None where none are wanted.
        pad_id: token id to pad with; any will do.

    Raises:
        SettingError: the adapter has parameters that no LoRA linear explains (DoRA, LoRA on
            embeddings or convolutions); names the first.
    """

    def __init__(
        self,
        model: PeftModel,
        project: Project,
        dimensions: int,
        moments: Moments | None,
        *,
        pad_id: int,
    ) -> None:
        self._device = next(model.parameters()).device
        self._project = project
        self._dimensions = dimensions
        self._pad_id = pad_id
        self._moments = moments and {
            name: (m.to(self._device), v.to(self._device)) for name, (m, v) in moments.items()
        }
        _refuse_others(model)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        base: Any = model.get_base_model()
        # With all parameters frozen, the embeddings are what makes autograd go backward.
        base.get_input_embeddings().register_forward_hook(
            lambda module, args, output: output.requires_grad_(True)
        )
        self._loss = SupervisedLoss(model, base.get_output_embeddings())
        for name, module in _lora_linears(model).items():
            module.register_forward_hook(self._hook(parameter_name(f"{name}.weight")))
        self._out_bd = torch.empty(0)
        self._squared_b = torch.empty(0)
        self._adjust = False
        self._open: dict[str, int] = {}  # uses of a module that backward has yet to reach
        self._held: dict[str, torch.Tensor] = {}  # gradients of modules used more than once

    def _hook(self, name: str) -> Callable[..., None]:
        def forward(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if not output.requires_grad:
                return
            x_bti = args[0].detach()
            self._open[name] = self._open.get(name, 0) + 1

            def backward(delta_bto: torch.Tensor) -> None:
                self._receive(name, torch.bmm(delta_bto.transpose(1, 2), x_bti).float())

            output.register_hook(backward)

        return forward

    def _receive(self, name: str, gradient_boi: torch.Tensor) -> None:
        self._open[name] -= 1
        if name in self._held:
            gradient_boi = gradient_boi + self._held.pop(name)
        if self._open[name]:
            self._held[name] = gradient_boi
            return
        self._squared_b += gradient_boi.square().sum(dim=(1, 2))
        if self._adjust and self._moments is not None:
            gradient_boi = adjusted(gradient_boi, self._moments[name])
        self._project(self._out_bd, name, gradient_boi)

    def _batch(self, examples: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected gradients [b, d] and losses [b]."""
        ids, mask, labels = pad(examples, self._pad_id, self._device)
        self._out_bd = torch.zeros(len(examples), self._dimensions, device=self._device)
        self._squared_b = torch.zeros(len(examples), device=self._device)
        self._open.clear()
        self._held.clear()
        with torch.enable_grad():
            sums_b, counts_b = self._loss(ids, mask, labels)
            losses_b = sums_b / counts_b
            losses_b.sum().backward()
        return self._out_bd, losses_b.detach()

    def compute(
        self, examples: Sequence[Encoded], token_budget: int, *, adjust: bool
    ) -> GradientRows:
        """Gradients of the mean supervised-token loss of each example, in their order.

        Args:
            examples: any number; each needs a supervised token.
            token_budget: longest example x examples of a batch; memory grows with it.
            adjust: momentum-adjusted gradients Γ, or plain ones.
        """
        if adjust and self._moments is None:
            raise ValueError("adjusted gradients need AdamW's moments")
        self._adjust = adjust
        projected = np.zeros((len(examples), self._dimensions), dtype=np.float32)
        losses = np.zeros(len(examples), dtype=np.float32)
        invalid: dict[int, str] = {}
        lengths = [len(one.input_ids) for one in examples]
        for batch in batches_by_length(lengths, token_budget):
            rows, batch_losses = self._batch([examples[i] for i in batch])
            projected[batch] = rows.cpu().numpy()
            losses[batch] = batch_losses.cpu().numpy()
            squared = self._squared_b.cpu().numpy()
            for position, i in enumerate(batch):
                if not np.isfinite(losses[i]):
                    invalid[i] = f"its loss is {losses[i]}"
                elif not np.isfinite(projected[i]).all():
                    invalid[i] = "its gradient has entries that are not finite"
                elif squared[position] == 0:
                    invalid[i] = "its gradient is zero"
        projected[list(invalid)] = 0
        return GradientRows(projected=projected, losses=losses, invalid=invalid)


def _lora_linears(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and (".lora_A." in name or ".lora_B." in name)
    }


def _refuse_others(model: PeftModel) -> None:
    covered = {parameter_name(f"{name}.weight") for name in _lora_linears(model)}
    if not covered:
        raise InputError("the adapter has no LoRA linear modules to take gradients of")
    for name in lora_parameters(model):
        if name not in covered:
            raise SettingError(
                f"gradients are taken of LoRA linear modules only, and {name} is not the weight of "
                "one; choose lora_targets without embeddings and convolutions, and no DoRA or bias"
            )
