"""Would one product for the modulation of all blocks pay? One against many, and the evaluation.

python benchmarks/modulation.py diffmoe-s-e16-flow --images 16 4 1 --threads 1
"""

import argparse

import torch

from diffmoe.device import resolve_device
from diffmoe.experiments.speed.measure import interleave, ratio
from diffmoe.model import RoutingPlan, build_model
from diffmoe.model.layers import Modulate
from diffmoe.presets import preset


def main() -> None:
    """Measure and print a line for each batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset")
    parser.add_argument("--images", type=int, nargs="+", default=[16, 4, 1])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    device, config = resolve_device(words.device), preset(words.preset).model
    model, plan = build_model(config, 0, device), RoutingPlan(selection="image")
    with torch.device(device):
        stacked = Modulate(config.width, 6 * config.depth)
    for images in words.images:
        vector = torch.ones(images, config.width, device=device)
        x = torch.ones(images, config.channels, config.input_size, config.input_size, device=device)
        t, labels = x[:, 0, 0, 0], torch.zeros(images, dtype=torch.int64, device=device)
        variants = {
            "one": lambda v=vector: stacked(v),
            "many": lambda v=vector: [block.modulate(v) for block in model.blocks],
            "evaluation": lambda x=x, t=t, y=labels: model(x, t, y, plan),
        }
        with torch.inference_mode():
            found = interleave(variants, words.rounds, device)
        print(
            f"{images:4d} images: many / one {ratio(found['many'], found['one']).value:.2f},"
            f" many / evaluation {ratio(found['many'], found['evaluation']).value:.2%}"
        )


if __name__ == "__main__":
    main()
