"""Greedy replies of a causal LM, equal to those of a loop over one prompt without padding.

Shapes: b prompts, t tokens, k steps, v vocabulary.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import GenerationConfig

from g2is_ray.chat.encoder import IGNORED, ChatEncoder
from g2is_ray.errors import InputError
from g2is_ray.models.batches import batches_by_length
from g2is_ray.models.rope import regimes

_PROBE_TOKENS = (2, 64)  # lengths of the prompts on which the ways to decode are compared
_PROBE_STEPS = 3
_TOLERANCE = 1e-3  # relative difference of logits with and without a cache; rounding is smaller
_POSITIONS = re.compile(r"(^|\.)(wpe|\w*position\w*)$")  # names of learned position embeddings


@dataclass(frozen=True)
class Reply:
    """The text that a model wrote after a prompt, up to the end of its turn."""

    text: str
    cut: bool  # the reply reached its longest length before the turn ended


_Way = Literal["padded", "of one length", "alone", "plain"]
_Write = Callable[[Sequence[list[int]], int], list[list[int]]]
_WAYS: tuple[_Way, ...] = ("padded", "of one length", "alone", "plain")
"""How prompts are batched when decoding, from fast to slow; `plain` is a loop without a cache."""


class GreedyWriter:
    """Writes replies by argmax; ignores the model's generation settings.

    Some models let padding into their states, rotary scalings may depend on the longest prompt
    of a batch, and some caches are wrong. The writer therefore computes a few tokens in each way,
    and uses the fastest way that agrees with the plain loop.

    Args:
        model: a transformers causal LM in evaluation mode, with an adapter or without.
        encoder: knows how the chat template ends a turn.
        max_new_tokens: longest reply in tokens.
        token_budget: tokens of a batch (longest prompt and reply x prompts).
    """

    def __init__(
        self, model: Any, encoder: ChatEncoder, *, max_new_tokens: int, token_budget: int
    ) -> None:
        lm: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self._lm = lm
        self._tokenizer: Any = encoder.tokenizer
        self._max_new_tokens, self._token_budget = max_new_tokens, token_budget
        self._end_ids, self._closing = _ends(lm, encoder)
        embeddings = lm.get_input_embeddings()
        pad_id = self._tokenizer.pad_token_id
        self._pad_id = pad_id if pad_id is not None and pad_id < embeddings.num_embeddings else 0
        quantized = getattr(lm, "is_quantized", False)
        dtype = torch.bfloat16 if quantized else embeddings.weight.dtype
        self._rounding = 4 * torch.finfo(dtype).eps
        self._positions = _learned_positions(lm)
        self._regimes = regimes(lm)

    @torch.no_grad()
    def replies(self, prompts: Sequence[list[int]]) -> list[Reply]:
        """Return one reply per prompt, in the order of the prompts."""
        written = {i: Reply("", cut=True) for i in range(len(prompts))}
        if fitting := [prompt for prompt in prompts if len(prompt) < self._positions]:
            way = self._way(fitting)
            for write, room, batch in self._batches(prompts, way):
                new_bk = write([prompts[i] for i in batch], room)
                written |= {i: self._reply(row) for i, row in zip(batch, new_bk, strict=True)}
        return [written[i] for i in range(len(prompts))]

    def _batches(
        self, prompts: Sequence[list[int]], way: _Way
    ) -> Iterator[tuple[_Write, int, list[int]]]:
        """Yield a function that decodes, its limit of new tokens, and the prompts of a batch."""
        groups = defaultdict(list)
        for i, prompt in enumerate(prompts):
            room = min(self._max_new_tokens, self._positions - len(prompt))
            first, last = (self._regimes.of(n) for n in (len(prompt), len(prompt) + room))
            # A cache keeps keys of the first rotary scaling, which the longer text does not have.
            its_way = "plain" if first != last else way
            together = {"padded": 0, "of one length": len(prompt)}.get(its_way, -1 - i)
            if room > 0:
                groups[its_way, room, first, together].append(i)
        for (its_way, room, *_), members in groups.items():
            write = self._plain if its_way == "plain" else self._fast
            lengths = [len(prompts[i]) + room for i in members]
            for batch in batches_by_length(lengths, self._token_budget):
                yield write, room, [members[j] for j in batch]

    def _fast(self, prompts: Sequence[list[int]], room: int) -> list[list[int]]:
        """Return new tokens of each prompt; padding follows the end of a turn."""
        width = max(map(len, prompts))
        ends = sorted(self._end_ids) or None
        written_bt = self._generate(prompts, width, max_new_tokens=room, eos_token_id=ends)
        new_bk: list[list[int]] = written_bt[:, width:].tolist()
        return new_bk

    def _generate(self, prompts: Sequence[list[int]], width: int, **options: Any) -> Any:
        """Let transformers generate by argmax after prompts padded on the left."""
        ids_bt = torch.tensor([[self._pad_id] * (width - len(p)) + p for p in prompts])
        mask_bt = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        config = GenerationConfig(do_sample=False, pad_token_id=self._pad_id, **options)
        before = self._lm.generation_config
        self._lm.generation_config = config  # else it fills in what `config` leaves open
        try:
            return self._lm.generate(
                input_ids=ids_bt.to(self._lm.device),
                attention_mask=mask_bt.to(self._lm.device),
                generation_config=config,
            )
        finally:
            self._lm.generation_config = before

    def _plain(self, prompts: Sequence[list[int]], room: int) -> list[list[int]]:
        """Return the new tokens of the only prompt."""
        new: list[int] = []
        for logits_v in itertools.islice(self._plain_logits(prompts[0]), room):
            new.append(int(logits_v.argmax()))
            if new[-1] in self._end_ids:
                break
        return [new]

    def _plain_logits(self, prompt: list[int]) -> Iterator[torch.Tensor]:
        """Yield the logits [v] of each next token; every step computes the whole text."""
        ids = list(prompt)
        while True:
            ids_bt = torch.tensor([ids], device=self._lm.device)
            output = self._lm(input_ids=ids_bt, use_cache=False, return_dict=True)
            yield output.logits[0, -1]
            ids.append(int(output.logits[0, -1].argmax()))

    def _way(self, prompts: Sequence[list[int]]) -> _Way:
        """Return the fastest way to decode that gives the logits of the plain loop.

        Two beginnings of a prompt are decoded, each in a batch with a text as long as the longest
        prompt and its reply. Padding shows most in the states of a short prompt, and another rotary
        scaling shows most with a long text.
        """
        shortest, longest = min(prompts, key=len), max(prompts, key=len)
        most = self._positions - _PROBE_STEPS  # longest text that leaves positions for the steps
        starts = [shortest[: min(count, most)] for count in _PROBE_TOKENS]
        width = max(min(len(longest) + self._max_new_tokens, most), *map(len, starts))
        text = [*itertools.islice(itertools.cycle(longest), width)]
        ways = [self._way_after(start, text) for start in starts]
        return max(ways, key=_WAYS.index)

    def _way_after(self, start: list[int], text: list[int]) -> _Way:
        plain_kv = torch.stack([*itertools.islice(self._plain_logits(start), _PROBE_STEPS)])
        noise = _difference(self._fast_logits([start]), plain_kv)
        if not noise <= max(_TOLERANCE, 4 * self._rounding):
            return "plain"
        batch_mates: dict[_Way, list[int]] = {
            "padded": text,
            "of one length": text[-len(start) :],
        }
        for way, other in batch_mates.items():
            error = _difference(self._fast_logits([start, other]), plain_kv)
            if error <= max(10 * noise, self._rounding):
                return way
        return "alone"

    def _fast_logits(self, prompts: Sequence[list[int]]) -> torch.Tensor:
        """Return logits [k, v] of the first steps after the first prompt; NaN if it fails."""
        try:
            output = self._generate(
                *(prompts, max(map(len, prompts))),
                max_new_tokens=_PROBE_STEPS,
                output_logits=True,
                return_dict_in_generate=True,
            )
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
            return torch.full((_PROBE_STEPS, 1), torch.nan)  # some models' caches fail
        return torch.stack([logits_bv[0] for logits_bv in output.logits])

    def _reply(self, ids: list[int]) -> Reply:
        size = len(self._closing)
        for i, token in enumerate(ids):
            if token in self._end_ids or (size and ids[i : i + size] == self._closing):
                return Reply(self._text(ids[:i]), cut=False)
        return Reply(self._text(ids), cut=True)

    def _text(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _difference(found_kv: torch.Tensor, wanted_kv: torch.Tensor) -> float:
    """Return the largest relative difference of logits, up to a step with another argmax."""
    largest = 0.0
    for found_v, wanted_v in zip(found_kv.float(), wanted_kv.float(), strict=True):
        found_v, wanted_v = found_v.cpu() - found_v.mean(), wanted_v.cpu() - wanted_v.mean()
        error = float((found_v - wanted_v).norm() / wanted_v.norm())
        if not error <= largest:  # also if it is NaN
            largest = error
        if found_v.argmax() != wanted_v.argmax():
            break
    return largest


def _ends(lm: Any, encoder: ChatEncoder) -> tuple[set[int], list[int]]:
    """Return the token ids that end a reply, and the closing tokens if none of them is one."""
    tokenizer = encoder.tokenizer
    configs = (lm.generation_config, lm.config, lm.config.get_text_config(), tokenizer)
    found: set[int] = set()
    for config in configs:
        ids = getattr(config, "eos_token_id", None)
        found.update(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
    closing = end_of_turn(encoder)
    added = tokenizer.added_tokens_decoder.keys() | set(tokenizer.all_special_ids) | found
    mark = next((token for token in closing if token in added), None)
    return (found, closing) if mark is None else ({*found, mark}, [])


def end_of_turn(encoder: ChatEncoder) -> list[int]:
    """Return the supervised tokens with which the chat template closes an assistant's turn.

    Blanks before and after are left out. The result is empty if the template closes no turn or
    refuses the conversation that is tried.
    """
    pairs = zip(_turns(encoder, "yes"), _turns(encoder, "7"), strict=False)
    closings = [_common_end(yes, seven, encoder.tokenizer) for yes, seven in pairs]
    return next(filter(None, reversed(closings)), [])  # of the last turn that is closed


def _turns(encoder: ChatEncoder, answer: str) -> list[list[int]]:
    """Return the supervised tokens of each turn of a conversation that answers `answer`."""
    question, reply = {"role": "user", "content": "?"}, {"role": "assistant", "content": answer}
    try:
        encoded = encoder.encode([question, reply, question, reply])
    except InputError:
        return []
    groups = itertools.groupby(encoded.labels, key=lambda label: label != IGNORED)
    return [list(labels) for supervised, labels in groups if supervised]


def _common_end(first: list[int], second: list[int], tokenizer: Any) -> list[int]:
    pairs = zip(reversed(first), reversed(second), strict=False)
    common = [a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)][::-1]
    blank = [not tokenizer.decode([token]).strip() for token in common]
    kept = [i for i, one in enumerate(blank) if not one]
    return common[kept[0] : kept[-1] + 1] if kept else []


def _learned_positions(lm: Any) -> int:
    """Return the number of learned position embeddings; a huge number if there are none."""
    sizes = [
        module.num_embeddings - getattr(module, "offset", 0)
        for name, module in lm.named_modules()
        if isinstance(module, torch.nn.Embedding) and _POSITIONS.search(name)
    ]
    return min(sizes, default=2**62)
