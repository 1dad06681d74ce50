"""The launch recipes, run as far as a machine without a cluster allows."""

import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.launcher.api import LaunchConfig
from torch.distributed.run import parse_args

from clusters import DIFFMOE, REAL_TORCHRUN, ROOT, Bench, bench_in, ends

RECIPES = ROOT / "recipes"
ONE, SEVERAL, SLURM = (RECIPES / f for f in ("one-node.sh", "several-nodes.sh", "slurm.sbatch"))
TINY = ["--quiet"] + [
    f"--{name}={value}"
    for name, value in {
        "machine.device": "cpu",
        "model.width": 16,
        "model.depth": 2,
        "model.heads": 2,
        "model.pool-images": 8,
        "training.global-batch": 16,
        "loop.checkpoint-every": 2,
    }.items()
]
MEETING = {"NODES": "2", "HEAD": "localhost"}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A bench whose torchrun only notes what it is told; cluster commands included."""
    made = bench_in(tmp_path)
    yield made
    made.close()


@pytest.fixture
def cluster(bench: Bench) -> Callable[..., subprocess.Popen[str]]:
    """What starts a job as SLURM does: a copy of the script, in the folder that sbatch was in."""
    copy = bench.out / "slurm_script"
    copy.write_text(SLURM.read_text())
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1"}
    return lambda *words, **environment: bench.start(copy, *words, **job | environment)


@pytest.mark.parametrize("recipe", [ONE, SEVERAL, SLURM], ids=lambda path: path.name)
def test_a_script_is_bash_and_may_be_run(recipe: Path) -> None:
    subprocess.run(["bash", "-n", str(recipe)], check=True)
    assert recipe.stat().st_mode & stat.S_IXUSR
    assert "\nset -euo pipefail\n" in recipe.read_text()


@pytest.mark.parametrize(
    ("recipe", "words", "environment", "told"),
    [
        (ONE, "", {}, "PRESET and RUN are missing"),
        (ONE, "preset", {}, "PRESET and RUN are missing"),
        (ONE, "preset run", {"PATH": "/usr/bin:/bin"}, "no torchrun on the PATH"),
        (SEVERAL, "preset", MEETING, "PRESET and RUN are missing"),
        (SEVERAL, "preset run", {"HEAD": "node1"}, "NODES is not set"),
        (SEVERAL, "preset run", {"NODES": "2"}, "HEAD is not set"),
        (SEVERAL, "preset run", MEETING | {"PATH": "/usr/bin:/bin"}, "no torchrun on the PATH"),
        (SLURM, "preset", {"SLURM_JOB_ID": "7"}, "PRESET and RUN are missing"),
        (SLURM, "preset run", {}, "this is no SLURM job"),
    ],
)
def test_what_is_missing_is_told_in_a_sentence(
    bench: Bench, recipe: Path, words: str, environment: dict[str, str], told: str
) -> None:
    code, said = bench.end(recipe, *words.split(), **environment)
    assert (code, len(said.splitlines())) == (2, 1)
    assert told in said
    assert " — " in said
    assert not (bench.out / "words").exists()


def told_torchrun(bench: Bench, recipe: Path, *words: str, **environment: str) -> Any:
    """What a script has torchrun do, as torchrun itself understands it, and what it sets."""
    settings = (MEETING if recipe == SEVERAL else {}) | environment
    assert bench.end(recipe, "preset", "a run", *words, ENDS="0", **settings) == (0, "")
    return parse_args(bench.read("words")), bench.read("environment")


@pytest.mark.parametrize("recipe", [ONE, SEVERAL], ids=lambda path: path.name)
def test_torchrun_understands_the_scripts(bench: Bench, recipe: Path) -> None:
    asked, environment = told_torchrun(bench, recipe, "--loop.steps", "8", GRACE="77")
    assert (asked.module, asked.training_script) == (True, "diffmoe")
    words = ["train", "preset", "--run", "a run", "--loop.steps", "8"]
    assert asked.training_script_args == words
    assert (asked.nproc_per_node, asked.max_restarts) == ("gpu", 3)
    assert environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "77"
    assert environment["OMP_NUM_THREADS"] == "1"
    if recipe == ONE:
        assert asked.standalone
        assert "SIGUSR1" in asked.signals_to_handle
        assert "SIGTERM" in asked.signals_to_handle
    else:
        assert (asked.nnodes, asked.rdzv_endpoint) == ("2", "localhost:29500")
        assert (asked.rdzv_backend, asked.rdzv_id) == ("c10d", "a run")


@pytest.mark.parametrize("recipe", [ONE, SEVERAL], ids=lambda path: path.name)
@pytest.mark.parametrize("words", [["--max-time", "1h"], ["--max-time=1h"], ["--max_time", "1h"]])
def test_time_that_is_over_is_not_given_anew(bench: Bench, recipe: Path, words: list[str]) -> None:
    asked, _ = told_torchrun(bench, recipe, *words, RESTARTS="5")
    assert asked.max_restarts == 0
    assert told_torchrun(bench, recipe, RESTARTS="5")[0].max_restarts == 5


def test_an_interface_is_for_all_who_connect(bench: Bench) -> None:
    _, environment = told_torchrun(bench, SEVERAL, INTERFACE="ib0")
    assert {environment[f"{who}_SOCKET_IFNAME"] for who in ("NCCL", "GLOO")} == {"ib0"}
    assert "GLOO_SOCKET_IFNAME" not in told_torchrun(bench, SEVERAL)[1]


def test_torchrun_takes_its_patience_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "77")
    assert LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1).shutdown_timeout == 77


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_torchrun_gets_one_signal_however_many_come(bench: Bench, number: signal.Signals) -> None:
    job = bench.start(SEVERAL, "preset", "run", **MEETING)
    bench.appears("words")
    os.killpg(job.pid, number)  # as a terminal does at Ctrl-C
    bench.appears("asked")
    for again in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        job.send_signal(again)
    (bench.out / "saved").touch()
    assert ends(job)[0] == 75
    assert bench.read("signals") == [signal.SIGTERM]


@pytest.mark.parametrize("code", [0, 1, 3])
def test_an_end_that_nobody_asked_for_keeps_its_code(bench: Bench, code: int) -> None:
    assert bench.end(SEVERAL, "preset", "run", ENDS=str(code), **MEETING)[0] == code


@pytest.mark.parametrize(
    ("state", "queued"), [("RUNNING", ["requeue 7"]), ("CANCELLED", [])], ids=["runs", "cancelled"]
)
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_job_that_is_asked_to_stop_saves_and_is_queued_again_once(
    bench: Bench,
    cluster: Callable[..., subprocess.Popen[str]],
    number: signal.Signals,
    state: str,
    queued: list[str],
) -> None:
    job = cluster("preset", "run", STATE=state)
    bench.appears("words")
    job.send_signal(number)
    bench.appears("asked")
    job.send_signal(signal.SIGTERM)
    (bench.out / "saved").touch()
    assert ends(job)[0] == 75
    assert bench.read("signals") == [signal.SIGTERM]
    assert bench.queue == queued


def test_a_step_that_alone_was_asked_to_stop_is_queued_again(
    bench: Bench, cluster: Callable[..., subprocess.Popen[str]]
) -> None:
    assert ends(cluster("preset", "run", ENDS="75"))[0] == 75
    assert bench.queue == ["requeue 7"]


@pytest.mark.parametrize("code", [0, 1, 5])
def test_a_run_that_ended_is_not_queued_again(
    bench: Bench, cluster: Callable[..., subprocess.Popen[str]], code: int
) -> None:
    assert ends(cluster("preset", "run", ENDS=str(code)))[0] == code
    assert bench.queue == []


def test_a_run_that_is_trained_when_it_is_asked_to_stop_is_not_queued_again(
    bench: Bench, cluster: Callable[..., subprocess.Popen[str]]
) -> None:
    job = cluster("preset", "run", WORKERS="0")
    bench.appears("words")
    job.send_signal(signal.SIGUSR1)
    (bench.out / "saved").touch()
    assert ends(job)[0] == 0
    assert bench.queue == []


def test_nodes_meet_and_each_worker_gets_one_signal(bench: Bench) -> None:
    """Two of torch's own agents, a process each, with a program in the place of diffmoe."""
    package = bench.out / "packages" / "diffmoe"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(DIFFMOE)
    bench.program("torchrun", REAL_TORCHRUN)
    settings = MEETING | {"PORT": free_port(), "PROCESSES": "1", "PYTHONPATH": str(package.parent)}
    agents = [bench.start(SEVERAL, "preset", "run", **settings) for _ in range(2)]
    bench.appears("rank-0", "rank-1")
    for asked in ((), ("asked-0", "asked-1")):
        bench.appears(*asked)
        for agent in agents:
            agent.terminate()
    assert [ends(agent)[0] for agent in agents] == [75, 75]
    told = {(bench.out / f"rank-{rank}").read_text() for rank in range(2)}
    assert told == {"2 train preset --run run signals 1"}


def checkpoints(run: Path) -> list[int]:
    """The steps of which a run has checkpoints."""
    return sorted(int(path.name.split("-")[1]) for path in run.glob("checkpoints/step-*"))


def test_a_job_on_two_nodes_saves_and_goes_on_by_another_recipe(
    bench: Bench, cluster: Callable[..., subprocess.Popen[str]]
) -> None:
    """Everything real but SLURM: two agents that meet, a process for each; then two on one node."""
    bench.program("torchrun", REAL_TORCHRUN)
    run = bench.out / "run"
    words = ["digits-diffmoe", str(run), *TINY]
    nodes = {"SLURM_JOB_NUM_NODES": "2", "PROCESSES": "1", "PORT": free_port()}
    job = cluster(*words, "--loop.steps=100000", **nodes)
    bench.appears("run/checkpoints/step-00000002")
    job.send_signal(signal.SIGUSR1)
    code, said = ends(job)
    assert (code, bench.queue) == (75, ["requeue 7"]), said
    stopped = checkpoints(run)[-1]
    code, said = bench.end(ONE, *words, f"--loop.steps={stopped + 2}", PROCESSES="2", RESTARTS="0")
    assert (code, said.count(f"trained {stopped + 2} steps")) == (0, 1), said
    assert checkpoints(run)[-1] == stopped + 2


def free_port() -> str:
    """A port of this machine that nobody uses."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return str(server.getsockname()[1])
