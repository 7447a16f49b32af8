"""The workspace: what is on disk, what made it, and what is done.

A directory or any fsspec URL. A stage owns one folder, whose path is also the stage's name: `pool`,
`warmup`, `gradients`, `graph/centered`, `targets/T`, `selections/T`, …
`workspace.json` records the settings that made each stage.
"""

from __future__ import annotations

from collections.abc import Sequence

from g2is_ray.workspace.index import Index
from g2is_ray.workspace.records import Record
from g2is_ray.workspace.stage import STAGE_RECEIPT, Growth, Stage, part_name
from g2is_ray.workspace.storage import Storage

__all__ = ["STAGE_RECEIPT", "Growth", "Workspace", "part_name"]


class Workspace:
    """A storage, the index of its stages, and the stages; cheap to make and to pickle.

    Raises:
        SettingError: the URL's kind of storage is unknown, or needs a package.
    """

    def __init__(self, url: str) -> None:
        self.storage = Storage(url)
        self.index = Index(self.storage)

    def __reduce__(self) -> tuple[type[Workspace], tuple[str]]:
        """A copy in another process reads the index itself."""
        return type(self), (self.storage.portable_url,)

    @property
    def url(self) -> str:
        """The directory or URL as it was given."""
        return self.storage.url

    def stage(self, name: str) -> Stage:
        """The stage of that name, which need not exist."""
        return Stage(name, self.storage, self.index)

    def stages(self) -> dict[str, Record]:
        """Record of each stage that was begun: `settings`, `inputs`, `fingerprint`, …"""
        return self.index.stages()

    def forget(self, stages: Sequence[str]) -> None:
        """Remove the records of stages, and with them what they remember."""
        if stages:
            self.index.change(dict.fromkeys(stages))
