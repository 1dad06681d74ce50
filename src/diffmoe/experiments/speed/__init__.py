"""What DiffMoE costs beside a dense model, measured on the machine at hand."""

from diffmoe.experiments.speed.answer import Row
from diffmoe.experiments.speed.rows import ROWS
from diffmoe.experiments.speed.run import Measured, bench

__all__ = ["ROWS", "Measured", "Row", "bench"]
