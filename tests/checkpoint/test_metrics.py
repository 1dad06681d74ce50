"""Lines of metrics are read whatever has become of the file."""

import json
import logging
import math
from pathlib import Path

import pytest

from diffmoe.checkpoint import read_metrics
from diffmoe.errors import StorageError

SOUND = [{"step": 20, "loss": 1.5, "capacity": None}, {"step": 40, "loss": 1, "capacity": 0.25}]
DAMAGED = {
    "cut off": b'{"step": 60, "lo',
    "binary": bytes(range(256)).replace(b"\n", b""),
    "zeros": bytes(4096),
    "half a letter": b'{"step": 60, "l\xe9": 1}',
    "number": b"17",
    "null": b"null",
    "list": b"[1, 2]",
    "text": b'"step"',
    "no step": b'{"loss": 1}',
    "step text": b'{"step": "60"}',
    "step half": b'{"step": 60.5}',
    "step true": b'{"step": true}',
    "step null": b'{"step": null}',
    "step NaN": b'{"step": NaN}',
    "step below 0": b'{"step": -1}',
    "step too large": b'{"step": 1' + b"0" * 30 + b"}",
    "digits without end": b'{"step": 60, "loss": ' + b"9" * 5000 + b"}",
    "too large for a float": b'{"step": 60, "loss": ' + b"9" * 400 + b"}",
    "loss text": b'{"step": 60, "loss": "low"}',
    "loss true": b'{"step": 60, "loss": true}',
    "loss list": b'{"step": 60, "loss": [1]}',
    "deep": b'{"step": 60, "loss": ' + b"[" * 400 + b"]" * 400 + b"}",
    "bottomless": b'{"a":' * 100_000,
    "blank": b"   ",
}


def text(*lines: bytes) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def test_lines_are_read_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_bytes(text(*(json.dumps(line).encode() for line in SOUND)))
    assert read_metrics(path) == SOUND
    path.write_bytes(b"")
    assert read_metrics(path) == []


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_line_is_passed_over_with_a_warning(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    first, second = (json.dumps(line).encode() for line in SOUND)
    path.write_bytes(text(first, DAMAGED[name], second) + DAMAGED[name])
    with caplog.at_level(logging.WARNING):
        assert read_metrics(path) == SOUND
    assert f"2 of the 4 lines of {path} are damaged" in caplog.text


def test_values_that_are_not_finite_are_values(tmp_path: Path) -> None:
    (tmp_path / "m").write_text('{"step": 1, "loss": NaN, "mse": Infinity}\n')
    (line,) = read_metrics(tmp_path / "m")
    assert math.isnan(line["loss"]) and line["mse"] == math.inf


def test_metrics_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read the file \(Is a directory\)"):
        read_metrics(tmp_path)
