"""What `diffmoe selftest` does: each promise of reliability put to a quick trial, here and now."""

from diffmoe.experiments.selftest.outcome import Drill, NotTriedError, Outcome, Trial
from diffmoe.experiments.selftest.run import DRILLS, SelfTest, self_test

__all__ = ["DRILLS", "Drill", "NotTriedError", "Outcome", "SelfTest", "Trial", "self_test"]
