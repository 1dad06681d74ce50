"""The suite proves what it proves without torchvision, as most CPU machines lack it."""

from importlib.util import find_spec


def installed(*packages: str) -> list[str]:
    """The packages that could be imported here."""
    return [package for package in packages if find_spec(package)]


def test_torchvision_is_absent() -> None:
    assert not installed("torchvision"), "remove it: `make clean`, then `make test`"


def test_a_present_package_is_seen() -> None:
    assert installed("torch", "no_such_package") == ["torch"]
