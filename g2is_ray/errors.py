"""The errors a user may see: one sentence each, exit status 2.

Every message says what is wrong, where (file:line, part or setting) and what to do
about it. All of them survive pickling, because Ray carries them between processes.
"""


class G2isError(Exception):
    """Base of every error that is the input's or the machine's fault, not a bug."""


class InputError(G2isError):
    """A file, row, array or model given by the user cannot be used."""


class SettingError(G2isError):
    """A setting has a value that can never work."""


class WorkspaceError(G2isError):
    """The workspace holds other settings, lacks an earlier stage, or cannot be written."""


class MissingError(WorkspaceError):
    """A file of the workspace is not there."""


class StorageError(WorkspaceError):
    """A remote workspace cannot be reached or refuses access, so what it holds is not known."""


class WorkError(G2isError):
    """Workers failed at some parts, or keep dying; everything else is done and kept."""


def one_line(error: object, characters: int = 300) -> str:
    """The text of an error on one line, cut to some characters; its type where it has no text."""
    return " ".join(str(error).split())[:characters] or type(error).__name__


def last_line(error: object) -> str:
    """The last line of an error's text, which names the cause; its type where it has no text."""
    return next(reversed(str(error).strip().splitlines()), type(error).__name__)
