"""The Inception network of 2015-12-05 written out line by line, with random weights."""

import re

import torch
from torch import Tensor
from torch.nn import functional

import tiny
from diffmoe.evaluation.inception import InceptionFeatures, resize_like_tensorflow

# Each convolution of the weight files after its block: outputs x inputs x height x width.
CONVOLUTIONS = """
: Conv2d_1a_3x3 32x3x3x3, Conv2d_2a_3x3 32x32x3x3, Conv2d_2b_3x3 64x32x3x3,
  Conv2d_3b_1x1 80x64x1x1, Conv2d_4a_3x3 192x80x3x3
Mixed_5b.: branch1x1 64x192x1x1, branch5x5_1 48x192x1x1, branch5x5_2 64x48x5x5,
  branch3x3dbl_1 64x192x1x1, branch3x3dbl_2 96x64x3x3, branch3x3dbl_3 96x96x3x3,
  branch_pool 32x192x1x1
Mixed_5c.: branch1x1 64x256x1x1, branch5x5_1 48x256x1x1, branch5x5_2 64x48x5x5,
  branch3x3dbl_1 64x256x1x1, branch3x3dbl_2 96x64x3x3, branch3x3dbl_3 96x96x3x3,
  branch_pool 64x256x1x1
Mixed_5d.: branch1x1 64x288x1x1, branch5x5_1 48x288x1x1, branch5x5_2 64x48x5x5,
  branch3x3dbl_1 64x288x1x1, branch3x3dbl_2 96x64x3x3, branch3x3dbl_3 96x96x3x3,
  branch_pool 64x288x1x1
Mixed_6a.: branch3x3 384x288x3x3, branch3x3dbl_1 64x288x1x1, branch3x3dbl_2 96x64x3x3,
  branch3x3dbl_3 96x96x3x3
Mixed_6b.: branch1x1 192x768x1x1, branch7x7_1 128x768x1x1, branch7x7_2 128x128x1x7,
  branch7x7_3 192x128x7x1, branch7x7dbl_1 128x768x1x1, branch7x7dbl_2 128x128x7x1,
  branch7x7dbl_3 128x128x1x7, branch7x7dbl_4 128x128x7x1, branch7x7dbl_5 192x128x1x7,
  branch_pool 192x768x1x1
Mixed_6c.: branch1x1 192x768x1x1, branch7x7_1 160x768x1x1, branch7x7_2 160x160x1x7,
  branch7x7_3 192x160x7x1, branch7x7dbl_1 160x768x1x1, branch7x7dbl_2 160x160x7x1,
  branch7x7dbl_3 160x160x1x7, branch7x7dbl_4 160x160x7x1, branch7x7dbl_5 192x160x1x7,
  branch_pool 192x768x1x1
Mixed_6d.: branch1x1 192x768x1x1, branch7x7_1 160x768x1x1, branch7x7_2 160x160x1x7,
  branch7x7_3 192x160x7x1, branch7x7dbl_1 160x768x1x1, branch7x7dbl_2 160x160x7x1,
  branch7x7dbl_3 160x160x1x7, branch7x7dbl_4 160x160x7x1, branch7x7dbl_5 192x160x1x7,
  branch_pool 192x768x1x1
Mixed_6e.: branch1x1 192x768x1x1, branch7x7_1 192x768x1x1, branch7x7_2 192x192x1x7,
  branch7x7_3 192x192x7x1, branch7x7dbl_1 192x768x1x1, branch7x7dbl_2 192x192x7x1,
  branch7x7dbl_3 192x192x1x7, branch7x7dbl_4 192x192x7x1, branch7x7dbl_5 192x192x1x7,
  branch_pool 192x768x1x1
Mixed_7a.: branch3x3_1 192x768x1x1, branch3x3_2 320x192x3x3, branch7x7x3_1 192x768x1x1,
  branch7x7x3_2 192x192x1x7, branch7x7x3_3 192x192x7x1, branch7x7x3_4 192x192x3x3
Mixed_7b.: branch1x1 320x1280x1x1, branch3x3_1 384x1280x1x1, branch3x3_2a 384x384x1x3,
  branch3x3_2b 384x384x3x1, branch3x3dbl_1 448x1280x1x1, branch3x3dbl_2 384x448x3x3,
  branch3x3dbl_3a 384x384x1x3, branch3x3dbl_3b 384x384x3x1, branch_pool 192x1280x1x1
Mixed_7c.: branch1x1 320x2048x1x1, branch3x3_1 384x2048x1x1, branch3x3_2a 384x384x1x3,
  branch3x3_2b 384x384x3x1, branch3x3dbl_1 448x2048x1x1, branch3x3dbl_2 384x448x3x3,
  branch3x3dbl_3a 384x384x1x3, branch3x3dbl_3b 384x384x3x1, branch_pool 192x2048x1x1
"""


def golden_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of the weight files."""
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for block in re.split(r"\n(?=\S)", CONVOLUTIONS.strip("\n")):
        prefix, listed = block.split(":")
        for entry in listed.split(","):
            name, shape = entry.split()
            sizes = tuple(map(int, shape.split("x")))
            shapes[f"{prefix}{name}.conv.weight"] = sizes
            for part in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{prefix}{name}.bn.{part}"] = sizes[:1]
    return shapes


def random_state() -> dict[str, Tensor]:
    """Weights under which neither values nor their variance die out on the way."""
    state = {}
    for seed, (name, shape) in enumerate(sorted(golden_shapes().items())):
        values = tiny.normals(*shape, seed=seed, dtype=torch.float32)
        if len(shape) > 1:
            state[name] = values * (2 / values[0].numel()) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = 1 + 0.2 * values.tanh()
        else:
            state[name] = 0.1 * values
    return state


def images(count: int, height: int = 40, width: int = 56, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


class Reading:
    """The network written out line by line, in float64."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = {name: tensor.double() for name, tensor in state.items()}

    def conv(self, x: Tensor, name: str, stride: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
        x = functional.conv2d(x, self.state[f"{name}.conv.weight"], None, stride, pad)
        gain, bias, mean, variance = (
            self.state[f"{name}.bn.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return ((x - mean) / (variance + 0.001).sqrt() * gain + bias).clamp_min(0)

    def chain(self, x: Tensor, name: str, kernels: str, last_stride: int = 1) -> Tensor:
        """Convolutions name_1, name_2, ... with the kernels given as "1 17 71"."""
        sizes = [(int(k[0]), int(k[-1])) for k in kernels.split()]
        for i, (height, width) in enumerate(sizes, 1):
            last = i == len(sizes) and last_stride > 1
            pad = (0, 0) if last else (height // 2, width // 2)
            x = self.conv(x, f"{name}_{i}", last_stride if last else 1, pad)
        return x

    def fork(self, x: Tensor, name: str) -> Tensor:
        wide, high = self.conv(x, f"{name}a", 1, (0, 1)), self.conv(x, f"{name}b", 1, (1, 0))
        return torch.cat([wide, high], 1)

    def average(self, x: Tensor) -> Tensor:
        ones = torch.ones_like(x)
        sums = (9 * functional.avg_pool2d(y, 3, 1, 1) for y in (x, ones))
        total, pixels = sums
        return total / pixels

    def of_35(self, x: Tensor, name: str) -> Tensor:
        return torch.cat(
            [
                self.conv(x, f"{name}.branch1x1"),
                self.chain(x, f"{name}.branch5x5", "1 5"),
                self.chain(x, f"{name}.branch3x3dbl", "1 3 3"),
                self.conv(self.average(x), f"{name}.branch_pool"),
            ],
            1,
        )

    def of_17(self, x: Tensor, name: str) -> Tensor:
        return torch.cat(
            [
                self.conv(x, f"{name}.branch1x1"),
                self.chain(x, f"{name}.branch7x7", "1 17 71"),
                self.chain(x, f"{name}.branch7x7dbl", "1 71 17 71 17"),
                self.conv(self.average(x), f"{name}.branch_pool"),
            ],
            1,
        )

    def of_8(self, x: Tensor, name: str, pooled: Tensor) -> Tensor:
        narrow = self.conv(x, f"{name}.branch3x3_1")
        deep = self.chain(x, f"{name}.branch3x3dbl", "1 3")
        return torch.cat(
            [
                self.conv(x, f"{name}.branch1x1"),
                self.fork(narrow, f"{name}.branch3x3_2"),
                self.fork(deep, f"{name}.branch3x3dbl_3"),
                self.conv(pooled, f"{name}.branch_pool"),
            ],
            1,
        )

    def __call__(self, pixels: Tensor) -> InceptionFeatures:
        x = (resize_like_tensorflow(pixels.double(), 299) - 128) / 128
        x = self.conv(self.conv(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3")
        x = functional.max_pool2d(self.conv(x, "Conv2d_2b_3x3", 1, (1, 1)), 3, 2)
        x = self.conv(self.conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3")
        x = functional.max_pool2d(x, 3, 2)
        for letter in "bcd":
            x = self.of_35(x, f"Mixed_5{letter}")
        strided = self.conv(x, "Mixed_6a.branch3x3", 2)
        double = self.chain(x, "Mixed_6a.branch3x3dbl", "1 3 3", last_stride=2)
        x = torch.cat([strided, double, functional.max_pool2d(x, 3, 2)], 1)
        x = self.of_17(self.of_17(x, "Mixed_6b"), "Mixed_6c")
        first = self.conv(x, "Mixed_6d.branch1x1")[:, :7]
        x = self.of_17(self.of_17(x, "Mixed_6d"), "Mixed_6e")
        double = self.chain(x, "Mixed_7a.branch3x3", "1 3", last_stride=2)
        factored = self.chain(x, "Mixed_7a.branch7x7x3", "1 17 71 3", last_stride=2)
        x = torch.cat([double, factored, functional.max_pool2d(x, 3, 2)], 1)
        x = self.of_8(x, "Mixed_7b", self.average(x))
        around = functional.pad(x, (1, 1, 1, 1), value=-torch.inf)
        x = self.of_8(x, "Mixed_7c", functional.max_pool2d(around, 3, 1))
        pooled = x.sum(dim=(2, 3)) / 64
        unbiased = functional.linear(pooled, self.state["fc.weight"])
        rows = [first[:, :, i, j] for i in range(17) for j in range(17)]
        spatial = torch.cat(rows, 1)
        return InceptionFeatures(pooled, spatial, unbiased + self.state["fc.bias"], unbiased)
