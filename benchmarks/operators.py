"""Where does the time of a step go? The operators of a training step and a sampling evaluation.

python benchmarks/operators.py diffmoe-s-e16-flow --images 16 --threads 1
"""

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from diffmoe.device import keep_freed_memory, resolve_device
from diffmoe.experiments.speed.workload import Machine, ModelWork, Run
from diffmoe.presets import preset


def table(run: Run, device: torch.device) -> str:
    """Operators by their own time over three runs, the most expensive first."""
    run()
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]) as found:
        for _ in range(3):
            run()
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    return str(found.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=44))


def main() -> None:
    """Profile and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--selection", choices=["token", "pool"], default="token")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    keep_freed_memory()
    machine = Machine(resolve_device(words.device), getattr(torch, words.precision), compile=False)
    work = ModelWork(preset(words.preset), words.images, machine)
    print(f"training step of {words.preset}, {words.images} images, forward and backward")
    print(table(work.step(work.model), machine.device))
    print(f"sampling evaluation at C = 1, selection {words.selection}")
    print(table(work.evaluate(work.model, work.plan(words.selection)), machine.device))


if __name__ == "__main__":
    main()
