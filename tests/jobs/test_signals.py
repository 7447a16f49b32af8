"""A command that is told to end does so with the signal's status, whatever swallows it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WAIT = """
import sys, time
from jobs import signals
signals._AGAIN_SECONDS = 0.1
with signals.Signals() as caught:
    try:
        with caught.noticed():
            if "swallow" in sys.argv:
                try:
                    print("ready", flush=True)
                    time.sleep(600)
                except BaseException:
                    print("swallowed", flush=True)
                    time.sleep(600)
            print("ready", flush=True)
            time.sleep(600)
    except KeyboardInterrupt:
        time.sleep(0.5)  # longer than until it would be raised again
        sys.exit(caught.status)
"""


def end(number, *arguments, ignored=False):
    """The exit status of a process that is sent a signal, and what it printed."""
    how = signal.SIG_IGN if ignored else signal.SIG_DFL
    with subprocess.Popen(
        [sys.executable, "-c", WAIT, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, how),
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        if ignored:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            process.kill()
        out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_status_is_the_signals(number):
    assert end(number) == (128 + number, "")


def test_a_signal_that_a_library_swallows_is_raised_again():
    assert end(signal.SIGTERM, "swallow") == (143, "swallowed\n")


def test_a_signal_that_is_ignored_stays_ignored():
    assert end(signal.SIGHUP, ignored=True) == (-signal.SIGKILL, "")


def test_handlers_are_as_before_afterwards():
    from jobs.signals import Signals

    def handlers():
        return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    before = handlers()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an earlier test may have set Ray's handler
    try:
        with Signals():
            assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, before[1])
        assert handlers() == [before[0], signal.SIG_DFL]
    finally:
        signal.signal(signal.SIGTERM, before[1])
