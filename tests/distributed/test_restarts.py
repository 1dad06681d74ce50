"""A run whose processes are killed, started again by torchrun, ends as if nothing had been."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from diffmoe.checkpoint import RunFolder
from long_record import hold
from runs_together import tensors

SIZES = "--model.width 32 --model.depth 2 --model.heads 2 --model.pool-images 16"
LOOP = "--training.global-batch 128 --loop.steps 240 --loop.log-every 10 --loop.checkpoint-every 5"
MACHINE = "--machine.timeout 60 --machine.device cpu --quiet"
WORDS = f"train digits-diffmoe {SIZES} {LOOP} {MACHINE}"


def _launched(path: Path, restarts: int, log: Path) -> "subprocess.Popen[bytes]":
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", "2", "--max-restarts", str(restarts), "-m", "--"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        return subprocess.Popen(
            [*command, "diffmoe", *WORDS.split(), "--run", str(path)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


def _kill_now_and_then(
    job: "subprocess.Popen[bytes]", path: Path, kills: int, choose: random.Random
) -> int:
    """Kill a process of the job at random, each time after it has saved anew; how often."""
    done, seen = 0, -1
    while done < kills and job.poll() is None:
        step = RunFolder(path).saved_step if (path / "config.yaml").is_file() else None
        if step is None or step <= seen:
            time.sleep(0.02)
            continue
        time.sleep(choose.random() * 0.3)
        workers = _children(job.pid)
        if len(workers) == 2 and job.poll() is None:
            os.kill(choose.choice(workers), signal.SIGKILL)
            done, seen = done + 1, step
            time.sleep(0.5)
    return done


def _survives(tmp_path: Path, runs: int, kills: int) -> dict[str, int]:
    whole = tmp_path / "whole"
    log = tmp_path / "log"
    assert _launched(whole, 0, log).wait(120) == 0, log.read_text()
    wanted, killed, equal = tensors(whole), 0, 0
    for number in range(runs):
        path = tmp_path / str(number)
        job = _launched(path, kills + 1, log)
        try:
            killed += _kill_now_and_then(job, path, kills, random.Random(number))
            assert job.wait(200) == 0, log.read_text()[-3000:]
        finally:
            job.kill()
        found = tensors(path)
        assert found.keys() == wanted.keys()
        equal += all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert equal == runs
    return {"runs": runs, "kills": killed, "runs equal to the undisturbed one": equal}


def test_a_run_whose_processes_are_killed_ends_as_if_they_were_not(tmp_path: Path) -> None:
    assert _survives(tmp_path, runs=1, kills=2)["kills"] == 2


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_fifty_kills(tmp_path: Path) -> None:
    def measured() -> dict[str, int]:
        found = _survives(tmp_path, runs=5, kills=10)
        assert found["kills"] == 50
        return found

    promise = "killed at random and started again by torchrun, the weights are those of no kill"
    hold("restarts", promise, 50, measured)
