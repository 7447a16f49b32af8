"""Trackers, such as TensorBoard, that a training reports its metrics to."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

from transformers import Trainer
from transformers.integrations.integration_utils import (
    TensorBoardCallback,
    get_available_reporting_integrations,
)

from g2is_ray.errors import SettingError

_TENSORBOARD_FOLDER = "TENSORBOARD_LOGGING_DIR"  # the user's environment variable
_LEFT_OPEN = ("wandb", "trackio", "mlflow")
"""Trackers with one current run per process, which transformers may not end."""


def require_installed(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed on this machine.

    Raises:
        SettingError: names the first one.
    """
    installed = get_available_reporting_integrations()
    for name in names:
        if name not in installed:
            raise SettingError(
                f"report_to names {name}, which is not installed where training runs; "
                f"pip install {name}"
            )


def log_to(trainer: Trainer, stage: str, folder: str) -> None:
    """Have TensorBoard's files of a training written into a folder of the training.

    Args:
        stage: the training's; names its folder below TENSORBOARD_LOGGING_DIR, if that is set.
        folder: the training's folder otherwise.
    """
    given = os.environ.get(_TENSORBOARD_FOLDER)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = f"{os.path.expanduser(given)}/{stage}" if given else folder  # noqa: PTH111


@contextlib.contextmanager
def run_ended(names: Sequence[str]) -> Iterator[None]:
    """End the trackers' runs after the `with` block, however the block ends.

    The next training in the process would otherwise report to the same run.
    """
    try:
        yield
    finally:
        for name in _LEFT_OPEN:
            if name in names and (module := sys.modules.get(name)):
                (module.end_run if name == "mlflow" else module.finish)()
