"""Speed of the gradient stage, beside a loop as LESS runs it, in one process on the same rows.

    python benchmarks/gradients.py --model examples/tiny-lm --pool examples/data/pool.jsonl
    python benchmarks/gradients.py --shape llama-3.1-8b --lora-r 128 --tokens 200 --rows 512

The loops are written from LESS's published description and settings (arXiv 2402.04333;
batch 1, the whole gradient as one vector, Γ, then TRAK's dense Rademacher projection of 16
rows at a time in blocks of 128 dimensions that are drawn anew each time):

    (a)  all of it
    (b)  the same without the projection

Everything takes turns, so that ratios mean something on a noisy machine. FLOPs are those of
all matrix products and attention kernels, padding included, counted by torch; the rate they
are compared with is that of a large matrix product timed in the same turns.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig
from workload import pool_rows, product_rate, put_adapter

from g2is_ray.chat.encoder import Encoded
from g2is_ray.config import ExecutionSettings, LoraSettings, ModelSettings
from g2is_ray.features.gradients import GradientComputer, adjust_gradient, prepare_moments
from g2is_ray.features.projection import SparseProjection
from g2is_ray.models import loading
from g2is_ray.models.batches import pad
from g2is_ray.models.loading import Moments

DIMENSIONS = 8192
SHAPES = {
    "llama-3.1-8b": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        rope_theta=500000.0,
    )
}
PHASES = ("forward", "logits", "gradients", "adjust", "project")


class Workload:
    """A model with an adapter, AdamW's moments for it, and rows."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.device = loading.default_device()
        settings = ModelSettings(model=given.model or given.shape, dtype=given.dtype)
        self.dtype = loading.base_dtype(settings, self.device)
        self.model = self._model(given, settings)
        self.rows = (
            _random_rows(given)
            if given.tokens
            else pool_rows(settings, given.pool, given.rows, given.max_tokens)
        )
        self.tokens = sum(len(row.input_ids) for row in self.rows)

    def _model(self, given: argparse.Namespace, settings: ModelSettings) -> Any:
        if given.shape:
            base = _random_model(SHAPES[given.shape], given.layers, self.device, self.dtype)
        else:
            base = loading.load_base(settings, self.device, given.attention)
        lora = LoraSettings(
            lora_r=given.lora_r,
            lora_alpha=4 * given.lora_r,
            lora_targets=tuple(given.lora_targets),
        )
        return put_adapter(base, lora)

    def moments(self) -> Moments:
        return {
            name: (torch.zeros(p.shape), torch.ones(p.shape))
            for name, p in loading.lora_parameters(self.model).items()
        }

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _random_model(
    config: LlamaConfig, layers: int, device: torch.device, dtype: torch.dtype
) -> Any:
    config.num_hidden_layers = layers or config.num_hidden_layers
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def _random_rows(given: argparse.Namespace) -> list[Encoded]:
    """Rows of one length, the second half of each supervised."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(given.rows):
        ids = torch.randint(1, 32000, (given.tokens,), generator=generator).tolist()
        labels = [-100] * (given.tokens // 2) + ids[given.tokens // 2 :]
        rows.append(Encoded(input_ids=ids, labels=labels, tokens_before_truncation=given.tokens))
    return rows


class LessLoop:
    """(a) and (b): one example at a time, by plain autograd."""

    def __init__(self, work: Workload, *, project: bool) -> None:
        self._model, self._device, self._project = work.model, work.device, project
        self._parameters = loading.lora_parameters(self._model)
        held = prepare_moments(work.moments(), work.device)
        self._moments = tuple(
            torch.cat([held[name][i].flatten() for name in self._parameters]) for i in (0, 1)
        )

    def run(self, rows: Sequence[Encoded]) -> None:
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        waiting: list[torch.Tensor] = []
        for row in rows:
            waiting.append(adjust_gradient(self._gradient(row), self._moments))
            if len(waiting) == 16:
                self._flush(waiting)
        self._flush(waiting)
        for parameter in self._parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None

    def _gradient(self, row: Encoded) -> torch.Tensor:
        self._model.zero_grad()
        ids, labels = (tensor.to(self._device) for tensor in pad([row], 0))
        self._model(input_ids=ids, labels=labels).loss.backward()
        parts = [p.grad.flatten() for p in self._parameters.values() if p.grad is not None]
        return torch.cat(parts).float()

    def _flush(self, waiting: list[torch.Tensor]) -> None:
        if self._project and waiting:
            rows_bp = torch.stack(waiting)
            generator = torch.Generator(self._device).manual_seed(0)
            signs = torch.empty(rows_bp.shape[1], 128, device=self._device)
            for _ in range(0, DIMENSIONS, 128):
                signs.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
                rows_bp @ signs
        waiting.clear()


def seconds(work: Workload, run: Callable[[], object]) -> float:
    work.wait()
    began = time.perf_counter()
    run()
    work.wait()
    return time.perf_counter() - began


def phases(work: Workload, run: Callable[[], object]) -> Iterator[tuple[str, float]]:
    """Share of time of each named phase; what is left is the backward pass."""
    kinds = [ProfilerActivity.CPU]
    if work.device.type == "cuda":
        kinds.append(ProfilerActivity.CUDA)
    with profile(activities=kinds) as found:
        run()
    named = {event.key: event for event in found.key_averages()}
    attribute = "device_time_total" if work.device.type == "cuda" else "cpu_time_total"
    times = {name: getattr(named[f"g2is.{name}"], attribute) for name in PHASES}
    whole = (
        sum(event.self_device_time_total for event in named.values())
        if work.device.type == "cuda"
        else sum(named[f"g2is.{name}"].cpu_time_total for name in ("forward", "logits", "backward"))
    )
    for name, spent in times.items():
        yield name, spent / whole
    yield "backward", 1 - sum(times.values()) / whole


def peak_gigabytes(work: Workload) -> float:
    if work.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def gradient_stage(work: Workload, given: argparse.Namespace) -> GradientComputer:
    return GradientComputer(
        work.model,
        SparseProjection(DIMENSIONS, 0),
        work.moments(),
        pad_id=0,
        token_budget=(
            "auto"
            if given.token_budget == "auto"
            else loading.token_budget(ExecutionSettings(batch_tokens=int(given.token_budget)))
        ),
        lora_layers=given.lora_layers,
        checkpointing=given.gradient_checkpointing,
        compiled=given.compile,
    )


def compare(given: argparse.Namespace) -> None:
    """The stage's own numbers, then its speed beside the loops'."""
    work = Workload(given)
    stage = gradient_stage(work, given)
    with FlopCounterMode(display=False) as counter:  # warms up, too
        stage.compute(work.rows, adjust=True)
    peak = peak_gigabytes(work)
    plain = Workload(given) if given.loops else work  # a model without the stage's hooks
    loops = {name: LessLoop(plain, project=name == "(a)") for name in given.loops}
    loop_rows = work.rows[:: max(1, len(work.rows) // given.loop_rows)][: given.loop_rows]
    loop_tokens = sum(len(row.input_ids) for row in loop_rows)
    loop_times: dict[str, list[float]] = {name: [] for name in loops}
    ours, rates = [], []
    for _ in range(given.turns):
        ours.append(seconds(work, lambda: stage.compute(work.rows, adjust=True)))
        rates.append(product_rate(work.device, work.dtype))
        for name, loop in loops.items():
            loop_times[name].append(seconds(work, lambda loop=loop: loop.run(loop_rows)))  # type: ignore[misc]
    flops = counter.get_total_flops() / median(ours)
    print(
        f"{len(work.rows)} rows of {work.tokens / len(work.rows):.0f} tokens, "
        f"{str(work.dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads, "
        f"{torch.cuda.get_device_name() if work.device.type == 'cuda' else 'CPU'}, "
        f"torch {torch.__version__}, budget {stage.token_budget} tokens"
    )
    print(
        f"gradient stage: {len(work.rows) / median(ours):.2f} examples/s, "
        f"{work.tokens / median(ours):.0f} tokens/s, {flops / 1e9:.0f} GFLOP/s, "
        f"{flops / median(rates):.0%} of a large product's {median(rates) / 1e9:.0f}; "
        f"peak memory {peak:.2f} GB"
    )
    shares = phases(work, lambda: stage.compute(work.rows, adjust=True))
    print("share of time: " + ", ".join(f"{name} {share:.1%}" for name, share in shares))
    for name, found in loop_times.items():
        ratios = sorted(
            (their / loop_tokens) / (our / work.tokens)
            for our, their in zip(ours, found, strict=True)
        )
        print(
            f"{name}: {len(loop_rows) / median(found):.2f} examples/s; by tokens the stage is "
            f"{median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def _work(given: argparse.Namespace, asked: Any) -> None:
    """Do what is asked for, `stage` or `product`, and answer with the seconds it took."""
    torch.set_num_threads(1)
    work = Workload(given)
    stage = gradient_stage(work, given)
    a, b = (torch.randn(1024, 1024) for _ in range(2))
    what = {
        "stage": lambda: stage.compute(work.rows, adjust=True),
        "product": lambda: [a @ b for _ in range(100)],
    }
    for run in what.values():
        run()
    asked.send(0.0)
    while name := asked.recv():
        asked.send(seconds(work, what[name]))


def scale(given: argparse.Namespace) -> None:
    """Workers of one thread each, alone and together, each on all of the rows.

    Products that stay in a core's own cache take turns with them: what two of those gain is
    what the machine has to give at that time.
    """
    spawn = multiprocessing.get_context("spawn")
    pipes = [spawn.Pipe() for _ in range(given.workers)]
    workers = [spawn.Process(target=_work, args=(given, there)) for _, there in pipes]
    for worker in workers:
        worker.start()
    ends = [here for here, _ in pipes]

    def slowest(name: str, count: int) -> float:
        for end in ends[:count]:
            end.send(name)
        return max(end.recv() for end in ends[:count])

    for end in ends:
        end.recv()  # ready
    gains: dict[str, list[float]] = {"stage": [], "product": []}
    for _ in range(given.turns):
        for name, found in gains.items():
            alone = slowest(name, 1)
            found.append(given.workers * alone / slowest(name, given.workers))
    for end in ends:
        end.send("")
    for worker in workers:
        worker.join()
    shares = [ours / most for ours, most in zip(*gains.values(), strict=True)]
    for label, found in {
        "gradient stage": gains["stage"],
        "products in cache": gains["product"],
        "stage over products": shares,
    }.items():
        print(
            f"{label}: {given.workers} workers of one thread each do {median(found):.2f} times "
            f"what one does ({min(found):.2f} to {max(found):.2f}, {given.turns} turns)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="directory or hub name")
    what.add_argument("--shape", choices=list(SHAPES), help="random weights of this shape")
    parser.add_argument("--layers", type=int, default=0, help="of --shape, if not all")
    parser.add_argument("--pool", help="rows to read")
    parser.add_argument("--tokens", type=int, default=0, help="rows of this length instead")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--lora-r", type=int, default=8)
    parser.add_argument(
        "--lora-targets", nargs="+", default=["q_proj", "k_proj", "v_proj", "o_proj"]
    )
    parser.add_argument("--lora-layers", default="all")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--token-budget", default="0", help="0 is the default of the device")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--loops", nargs="*", choices=["(a)", "(b)"], default=["(a)", "(b)"])
    parser.add_argument("--loop-rows", type=int, default=16, help="rows that the loops take")
    parser.add_argument("--workers", type=int, default=0, help="measure scaling to so many workers")
    given = parser.parse_args()
    if not given.pool and not given.tokens:
        parser.error("give --pool or --tokens")
    if given.workers:
        scale(given)
    else:
        compare(given)


if __name__ == "__main__":
    main()
