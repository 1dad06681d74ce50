"""Forked children, as the self-test has them: code that is to be killed, starved or refused."""

from diffmoe.experiments.selftest.children import fork, kill, outcome, read_all

__all__ = ["fork", "kill", "outcome", "read_all"]
