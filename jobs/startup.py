"""Checks of the process before a command runs: what would end in a traceback of some library."""

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
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS),  # disks that are full or read-only
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN),  # limits
}


def check_process() -> None:
    """Refuse what would end in a traceback of a library, or mend it.

    Raises:
        InputError: another package hides the project's, or there is no temporary folder.
    """
    if hidden := g2is.hidden_packages():
        raise InputError(hidden)
    try:
        tempfile.gettempdir()
    except OSError:
        raise InputError(
            "no temporary folder can be written, neither TMPDIR nor /tmp: set TMPDIR to one"
        ) from None
    try:
        getpass.getuser()
    except (KeyError, OSError):  # in a container, for a user that it does not know; torch asks
        os.environ["USER"] = f"user-{os.getuid()}"
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a character
        sys.stdout.reconfigure(errors="backslashreplace")


def check_current_folder() -> None:
    """Refuse a current folder from which Ray's workers would import other packages than ours.

    Raises:
        InputError: there is one, with its path.
    """
    if hidden := g2is.hidden_from_workers():
        raise InputError(hidden)


def machine_error(error: OSError) -> str:
    """A sentence on an error that is the machine's, such as a full disk; nothing on others."""
    if error.errno not in _OF_THE_MACHINE:
        return ""
    where = f" ({error.filename})" if error.filename else ""
    return f"this machine has come to a limit: {error.strerror}{where}; mend it, and go on"
