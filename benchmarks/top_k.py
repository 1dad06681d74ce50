"""What does exact top-K with ties to the lower row cost? By keys, and by a stable sort.

python benchmarks/top_k.py --threads 1
"""

import argparse

import torch

from diffmoe.device import resolve_device
from diffmoe.experiments.speed.measure import interleave, ratio
from diffmoe.model import top_pairs


def by_sort(affinity: torch.Tensor) -> torch.Tensor:
    """The first K of a stable sort, for each expert."""
    rows, experts = affinity.shape[1:]
    order = affinity[0].t().contiguous().sort(dim=1, descending=True, stable=True).indices
    return order[:, : rows // experts]


def main() -> None:
    """Measure and print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    device = resolve_device(words.device)
    for rows, experts in ((1024, 16), (4096, 16), (16384, 16), (16384, 64)):
        affinity = torch.rand(1, rows, experts, device=device).softmax(dim=-1)
        keys, _ = top_pairs(affinity, ((0,),), 1.0)
        assert torch.equal(keys, by_sort(affinity).sort(dim=1).values)
        variants = {
            "sort": lambda a=affinity: by_sort(a),
            "keys": lambda a=affinity: top_pairs(a, ((0,),), 1.0),
        }
        found = interleave(variants, words.rounds, device)
        times = ", ".join(f"{name} {t.median * 1e3:.2f} ms" for name, t in found.items())
        print(
            f"{rows:6d} rows, {experts:3d} experts: {times}, {ratio(*found.values()).value:.1f} x"
        )


if __name__ == "__main__":
    main()
