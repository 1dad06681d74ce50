"""The verb that tries what is promised: selftest."""

import sys

from diffmoe.arguments import SelftestCommand, parse
from diffmoe.console import broken_lines, selftest_lines

__all__ = ["selftest"]


def selftest(words: list[str]) -> None:
    """Try the promises of reliability here."""
    command = parse(SelftestCommand, SelftestCommand(), words, "diffmoe selftest")
    from diffmoe.experiments import self_test

    found = self_test(
        command.folder,
        only=command.only,
        seed=command.seed,
        out=command.out,
        progress=not command.quiet,
    )
    print("\n".join(selftest_lines(found)))
    if command.out is not None:
        print(f"all of it: {command.out}")
    if found.broken:
        sys.stdout.flush()
        print("\n".join(broken_lines(found)), file=sys.stderr)
        raise SystemExit(int(found.exit_code))
