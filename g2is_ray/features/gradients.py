"""Per-example LoRA gradients, with one forward and one backward pass per batch.

Shapes: b examples, t tokens, i and o inputs and outputs of a module, d dimensions of the
projection.

Autograd forms no parameter gradient. The output of each LoRA linear passes a tap, which keeps the
module's input x [b, t, i] and receives the output's gradient δ [b, t, o] in the backward pass. The
per-example gradients are δᵀx, [b, o, i]. They are adjusted with AdamW's moments, projected and
discarded, so memory holds the gradients of one module at a time. The backward pass ends at the
lowest tap.

Experts whose weights are fused into one parameter have no linear module to tap, because PEFT adds
the adapter to the weights. If such experts have adapters, a batch is one example, and autograd
forms the gradient of the experts' parameters.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch.profiler import record_function

from g2is_ray.chat.encoder import Encoded
from g2is_ray.errors import SettingError
from g2is_ray.features.projection import Projection, SparseProjection
from g2is_ray.models import probe
from g2is_ray.models.batches import IGNORED, Batch, TokenBudget, by_length, compute_batches
from g2is_ray.models.loading import BETAS, Betas, Moments
from g2is_ray.models.lora_modules import (
    checkpoint_layers,
    compile_layers,
    fused_expert_names,
    gradient_linears,
)
from g2is_ray.models.loss import SupervisedLoss

EPSILON = 1e-8  # of LESS, inside the root; AdamW's own epsilon is not used


def prepare_moments(moments: Moments, device: torch.device, betas: Betas = BETAS) -> Moments:
    """Return β1·m and β2·v + ε of each parameter's moments m and v, for `adjust_gradient`."""
    return {
        name: (m.to(device) * betas[0], v.to(device) * betas[1] + EPSILON)
        for name, (m, v) in moments.items()
    }


def adjust_gradient(
    g: torch.Tensor, moments: tuple[torch.Tensor, torch.Tensor], betas: Betas = BETAS
) -> torch.Tensor:
    """Return AdamW's update direction Γ for the gradient `g` [..., o, i].

    Γ = (β1·m + (1-β1)·g) / sqrt(β2·v + (1-β2)·g² + ε), with ε inside the root and without bias
    correction. Source: the published code of LESS (arXiv 2402.04333).

    Args:
        g: gradients; unchanged afterwards.
        moments: the parameter's moments [o, i] from `prepare_moments`.
        betas: β1 and β2 of the training that the moments come from.
    """
    momentum, variance = moments
    numerator = torch.add(momentum, g, alpha=1 - betas[0])
    return numerator.mul_(torch.addcmul(variance, g, g, value=1 - betas[1]).rsqrt_())


class _Tap(torch.autograd.Function):
    """The identity; passes the module's input and its output's gradient to `receive`.

    `start` requires a gradient and thereby makes autograd go back to the lowest tap, below which
    no tensor requires one. The input is saved by autograd, so gradient checkpointing discards and
    recomputes it like any saved tensor.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output_bto: torch.Tensor,
        x_bti: torch.Tensor,
        start: torch.Tensor,
        receive: Callable[[torch.Tensor, torch.Tensor], None],
    ) -> torch.Tensor:
        ctx.save_for_backward(x_bti)
        ctx.receive = receive
        return output_bto.view_as(output_bto)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x_bti,), (delta_bto,) = ctx.saved_tensors, gradients
        ctx.receive(delta_bto, x_bti)
        return (delta_bto if ctx.needs_input_grad[0] else None), None, None, None


@dataclass(frozen=True, kw_only=True)
class GradientRows:
    """Projected gradients of examples, in the order of the examples."""

    projected: NDArray[np.float32]  # [n, d]; rows of zeros where invalid
    losses: NDArray[np.float32]  # [n], mean over supervised tokens; NaN if there are none
    invalid: dict[int, str]  # position -> reason


class GradientComputer:
    """Computes projected per-example gradients of a model's LoRA parameters.

    Args:
        model: a PEFT model with one LoRA adapter, in evaluation mode. It gets hooks, and its
            parameters no longer require gradients: do not train it afterwards.
        projection: projects the gradients of the parameters that `gradient_linears` names.
        moments: AdamW's moments, for momentum-adjusted gradients Γ; None for plain ones only.
        betas: AdamW's betas of the training that the moments come from.
        pad_id: token id to pad with; any id works.
        token_budget: padded tokens of a batch (longest example x examples), or `auto` to search
            for the largest that fits. Halved permanently when a batch does not fit into memory.
        lora_layers: see `GradientSettings`.
        checkpointing: recompute activations in the backward pass instead of keeping them: about
            a third slower, and memory for one layer's activations instead of all layers'.
        compiled: torch.compile the modules without an adapter, and the adjustment; on a GPU with
            a sparse projection, a Triton kernel adjusts and projects.

    Raises:
        SettingError: the adapter has parameters outside LoRA linears (DoRA, biases, LoRA on
            embeddings or convolutions), or LoRA on the output layer; names the first.
        InputError: the adapter has no LoRA linear, the model is not causal, or an example depends
            on its batch.
    """

    def __init__(
        self,
        model: PeftModel,
        projection: Projection,
        moments: Moments | None,
        *,
        pad_id: int,
        betas: Betas = BETAS,
        token_budget: int | Literal["auto"] = 1024,
        lora_layers: str = "all",
        checkpointing: bool = False,
        compiled: bool = False,
    ) -> None:
        self._device = next(model.parameters()).device
        self._projection = projection
        self._pad_id = pad_id
        self._budget = TokenBudget(token_budget)
        self.use(moments, betas=betas)
        probe.check_base(model.get_base_model())
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        if checkpointing:
            checkpoint_layers(model)
        self._adjust_gradient, self._fused = adjust_gradient, None
        if compiled:
            compile_layers(model)
            self._adjust_gradient = torch.compile(adjust_gradient, dynamic=True)
            self._fused = _fused(projection, self._device)
        self._loss = SupervisedLoss(model)
        self._start = torch.zeros((), device=self._device, requires_grad=True)
        self._names = []
        self._of_experts: dict[str, torch.Tensor] = {}
        base_dtype = model.get_input_embeddings().weight.dtype
        fused = fused_expert_names(model)
        for name, module in gradient_linears(model, lora_layers).items():
            module.to(base_dtype)  # PEFT keeps adapters in float32, which multiplies slowly
            if name in fused:
                self._of_experts[name] = module.weight.requires_grad_()
            else:
                self._names.append(name)
                module.register_forward_hook(self._hook(name))
        if self._of_experts:
            self._budget = TokenBudget(1)  # autograd sums over a batch, so a batch is one example
        # State of the batch being computed:
        self._out_bd = self._largest_b = torch.empty(0)
        self._tokens = 0  # tokens of each example, padding included
        self._adjust = False
        self._counting = False
        self._uses: Counter[str] = Counter()  # uses left in the backward pass
        self._held: dict[str, torch.Tensor] = {}  # gradients of modules used more than once

    @property
    def token_budget(self) -> int:
        """Padded tokens of a batch: as given, or the largest found to fit so far."""
        return self._budget.tokens

    @property
    def dimensions(self) -> int:
        """Dimensions of a row."""
        return self._projection.dimensions

    def use(self, moments: Moments | None, prefix: str = "", betas: Betas = BETAS) -> None:
        """Adjust with these moments from now on; prepend `prefix` to the projection's names."""
        self._moments = prepare_moments(moments, self._device, betas) if moments else None
        self._prefix, self._betas = prefix, betas

    def compute(self, examples: Sequence[Encoded], *, adjust: bool) -> GradientRows:
        """Return the gradients of each example's mean loss over supervised tokens.

        Args:
            examples: n examples; those without supervised tokens get a row of zeros.
            adjust: whether to return momentum-adjusted gradients Γ instead of plain ones.

        Raises:
            SettingError: a single example does not fit into memory, or a module is never called
                or mixes examples; names it.
            ValueError: `adjust` without moments.
        """
        if adjust and self._moments is None:
            raise ValueError("adjusted gradients need AdamW's moments")
        self._adjust = adjust
        usable = [i for i, one in enumerate(examples) if _is_supervised(one)]
        order = [usable[i] for i in by_length([len(examples[i].input_ids) for i in usable])]
        rows = self._compute_in_order([examples[i] for i in order])
        projected = np.zeros((len(examples), self._projection.dimensions), dtype=np.float32)
        losses = np.full(len(examples), np.nan, dtype=np.float32)
        largest = np.zeros(len(examples), dtype=np.float32)
        for whole, part in zip((projected, losses, largest), rows, strict=True):
            whole[order] = part.cpu().numpy()
        invalid = _invalid(projected, losses, largest, set(order))
        projected[list(invalid)] = 0
        return GradientRows(projected=projected, losses=losses, invalid=invalid)

    def _compute_in_order(
        self, examples: Sequence[Encoded]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return projected gradients [n, d], losses [n] and largest gradient entries [n].

        They stay on the device until every batch is done, so the host waits for the device once.
        """
        count = len(examples)
        rows_nd = torch.zeros(count, self._projection.dimensions, device=self._device)
        losses_n = torch.zeros(count, device=self._device)
        largest_n = torch.zeros(count, device=self._device)

        def compute(start: int, stop: int) -> None:
            self._out_bd, self._largest_b = rows_nd[start:stop], largest_n[start:stop]
            self._tokens = len(examples[start].input_ids)
            self._batch(examples[start:stop], losses_n[start:stop])

        compute_batches(
            [len(one.input_ids) for one in examples],
            self._budget,
            self._device,
            compute,
            remedy="set max_tokens lower, or gradient_checkpointing",
            regimes=self._loss.regimes,
        )
        return rows_nd, losses_n, largest_n

    def _batch(self, examples: Sequence[Encoded], losses_b: torch.Tensor) -> None:
        self._begin()
        batch = Batch.of(examples, self._pad_id, self._device)
        with torch.enable_grad():
            self._counting = True  # in the first forward pass, not when checkpointing repeats it
            hidden_nh = self._loss.hidden_states(batch)
            self._counting = False
            self._refuse_unused()
            losses_b.copy_(self._loss.backward(batch, hidden_nh))
        for name, parameter in self._of_experts.items():
            if parameter.grad is not None:  # this example was routed to the experts
                self._finish(name, parameter.grad[None].float())
                parameter.grad = None
        for name in list(self._held):  # one use of the module did not reach the loss
            self._finish(name, self._held.pop(name))

    def _begin(self) -> None:
        """Reset the state, which a batch that did not fit into memory leaves behind."""
        self._uses.clear()
        self._held.clear()
        for parameter in self._of_experts.values():
            parameter.grad = None
        self._out_bd.zero_()
        self._largest_b.zero_()

    def _refuse_unused(self) -> None:
        for name in self._names:
            if not self._uses[name]:
                raise SettingError(
                    f"the model never calls {name}, so it has no gradient of its own; leave its "
                    "module out of lora_targets"
                )

    def _hook(self, name: str) -> Callable[..., torch.Tensor]:
        def receive(delta: torch.Tensor, x: torch.Tensor) -> None:
            delta_bto, x_bti = (_by_example(one, len(self._out_bd)) for one in (delta, x))
            with record_function("g2is.gradients"):
                self._receive(name, torch.bmm(delta_bto.transpose(1, 2), x_bti).float())

        def forward(
            module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> torch.Tensor:
            if self._counting:
                self._uses[name] += 1
            if not _tells_examples_apart(args[0].shape, len(self._out_bd), self._tokens):
                raise SettingError(
                    f"{name} gets the tokens of several examples mixed, in shape "
                    f"{list(args[0].shape)}, so no example has a gradient of its own; leave its "
                    "module out of lora_targets"
                )
            tapped: torch.Tensor = _Tap.apply(output, args[0], self._start, receive)
            return tapped

        return forward

    def _receive(self, name: str, gradient_boi: torch.Tensor) -> None:
        """Sum the gradient over all uses of the module, because adjusting is not linear."""
        self._uses[name] -= 1
        if name in self._held:
            gradient_boi += self._held.pop(name)
        if self._uses[name]:
            self._held[name] = gradient_boi
        else:
            self._finish(name, gradient_boi)

    def _finish(self, name: str, gradient_boi: torch.Tensor) -> None:
        largest_b = torch.linalg.vector_norm(gradient_boi, ord=torch.inf, dim=(1, 2))
        torch.maximum(self._largest_b, largest_b, out=self._largest_b)
        if self._adjust and self._moments is not None:
            moments = self._moments[name]
            if self._fused:
                with record_function("g2is.project"):
                    full_name = self._prefix + name
                    self._fused(self._out_bd, full_name, gradient_boi, moments, self._betas)
                return
            with record_function("g2is.adjust"):
                gradient_boi = self._adjust_gradient(gradient_boi, moments, self._betas)
        with record_function("g2is.project"):
            self._projection.add(self._out_bd, self._prefix + name, gradient_boi)


def _tells_examples_apart(shape: torch.Size, examples: int, tokens: int) -> bool:
    """Return whether a module's input [..., i] holds one example after another.

    Accepted are [b, t, i]; more axes after the first (DeepSeek's kv_b_proj); and the flat
    [b·t, i] or [1, b·t, i] (OPT's feed-forward, the shared expert of a mixture of experts).
    """
    if len(shape) >= 3 and shape[0] == examples:
        return True
    return shape[:-1] in ((examples * tokens,), (1, examples * tokens))


def _by_example(x: torch.Tensor, examples: int) -> torch.Tensor:
    """Return a module's input, or the gradient of its output, as [b, t, i]."""
    return x.reshape(examples, -1, x.shape[-1])


def _is_supervised(one: Encoded) -> bool:
    """Return whether the loss has a token; the first token is never predicted."""
    return any(label != IGNORED for label in one.labels[1:])


def _invalid(
    projected: NDArray[np.float32],
    losses: NDArray[np.float32],
    largest: NDArray[np.float32],
    supervised: set[int],
) -> dict[int, str]:
    """Return the reason for each unusable row, by position."""
    finite = np.asarray(np.isfinite(projected).all(axis=1))
    reasons = {}
    for i in range(len(losses)):
        if i not in supervised:
            reasons[i] = "it has no supervised tokens"
        elif not np.isfinite(losses[i]):
            reasons[i] = f"its loss is {losses[i]}"
        elif not finite[i]:
            reasons[i] = "its gradient has entries that are not finite"
        elif largest[i] == 0:
            reasons[i] = "its gradient is zero"
    return reasons


def _fused(projection: Projection, device: torch.device) -> Callable[..., None] | None:
    """Return a function that adjusts and projects in one pass; None where Triton cannot."""
    if not isinstance(projection, SparseProjection) or device.type != "cuda":
        return None
    if importlib.util.find_spec("triton") is None:
        return None
    from g2is_ray.features.kernels import adjust_and_project

    def add(
        out_bd: torch.Tensor,
        name: str,
        gradient_boi: torch.Tensor,
        moments: tuple[torch.Tensor, torch.Tensor],
        betas: Betas,
    ) -> None:
        table = projection.table(name, gradient_boi[0].numel(), device)
        adjust_and_project(out_bd, gradient_boi, moments, table, betas)

    return add
