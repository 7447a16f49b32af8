"""The `g2is` command: a command line in, an exit status out, and one sentence for every error."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Sequence

from g2is_ray.errors import G2isError
from jobs import startup
from jobs.commands import COMMANDS, perform
from jobs.flags import parse
from jobs.signals import Signals

_CHATTY = (
    *("httpx", "faiss", "fsspec", "datasets", "matplotlib", "urllib3", "filelock"),
    *("botocore", "aiobotocore"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0 is done, 1 a bug, 2 the user's error; after a signal it is 128 and the signal's number.
    """
    with Signals() as signals:
        try:
            with signals.noticed():
                return _main(list(sys.argv[1:] if arguments is None else arguments), signals)
        except KeyboardInterrupt as stop:
            why = str(stop) or "interrupted; give the same command again to go on"
            print(f"g2is: {why}", file=sys.stderr)
            return signals.status
        except BrokenPipeError:  # as of `g2is status | head`
            with open(os.devnull, "w") as nowhere:  # noqa: PTH123  or Python says so at its end
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            return 128 + signal.SIGPIPE


def _main(arguments: Sequence[str], signals: Signals) -> int:
    debug = "--debug" in arguments
    try:
        command, values, debug = parse(arguments)
        _log_to_stderr(debug)
        startup.check_process()
        result = perform(command, values, arguments, inside=signals.noticed())
        if isinstance(result, int):  # the exit status of a job on a cluster
            return result
        if COMMANDS[command].shows:
            print(result)
        sys.stdout.flush()
        return 0
    except G2isError as error:
        sentence = str(error)
        if debug:
            raise
    except OSError as error:
        sentence = startup.machine_error(error)
        if debug or not sentence:
            raise
    print(f"g2is: error: {_printable(sentence)}", file=sys.stderr)
    return 2


def _log_to_stderr(debug: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    level = logging.DEBUG if debug else logging.INFO
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.INFO if debug else logging.WARNING)


class _Formatter(logging.Formatter):
    """Log lines that may quote any file."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's own name
        return _printable(super().formatMessage(record))


def _printable(text: str) -> str:
    """Text on one line, without what a terminal would obey: control characters and the like."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+", " ", text)


if __name__ == "__main__":
    sys.exit(main())
