"""Changes to the files that a Hugging Face Trainer leaves, and how their import is refused."""

import json

import pytest
import torch

from g2is_ray.errors import InputError
from g2is_ray.training.trainer_folders import import_checkpoints

RATE = 1e-2
ALL = ["q_proj", "k_proj", "v_proj", "o_proj"]


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_optimizer(folder, alter):
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    alter(state)
    torch.save(state, folder / "optimizer.pt")


def refusal(workspace, folders, settings):
    """Return the sentence with which an import is refused; require that nothing is written."""
    with pytest.raises(InputError) as refused:
        import_checkpoints(workspace, folders, settings)
    assert not workspace.storage.names("warmup")
    assert "\n" not in str(refused.value)
    return str(refused.value)
