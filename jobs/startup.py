"""Checks of the process before a command runs, in place of tracebacks of libraries."""

from __future__ import annotations

import errno
import getpass
import io
import os
import sys
import tempfile

import g2is
from g2is_ray.errors import InputError

_OF_THE_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS),  # full or read-only disks
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN),  # limits
}


def check_process() -> None:
    """Correct or refuse what would end in a traceback of a library.

    Raises:
        InputError: another package hides the project's, or no temporary folder can be written.
    """
    if hidden := g2is.hidden_packages():
        raise InputError(hidden)
    try:
        tempfile.gettempdir()
    except OSError:
        raise InputError(
            "no temporary folder can be written, neither TMPDIR nor /tmp: set TMPDIR to a folder "
            "that can"
        ) from None
    try:
        getpass.getuser()
    except (KeyError, OSError):  # in a container with an unknown user; torch requires a name
        os.environ["USER"] = f"user-{os.getuid()}"
    if isinstance(sys.stdout, io.TextIOWrapper):  # for terminals that cannot show all characters
        sys.stdout.reconfigure(errors="backslashreplace")


def check_current_folder() -> None:
    """Refuse a current folder whose packages Ray's workers would import in place of the project's.

    Raises:
        InputError: names the path of such a package.
    """
    if hidden := g2is.hidden_from_workers():
        raise InputError(hidden)


def machine_error(error: OSError) -> str:
    """Return a sentence on an error of the machine, such as a full disk; empty for other errors."""
    if error.errno not in _OF_THE_MACHINE:
        return ""
    where = f" ({error.filename})" if error.filename else ""
    return (
        f"this machine is at a limit: {error.strerror}{where}; raise the limit, and give the same "
        "command again"
    )
