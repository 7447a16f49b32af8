"""Tries every architecture of transformers as a tiny random model, and writes docs/models.md.

    python tests/helpers/architectures_table.py                    # all, about an hour of one core
    python tests/helpers/architectures_table.py llama opt          # some, to look at
    python tests/helpers/architectures_table.py --results tried.jsonl --write docs/models.md

Each is saved, loaded and given an adapter as `g2is` does, and then compared with plain transformers
and autograd on one row at a time.
"""

import argparse
import contextlib
import copy
import datetime
import io
import json
import os
import resource
import signal
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from architectures import Concatenated
from tiny_configs import VARIANTS, tiny_config
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from g2is_ray.chat.encoder import Encoded
from g2is_ray.config import LoraSettings, ModelSettings
from g2is_ray.errors import InputError, SettingError
from g2is_ray.features.embeddings import EmbeddingComputer
from g2is_ray.features.gradients import GradientComputer
from g2is_ray.models.batches import Batch
from g2is_ray.models.decoder import plain_tokens
from g2is_ray.models.loading import add_adapter, load_base, lora_parameters
from g2is_ray.models.loss import SupervisedLoss

CPU = torch.device("cpu")
KINDS = (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS)
MULTIMODAL = tuple(k for k in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if k not in KINDS)
RIGHT = 1e-4  # relative error of float32 that still counts as right

_MEMORY_BYTES = 4 * 2**30  # of address space; what is larger is no tiny model
_SECONDS = 120
_STD = 0.15  # of random weights: so large that attention and experts matter


INTRODUCTION = """# Models

<!-- Written by tests/helpers/architectures_table.py; see `make models`. -->

g2is works with decoder-only language models that transformers loads by `AutoModelForCausalLM` or,
for multimodal ones, `AutoModelForImageTextToText`; only their language model is tuned. A model that
is loaded is checked by computing: no hidden state depends on a later token, no row depends on its
batch, and the loss at supervised tokens is the model's own. The check costs five forward passes of
at most 24 tokens. A model that fails is refused in one sentence: before the pool is read if its
weights take at most 2.5 GiB in float32, else before the warm-up.

- **Adapters.** `lora_targets: auto` names the attention's projections of the language model; the
  log says which. Vision and audio towers, routers, the output layer, and attention to an encoder
  get none.
- **Experts** that are fused into one parameter get an adapter where PEFT can give them one
  (`all-linear`), with `--lora-dropout 0`. Gradients are then taken one row at a time.
- **Rotary embeddings that depend on the batch** (LongRoPE, dynamic NTK): a batch holds rows on one
  side of the limit only. Training then holds one row in memory at a time.
- **Limits.** `max_tokens` beyond the positions of a model that has a table of them is refused, and
  so are rows with tokens that the model has no embedding for.

Tried on {date} with {versions}: {count} architectures, of which {right} are
right, {refused} are refused and {untried} were not tried. Each is a tiny random model in float32,
saved and loaded as `g2is` does. Numbers are the largest relative errors over six rows of 5 to 20
tokens in one batch: of a row's gradient (with the adapter of `auto`, and with `all-linear` at
dropout 0) against autograd on that row alone, of its loss against the model's own, and of its
embedding against the row alone. Up to {tolerance} counts as right; with
all-linear, hrm_text exceeds it because its cycles amplify rounding.
"""


def rows_for(model: PreTrainedModel, count: int = 6) -> list[Encoded]:
    """Rows of 5, 8, 11, ... tokens, of which more than half are supervised."""
    rng = np.random.default_rng(1)
    tokens = plain_tokens(model, 1000)
    found = []
    for i in range(count):
        ids = rng.choice(tokens, size=5 + 3 * i).tolist()
        labels = [token if rng.random() < 0.6 else -100 for token in ids]
        labels[0], labels[-1] = -100, ids[-1]
        found.append(Encoded(input_ids=ids, labels=labels, tokens_before_truncation=len(ids)))
    return found


def make(kind: str) -> PreTrainedModel:
    """A random model of the architecture, on the CPU in float32."""
    torch.manual_seed(0)
    whole = kind.partition(" (")[0] in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    factory = AutoModelForImageTextToText if whole else AutoModelForCausalLM
    model = factory.from_config(tiny_config(kind)).float().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            small = parameter.dim() in (2, 3) and parameter.std() < _STD / 1.5
            if small and "conv" not in name and "A_log" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * _STD)
    return model


def own_loss(model: Any, row: Encoded) -> torch.Tensor:
    """A row's mean loss as transformers computes it of that row alone."""
    ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
    return model(input_ids=ids, labels=labels, use_cache=False).loss


def relative_error(found: Any, wanted: Any) -> float:
    norm = float(np.linalg.norm(wanted))
    return float(np.linalg.norm(found - wanted)) / (norm or 1.0)


def gradient_error(base: PreTrainedModel, targets: tuple[str, ...], dropout: float) -> float:
    """Largest relative error of a row's gradient in a mixed batch; `base` is unusable then."""
    settings = LoraSettings(lora_r=3, lora_alpha=8, lora_targets=targets, lora_dropout=dropout)
    model, rows = add_adapter(base, settings, seed=0).eval(), rows_for(base)
    torch.manual_seed(7)
    for parameter in lora_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.3)
    whole, wanted = Concatenated(model), []
    for row in rows:
        model.zero_grad()
        own_loss(model, row).backward()
        parts = [
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
            for p in lora_parameters(model).values()
        ]
        wanted.append(torch.cat(parts).numpy())
    computer = GradientComputer(model, whole, None, pad_id=0, token_budget=10_000)
    found = computer.compute(rows, adjust=False).projected
    return max(relative_error(a, b) for a, b in zip(found, wanted, strict=True))


@torch.no_grad()
def loss_error(base: PreTrainedModel) -> float:
    rows = rows_for(base)
    batch = Batch.of(rows, 0, CPU)
    found = (SupervisedLoss(base).sums(batch) / batch.counts_b).numpy()
    wanted = np.array([float(own_loss(base, row)) for row in rows])
    return float(np.abs(found / wanted - 1).max())


def embedding_error(base: PreTrainedModel) -> float:
    rows = rows_for(base)
    together = EmbeddingComputer(base, pad_id=0, token_budget=10_000).compute(rows)
    alone = EmbeddingComputer(base, pad_id=0, token_budget=1).compute(rows)
    return max(relative_error(a, b) for a, b in zip(together, alone, strict=True))


def try_architecture(kind: str) -> dict[str, Any]:
    """What becomes of a model of the architecture."""
    result: dict[str, Any] = {"type": kind}
    with tempfile.TemporaryDirectory() as folder:
        model = make(kind)
        result["class"] = type(model).__name__
        model.save_pretrained(folder)
        del model

        try:
            loaded = load_base(ModelSettings(model=folder), CPU)

            def base() -> PreTrainedModel:
                return copy.deepcopy(loaded)

            result |= {"loss": loss_error(base()), "embeddings": embedding_error(base())}
            with_adapter = add_adapter(base(), LoraSettings(lora_r=3), seed=0)
            result["targets"] = with_adapter.peft_config["default"].target_modules
            result["targets"] = sorted(result["targets"])
            result["default"] = gradient_error(base(), ("auto",), 0.1)
        except (InputError, SettingError) as refusal:
            result["refused"] = str(refusal).replace(folder, kind)
            return result
        try:
            result["all_linear"] = gradient_error(base(), ("all-linear",), 0.0)
        except (InputError, SettingError) as refusal:
            result["all_linear"] = str(refusal).replace(folder, kind)
    return result


def in_a_process(kind: str) -> dict[str, Any]:
    """`try_architecture` with limited memory and time, in a process that may die."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
            signal.alarm(_SECONDS)
            with contextlib.redirect_stdout(io.StringIO()):
                result = try_architecture(kind)
        except BaseException as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
            frame = error.__traceback__
            while frame is not None and frame.tb_next is not None:
                frame = frame.tb_next
            where = Path(frame.tb_frame.f_code.co_filename).name if frame else ""
            line = frame.tb_lineno if frame else 0
            result = {"type": kind, "failed": f"{reason} @ {where}:{line}"}
        os.write(writer, json.dumps(result).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if data:
        return json.loads(data)
    return {"type": kind, "failed": f"took more than {_SECONDS} s (status {status})"}


def verdict(result: dict[str, Any]) -> str:
    """What the table says of an architecture."""
    if "failed" in result:
        return f"not tried: {result['failed']}"
    if "refused" in result:
        return f"refused: {result['refused']}"
    worst = max(result["default"], result["loss"], result["embeddings"])
    return "right" if worst <= RIGHT else "**wrong**"


def cell(value: float | str) -> str:
    if isinstance(value, str):
        return f"refused: {value}"
    return f"{value:.0e}"


def reason(result: dict[str, Any]) -> str:
    """Why an architecture was refused or not tried, for a cell of the table."""
    if "allocate memory" in result.get("failed", ""):
        return "the smallest config that was found takes more than 4 GiB"
    return str(result.get("refused") or result["failed"]).replace("|", "\\|")


def page(results: list[dict[str, Any]]) -> str:
    """docs/models.md."""
    right = [one for one in results if verdict(one) == "right"]
    refused = [one for one in results if "refused" in one]
    untried = [one for one in results if "failed" in one]
    versions = f"transformers {transformers.__version__}, PEFT {peft.__version__}"
    lines = [
        INTRODUCTION.format(
            date=datetime.date.today().isoformat(),
            versions=f"{versions}, PyTorch {torch.__version__.partition('+')[0]}",
            count=len(results),
            right=len(right),
            refused=len(refused),
            untried=len(untried),
            tolerance=f"{RIGHT:.0e}",
        ),
        "## Right",
        "",
        "| type | class | `auto` names | gradients | all-linear | loss | embeddings |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in right:
        errors = (cell(one[key]) for key in ("default", "all_linear", "loss", "embeddings"))
        names = ", ".join(one["targets"])
        lines.append(f"| {one['type']} | {one['class']} | {names} | {' | '.join(errors)} |")
    for title, held in (("Refused", refused), ("Not tried", untried)):
        lines += ["", f"## {title}", "", "| type | reason |", "| --- | --- |"]
        lines += [f"| {one['type']} | {reason(one)} |" for one in held]
    wrong = [one["type"] for one in results if verdict(one) == "**wrong**"]
    if wrong:
        lines += ["", "## Wrong", "", ", ".join(wrong)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", default=[*KINDS, *MULTIMODAL])
    parser.add_argument("--write", type=Path, help="page to write")
    parser.add_argument("--results", type=Path, help="JSON lines; what is there is not repeated")
    given = parser.parse_args()
    known: dict[str, dict[str, Any]] = {}
    if given.results and given.results.exists():
        for line in given.results.read_text().splitlines():
            known[json.loads(line)["type"]] = json.loads(line)
    for kind in given.kinds:
        if kind in known:
            continue
        began = time.monotonic()
        known[kind] = in_a_process(kind)
        line = json.dumps(known[kind] | {"s": round(time.monotonic() - began, 1)})
        print(line, flush=True)
        if given.results:
            with given.results.open("a") as file:
                file.write(line + "\n")
    if given.write:
        given.write.write_text(page([known[kind] for kind in sorted(known)]))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    main()
