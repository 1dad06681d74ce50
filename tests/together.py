"""Several processes of one run, forked: what torchrun starts, without the time of an import."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from children import fork, kill

__all__ = ["Answer", "free_port", "together"]


@dataclass
class Answer:
    """What a process returned, or the name, text and exit code of what it raised."""

    value: Any = None
    error: str = ""
    text: str = ""
    code: int = 0
    told: bool = False
    seconds: float = 0.0


def together(
    size: int,
    work: Callable[..., Any],
    *arguments: Any,
    place: Path,
    during: Callable[[list[int]], None] | None = None,
) -> list[Answer]:
    """`work(*arguments)` in each of `size` processes that find one another; None where one died.

    `during` is given their ids while they work.
    """
    port, began = free_port(), time.monotonic()
    agent, _ = fork(lambda pipe: _serve(port))
    place.mkdir(parents=True, exist_ok=True)
    files = [place / f".answer-{rank}" for rank in range(size)]
    for file in files:
        file.unlink(missing_ok=True)

    def process(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        torch.set_num_threads(1)
        try:
            answer = Answer(work(*arguments))
        except BaseException as error:
            if "TOGETHER_DEBUG" in os.environ:
                traceback.print_exc(file=sys.stderr)
            told, code = getattr(error, "told", False), int(getattr(error, "exit_code", 1))
            answer = Answer(None, type(error).__name__, str(error), code, told)
        answer.seconds = time.monotonic() - began
        torch.save(answer, files[rank].with_suffix(".tmp"))
        files[rank].with_suffix(".tmp").rename(files[rank])

    children = [fork(lambda pipe, rank=rank: process(rank)) for rank in range(size)]
    ids = [child for child, _ in children]
    if during is not None:
        during(ids)
    for child, pipe in children:
        os.waitpid(child, 0)
        os.close(pipe)
    kill(agent)
    return [
        torch.load(file, weights_only=False) if file.exists() else Answer(error="died")
        for file in files
    ]


def _serve(port: int) -> None:
    """What an agent of torchrun does: keep the store that processes meet by, until it is killed."""
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    while os.getppid() != 1 and store is not None:
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
