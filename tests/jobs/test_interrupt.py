"""A command that is told to end in the midst of a training ends cleanly, and leaves nothing."""

import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from main_job import G2IS, ROOT, command, environment

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_sigterm_in_a_training(inputs: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "ws"
    printed = workspace / "logs" / "warmup.log"
    run = subprocess.Popen(
        [*G2IS, *command(inputs, workspace), "--warmup-epochs", "2000"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while run.poll() is None and not (printed.exists() and "'loss': " in printed.read_text()):
            time.sleep(0.05)
        assert run.poll() is None, run.stderr.read()
        ray = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(signal.SIGTERM)
        out, err = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 128 + signal.SIGTERM
    assert err.splitlines()[-1] == "g2is: interrupted; give the same command again to go on"
    assert "Traceback" not in err
    assert "RayTrainWorker" not in out + err
    assert len(ray) > 5
    _, alive = psutil.wait_procs(ray, timeout=10)
    assert not alive
    assert not workspace.joinpath("warmup", "receipt.json").exists()
    assert list(workspace.joinpath("checkpoints").iterdir())  # to go on from
