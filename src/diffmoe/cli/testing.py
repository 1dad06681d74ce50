"""The verb that tries what is promised: selftest."""

import sys
from typing import TYPE_CHECKING

from diffmoe.arguments import SelftestCommand, parse
from diffmoe.console import broken_lines, selftest_lines

if TYPE_CHECKING:
    from diffmoe.experiments import SelfTest

__all__ = ["selftest"]


def selftest(words: list[str]) -> None:
    """Try the promises of reliability here."""
    command = parse(SelftestCommand, SelftestCommand(), words, "diffmoe selftest")
    from diffmoe.experiments import self_test

    def tell(found: "SelfTest") -> None:
        print("\n".join(selftest_lines(found)), flush=True)

    found = self_test(
        command.folder,
        only=command.only,
        seed=command.seed,
        out=command.out,
        tell=tell,
        progress=not command.quiet,
    )
    if command.out is not None:
        print(f"all of it: {command.out}")
    if found.broken:
        sys.stdout.flush()
        print("\n".join(broken_lines(found)), file=sys.stderr)
        raise SystemExit(int(found.exit_code))
