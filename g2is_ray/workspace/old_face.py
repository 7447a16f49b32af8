"""Methods of a workspace that are methods of its storage and its stages by now.

Call sites that are not converted yet use them. This file goes with the last of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from g2is_ray.workspace.index import Index
    from g2is_ray.workspace.stage import Stage
    from g2is_ray.workspace.storage import Storage

_OF_STAGE = {  # old name: new name
    **{name: name for name in ("commit", "commit_once", "conclude", "finished", "fingerprint")},
    **{name: name for name in ("outgrown", "begin", "extend")},
    **{"receipt": "verified", "read_receipt": "receipt", "piece": "require_piece"},
}


class OldFace:
    """The old methods, which are looked up where they are now."""

    storage: Storage
    index: Index

    if TYPE_CHECKING:

        def stage(self, name: str) -> Stage: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("storage", "index"):
            raise AttributeError(name)
        if name in _OF_STAGE:
            return lambda stage, *a, **kw: getattr(self.stage(stage), _OF_STAGE[name])(*a, **kw)
        if name in ("require", "require_current"):
            return lambda stage, command: getattr(self.stage(stage), name)()
        if name == "held":
            return lambda stage, piece, file: self.stage(stage).receipt(piece).file(file)
        return getattr(self.storage, name)
