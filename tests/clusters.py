"""Launch recipes beside programs that stand in for a cluster, as far as that goes on one machine.

They act as the sources of what they stand in for say: srun passes SIGUSR1 to its tasks and kills
them at SIGTERM; torchrun's exit code is 1 whatever its workers said.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["DIFFMOE", "REAL_TORCHRUN", "ROOT", "Bench", "bench_in", "ends"]

ROOT = Path(__file__).parents[1]

TORCHRUN = """
import json, os, signal, sys, time
from pathlib import Path

out, got, parent = Path(os.environ["OUT"]), [], os.getppid()
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda number, _: got.append(int(number)))
out.joinpath("environment").write_text(json.dumps(dict(os.environ)))
out.joinpath("words").write_text(json.dumps(sys.argv[1:]))
if "ENDS" in os.environ:
    sys.exit(int(os.environ["ENDS"]))
while not got and os.getppid() == parent:  # SLURM kills what a killed task has left
    time.sleep(0.02)
out.joinpath("asked").touch()
while not out.joinpath("saved").exists() and os.getppid() == parent:
    time.sleep(0.02)
time.sleep(0.3)  # for a signal that is too many to arrive
out.joinpath("signals").write_text(json.dumps(got))
sys.exit(int(os.environ.get("WORKERS", "1")))
"""
SRUN = """
import os, signal, subprocess, sys

words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
tasks = [subprocess.Popen(words) for _ in range(int(os.environ["SLURM_JOB_NUM_NODES"]))]
for number, sent in ((signal.SIGUSR1, signal.SIGUSR1), (signal.SIGTERM, signal.SIGKILL)):
    signal.signal(number, lambda *_, sent=sent: [task.send_signal(sent) for task in tasks])
sys.exit(max(code if code >= 0 else 128 - code for code in [task.wait() for task in tasks]))
"""
SCONTROL = """
import os, sys
from pathlib import Path

if sys.argv[1:3] == ["show", "hostnames"]:
    print("localhost\\nother")
elif sys.argv[1:3] == ["show", "job"]:
    print("JobId=7 JobState=" + os.environ.get("STATE", "RUNNING"))
else:
    with Path(os.environ["OUT"], "queue").open("a") as queue:
        queue.write(" ".join(sys.argv[1:]) + "\\n")
"""
# In the place of the package, below the real torchrun.
DIFFMOE = """
import os, signal, sys, time
from pathlib import Path

got = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda number, _: got.append(number))
place = Path(os.environ["OUT"], "rank-" + os.environ["RANK"])
place.write_text(os.environ["WORLD_SIZE"] + " " + " ".join(sys.argv[1:]))
while not got:
    time.sleep(0.02)
place.with_name("asked-" + os.environ["RANK"]).touch()
time.sleep(1)  # for a signal that is too many to arrive
place.write_text(place.read_text() + f" signals {len(got)}")
sys.exit(75)
"""


REAL_TORCHRUN = """
import sys
from torch.distributed.run import main

sys.exit(main())
"""


@dataclass
class Bench:
    """A folder with programs that stand in for others, and the environment that finds them."""

    out: Path
    environment: dict[str, str]
    jobs: list[subprocess.Popen[str]] = field(default_factory=list)

    def program(self, name: str, source: str) -> None:
        path = self.out / "bin" / name
        path.write_text(f"#!{sys.executable}\n{source}")
        path.chmod(0o755)

    def start(self, recipe: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
        job = subprocess.Popen(
            ["bash", str(recipe), *words],
            cwd=ROOT,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.jobs.append(job)
        return job

    def end(self, recipe: Path, *words: str, **environment: str) -> tuple[int, str]:
        return ends(self.start(recipe, *words, **environment))

    def appears(self, *names: str) -> None:
        """Return once all those files are there; a failure if a job ends before."""
        while not all((self.out / name).exists() for name in names):
            over = [ends(job) for job in self.jobs if job.poll() is not None]
            assert not over, over
            time.sleep(0.02)

    def close(self) -> None:
        """End what a failed test has left running."""
        for job in self.jobs:
            if job.poll() is None:
                job.terminate()
                (self.out / "saved").touch()
                ends(job)

    def read(self, name: str) -> Any:
        return json.loads((self.out / name).read_text())

    @property
    def queue(self) -> list[str]:
        """What scontrol was asked to do."""
        path = self.out / "queue"
        return path.read_text().splitlines() if path.exists() else []


def bench_in(folder: Path) -> Bench:
    """A bench whose torchrun notes its words and waits for a signal; with a cluster's commands."""
    (folder / "bin").mkdir()
    environment = {key: os.environ[key] for key in ("HOME", "LANG") if key in os.environ}
    environment |= {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "OUT": str(folder)}
    environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TMPDIR": str(folder)}
    made = Bench(folder, environment)
    for name, source in (("torchrun", TORCHRUN), ("srun", SRUN), ("scontrol", SCONTROL)):
        made.program(name, source)
    return made


def ends(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code of a recipe, and what it said."""
    said, _ = process.communicate(timeout=200)
    return process.returncode, said
