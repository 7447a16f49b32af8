"""What tests of lost and new nodes share."""

import pytest
from small_run import make_ready


@pytest.fixture(scope="module")
def ready(tmp_path_factory, tiny_model):
    """A workspace that is warmed up and has no features yet."""
    return make_ready(tmp_path_factory.mktemp("ready"), tiny_model)
