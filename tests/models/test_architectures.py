"""docs/models.md says of each architecture what is so."""

import os
import re
from pathlib import Path

import pytest
from architectures_table import KINDS, in_a_process, try_architecture, verdict

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
ONE_OF_EACH_KIND = ("gpt_neox", "falcon_mamba", "qwen2_moe", "minicpm3", "gemma4", "roberta")


def documented() -> dict[str, str]:
    """Right, refused or not tried, by architecture."""
    found, title = {}, ""
    for line in PAGE.read_text().splitlines():
        title = line.removeprefix("## ").lower() if line.startswith("## ") else title
        if title and (row := re.match(r"\| ([^|]+) \|", line)):
            found[row[1]] = title
    return found


@pytest.mark.parametrize("kind", ONE_OF_EACH_KIND)
def test_the_page_is_true_of_one_architecture_of_each_kind(kind):
    assert verdict(try_architecture(kind)).partition(":")[0] == documented()[kind]


def test_the_page_lists_every_causal_architecture_and_none_is_wrong():
    found = documented()
    assert set(KINDS) <= found.keys()
    assert "wrong" not in found.values()


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("G2IS_ALL_ARCHITECTURES"), reason="set G2IS_ALL_ARCHITECTURES; takes an hour"
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_page_is_true_of_every_architecture(kind):
    assert verdict(in_a_process(kind)).partition(":")[0] == documented()[kind]
