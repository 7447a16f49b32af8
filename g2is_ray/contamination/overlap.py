"""Overlap: rows of one set that match rows of others, such as test rows in a pool.

Texts are compared by their wording (see `wording`). There are four kinds of match, from the most
to the least certain:

- `row`: prompt and answer are equal, as a whole row or as one turn of a conversation;
- `prompt`: the prompt is equal and the answer differs;
- `near`: any turn of the row contains a prompt of eight words or more, or the row's prompt differs
  from such a prompt only in signs between digits;
- `answer`: any turn of the row contains an answer of thirteen words or more; the prompt differs.

A row contains a text if shared runs of 13 words cover 80% of a prompt, or all of an answer or of a
prompt with fewer than 13 words. Runs that more than two reference texts share are boilerplate and
do not count. If more than ten rows contain most but not all of a prompt, the prompt is a template
and these rows do not count. An answer to more than two prompts does not count either.

Sources: GPT-3 (Brown et al. 2020, appendix C) for runs of 8 to 13 words and for discarding what
more than 10 documents share; Llama 2 (Touvron et al. 2023, appendix A.6) for the 80%.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from g2is_ray.contamination.wording import wording, words

KINDS = ("row", "prompt", "near", "answer")
"""Kinds of match, from the most to the least certain."""

_RUN_WORDS = 13
_MIN_PROMPT_WORDS = 8  # shorter prompts are not searched for inside other texts
_MIN_COVERED = 0.8  # of a prompt's words, covered by shared runs
_MAX_SHARING_TEXTS = 2  # reference texts that may share a run
_MAX_PARTIAL_ROWS = 10  # rows that may contain most of a text
_SIEVE_BITS = 20
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that every word of a run affects its hash

_SIGNS = str.maketrans("", "", "-+*/^=.")

Turn = tuple[str, str]
"""Role and text."""

_Parsed = Sequence[tuple[str, list[str]]]  # role and words of each turn


class Match(NamedTuple):
    """A row that matches one or more reference rows with the same text."""

    row: int
    of: str  # the reference set
    like: int  # first row of the reference set with this text
    kind: str  # one of KINDS
    whole: bool = True  # False if the row contains most of the text, but not all


@dataclass
class _Prompt:
    """A prompt of a reference set, and the rows of each answer to it, by the answer's wording."""

    of: str
    wording: str
    rows: list[int] = field(default_factory=list)
    answers: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))


@dataclass
class _Passage:
    """A turn of reference rows that is searched for inside other texts."""

    kind: str  # near or answer
    words: list[str]  # emptied after its runs are indexed
    run: int  # words per indexed run
    rows: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # by set
    prompts: set[str] = field(default_factory=set)  # wordings of the prompts that an answer has


class Index:
    """An index of reference rows that finds matching rows; holds all reference texts in memory.

    Args:
        sets: turns of every row, by the name of the set.
    """

    def __init__(self, sets: Mapping[str, Iterable[Sequence[Turn]]]) -> None:
        self._prompts: dict[str, list[_Prompt]] = defaultdict(list)  # by their letters
        passages: dict[tuple[str, str], _Passage] = {}
        for name, rows in sets.items():
            for row, turns in enumerate(rows):
                self._add(name, row, _parse(turns), passages)
        self._passages = [
            one for one in passages.values() if len(one.prompts) <= _MAX_SHARING_TEXTS
        ]
        self._own, self._runs = _runs_of(self._passages)
        self._members = self._groups()
        for one in self._passages:
            one.words = []

    def _add(
        self, name: str, row: int, turns: _Parsed, passages: dict[tuple[str, str], _Passage]
    ) -> None:
        asked, answered = _joined(turns, "user"), _joined(turns, "assistant")
        if asked:
            own = wording(asked)
            same = (one for one in self._prompts[_letters(asked)] if one.wording == own)
            prompt = next((one for one in same if one.of == name), None)
            if prompt is None:
                prompt = _Prompt(of=name, wording=own)
                self._prompts[_letters(asked)].append(prompt)
            prompt.rows.append(row)
            prompt.answers[wording(answered)].append(row)
        for role, text in turns:
            kind, least = ("near", _MIN_PROMPT_WORDS) if role == "user" else ("answer", _RUN_WORDS)
            if role in ("user", "assistant") and len(text) >= least:
                passage = passages.setdefault(
                    (kind, wording(text)), _Passage(kind, text, min(_RUN_WORDS, len(text)))
                )
                if row not in passage.rows[name][-1:]:
                    passage.rows[name].append(row)
                if kind == "answer":
                    passage.prompts.add(wording(asked))

    def _groups(self) -> dict[tuple[str, int, str], dict[int, str]]:
        groups: dict[tuple[str, int, str], dict[int, str]] = defaultdict(dict)
        for prompt in itertools.chain.from_iterable(self._prompts.values()):
            others, first = dict.fromkeys(prompt.rows, "prompt"), prompt.rows[0]
            groups[prompt.of, first, "prompt"] = others
            groups[prompt.of, first, "near"] |= dict.fromkeys(prompt.rows, "near")
            for rows in prompt.answers.values():
                groups[prompt.of, rows[0], "row"] = others | dict.fromkeys(rows, "row")
        for passage in self._passages:
            for name, rows in passage.rows.items():
                groups[name, rows[0], passage.kind] |= dict.fromkeys(rows, passage.kind)
        return groups

    def alike(self, match: Match) -> dict[int, str]:
        """All rows of the reference set that a match stands for, each with its kind."""
        return self._members[match.of, match.like, match.kind]

    def matches(self, rows: Iterable[Sequence[Turn]], besides: str = "") -> list[Match]:
        """Matches of the rows, in order of the rows, which are numbered from 0.

        Args:
            rows: turns of each row.
            besides: reference set to skip, because the rows belong to it.
        """
        parsed = [_parse(turns) for turns in rows]
        found: dict[tuple[int, str, int], Match] = {}
        for match in itertools.chain(self._exact(parsed), self._inside(parsed)):
            place = (match.row, match.of, match.like)
            if match.of != besides and (place not in found or _order(match) < _order(found[place])):
                found[place] = match
        return sorted(found.values())

    def _exact(self, rows: Sequence[_Parsed]) -> Iterator[Match]:
        for row, turns in enumerate(rows):
            tried = [(_joined(turns, "user"), _joined(turns, "assistant"), True)]
            if sum(role == "user" for role, _ in turns) > 1:
                pairs = itertools.pairwise([*turns, ("", [])])
                tried += [
                    (u, a, len(u) >= _MIN_PROMPT_WORDS) for (by, u), (_, a) in pairs if by == "user"
                ]
            for asked, answered, is_enough in tried:
                alike = self._prompts.get(_letters(asked), ())
                own = wording(asked) if alike else ""
                for prompt in alike:
                    if prompt.wording != own:  # other signs between digits
                        if len(asked) >= _MIN_PROMPT_WORDS:
                            yield Match(row, prompt.of, prompt.rows[0], "near")
                    elif like := prompt.answers.get(wording(answered)):
                        yield Match(row, prompt.of, like[0], "row")
                    elif is_enough:
                        yield Match(row, prompt.of, prompt.rows[0], "prompt")

    def _inside(self, rows: Sequence[_Parsed]) -> Iterator[Match]:
        texts = [(row, text) for row, turns in enumerate(rows) for _, text in turns]
        hashes = _hashes(text for _, text in texts)
        turn_of = np.repeat(np.arange(len(texts)), [len(text) for _, text in texts])
        row_of = np.array([row for row, _ in texts], dtype=np.int64)
        found: dict[tuple[int, int], set[int]] = defaultdict(set)
        for run, known in self._runs.items():
            at, entries = known.find(_run_hashes(hashes, run))
            within = turn_of[at] == turn_of[at + run - 1]
            at, entries = at[within], entries[within]
            held = (row_of[turn_of[at]], known.passages[entries], known.offsets[entries])
            for row, passage, offset in zip(*(one.tolist() for one in held), strict=True):
                found[row, passage].add(offset)
        for (row, number), offsets in found.items():
            passage, own = self._passages[number], self._own[number]
            covered = np.zeros(len(own), dtype=bool)
            for offset in offsets:
                covered[offset : offset + passage.run] = True
            share = covered[own].mean()
            if share >= (_MIN_COVERED if passage.kind == "near" else 1):
                for name, like in passage.rows.items():
                    yield Match(row, name, like[0], passage.kind, bool(share == 1))


def without_templates(matches: Iterable[Match]) -> list[Match]:
    """The matches of a set, without partial matches of a text that more than 10 rows have."""
    held = list(matches)
    partial = Counter(match[1:4] for match in held if not match.whole)
    return [match for match in held if match.whole or partial[match[1:4]] <= _MAX_PARTIAL_ROWS]


def _order(match: Match) -> tuple[int, bool]:
    return KINDS.index(match.kind), not match.whole


def _parse(turns: Iterable[Turn]) -> _Parsed:
    return [(role, words(text)) for role, text in turns]


def _joined(turns: _Parsed, role: str) -> list[str]:
    """Words of all turns of a role, concatenated."""
    own = [text for by, text in turns if by == role]
    return own[0] if len(own) == 1 else list(itertools.chain.from_iterable(own))


def _letters(text: Sequence[str]) -> str:
    """The concatenated words without signs between digits."""
    joined = "".join(text)
    return joined if joined.isalnum() else joined.translate(_SIGNS)


def _hashes(texts: Iterable[Sequence[str]]) -> NDArray[np.uint64]:
    """A hash of each word, uint64 [n]; hashes differ between processes."""
    every = itertools.chain.from_iterable(texts)
    return np.fromiter(map(hash, every), dtype=np.int64).view(np.uint64)


def _run_hashes(hashes: NDArray[np.uint64], run: int) -> NDArray[np.uint64]:
    """A hash of each run of `run` consecutive words, uint64 [n - run + 1]."""
    count = max(0, len(hashes) - run + 1)
    found = np.zeros(count, dtype=np.uint64)
    for place in range(run if count else 0):
        found *= _FACTOR
        found += hashes[place : place + count]
    return found


@dataclass
class _Runs:
    """Runs of one length, sorted by hash, with the passage and the offset of each run."""

    hashes: NDArray[np.uint64]
    passages: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __post_init__(self) -> None:
        self._sieve = np.zeros(2**_SIEVE_BITS, dtype=bool)
        self._sieve[self._low(self.hashes)] = True

    def _low(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return hashes >> np.uint64(64 - _SIEVE_BITS)

    def find(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs of a position in `hashes` [n] and the index of a run with that hash."""
        at = np.flatnonzero(self._sieve[self._low(hashes)])
        first = np.searchsorted(self.hashes, hashes[at], side="left")
        counts = np.searchsorted(self.hashes, hashes[at], side="right") - first
        starts = np.repeat(first - (np.cumsum(counts) - counts), counts)
        return np.repeat(at, counts), starts + np.arange(counts.sum())


def _runs_of(passages: Sequence[_Passage]) -> tuple[list[NDArray[np.bool_]], dict[int, _Runs]]:
    """The words of each passage that count, as masks, and the indexed runs by their length.

    Words of shared runs do not count, unless all words of the passage are shared.
    """
    lengths = np.array([len(one.words) for one in passages], dtype=np.int64)
    firsts = np.cumsum(lengths) - lengths
    hashes = _hashes(one.words for one in passages)
    number = np.repeat(np.arange(len(passages)), lengths)
    shared = np.zeros(len(hashes), dtype=bool)  # words
    runs: dict[int, _Runs] = {}
    for run in sorted({one.run for one in passages}):
        own = _run_hashes(hashes, run)
        fits = np.array([one.run == run for one in passages], dtype=bool)
        starts = np.arange(len(own))
        starts = starts[fits[number[starts]] & (number[starts] == number[starts + run - 1])]
        order = np.lexsort((number[starts], own[starts]))
        starts = starts[order]
        runs[run] = _Runs(own[starts], number[starts], starts - firsts[number[starts]])
        once = np.unique(np.stack([own[starts], number[starts].astype(np.uint64)]), axis=1)[0]
        known, counts = np.unique(once, return_counts=True)
        wide = starts[np.isin(own[starts], known[counts > _MAX_SHARING_TEXTS])]
        for place in range(run):
            shared[wide + place] = True
    counted = [
        ~shared[first : first + length] for first, length in zip(firsts, lengths, strict=True)
    ]
    return [own if own.any() else ~own for own in counted], runs
