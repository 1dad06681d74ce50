"""The list of damaged samples: each once, whatever became of the file, and a ceiling."""

import json
import logging
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from children import fork, kill, outcome
from diffmoe.checkpoint import RunFolder
from diffmoe.data import Replaced
from diffmoe.errors import DataError, ExitCode, StorageError
from diffmoe.training.bad_samples import BadSamples


def bad(place: int, sample: int = 0) -> Replaced:
    return Replaced(sample, place, place + 1, f"image {place} cannot be read — é{place}.png — mend")


def places(path: Path) -> list[int]:
    return [json.loads(line)["place"] for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return RunFolder(tmp_path).bad_samples


def test_each_damaged_place_is_listed_once(path: Path) -> None:
    found = BadSamples(path, 100, 1.0)
    assert path.name == "bad_samples.jsonl" and found.count == 0
    found.note(())
    assert not path.exists()  # a run of sound data leaves no list
    found.note((bad(3, 7), bad(5, 8), bad(3, 9)))
    found.note([bad(5, 40)])
    found.note([bad(0, 41)])
    assert found.count == 3 and places(path) == [3, 5, 0]
    first = json.loads(path.read_text().splitlines()[0])
    assert first == {"place": 3, "sample": 7, "used": 4, "reason": bad(3).reason} | {"data": ""}


def test_of_one_place_in_a_batch_the_first_sample_is_listed(path: Path) -> None:
    BadSamples(path, 100, 1.0).note((bad(3, 7), bad(3, 9)))
    assert json.loads(path.read_text())["sample"] == 7


def test_a_run_that_goes_on_lists_no_place_again(path: Path) -> None:
    BadSamples(path, 100, 1.0).note((bad(3), bad(5)))
    again = BadSamples(path, 100, 1.0)
    assert again.count == 2
    again.note((bad(5, 90), bad(6, 91)))
    assert places(path) == [3, 5, 6]


@pytest.mark.parametrize(
    "line",
    [
        b"[3]\n",
        b"{}\n",
        b"3\n",
        b"nothing\n",
        b"\xff\xfe\n",
        b"[" * 10**5 + b"\n",
        b'{"place": true}\n',
        b'{"place": 2.0}\n',
        b'{"place": -1}\n',
        b'{"place": 100}\n',
        b'{"place": 7, "sam',
        b"\0" * 50,
    ],
)
def test_a_damaged_line_counts_for_nothing_and_spoils_no_other(
    line: bytes, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    BadSamples(path, 100, 1.0).note([bad(3)])
    path.write_bytes(path.read_bytes() + line)
    with caplog.at_level(logging.WARNING):
        found = BadSamples(path, 100, 1.0)
    assert found.count == 1 and "1 of the 2 lines of" in caplog.text
    found.note([bad(4)])
    assert BadSamples(path, 100, 1.0).count == 2


def test_every_cut_of_the_list_can_be_gone_on_from(path: Path) -> None:
    BadSamples(path, 100, 1.0).note([bad(n) for n in range(4)])
    whole = path.read_bytes()
    ends = [n + 1 for n, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        found = BadSamples(path, 100, 1.0)
        # A line without its end alone is whole.
        assert found.count == sum(end <= length + 1 for end in ends)
        found.note([bad(n) for n in range(6)])
        assert found.count == BadSamples(path, 100, 1.0).count == 6
        assert len(path.read_bytes().splitlines()) <= 7


def test_kills_leave_a_list_that_can_be_gone_on_from(path: Path) -> None:
    """No place that was noted is forgotten, none is listed twice."""

    def work(pipe: int) -> None:
        import os

        found = BadSamples(path, 10**6, 1.0)
        for n in range(found.count, 10**6):
            found.note([bad(n)])
            os.write(pipe, b".")

    noted = 0
    for wait in range(12):
        child, pipe = fork(work)
        time.sleep(0.01 + 0.004 * wait)
        kill(child)
        with open(pipe, "rb") as dots:  # noqa: PTH123 - a descriptor
            noted += len(dots.read())
    found = BadSamples(path, 10**6, 1.0)
    assert noted > 0 and noted <= found.count <= noted + 12
    listed = [line for line in path.read_bytes().split(b"\n") if line.endswith(b"}")]
    assert len({json.loads(line)["place"] for line in listed}) == len(listed) == found.count


# ---- the ceiling


@pytest.mark.parametrize(
    ("total", "share", "allowed"),
    [(1000, 0.001, 1), (1000, 0.0015, 1), (100, 0.29, 29), (22, 0.001, 0), (5, 0.0, 0), (3, 1, 3)],
)
def test_no_more_than_the_share_allowed(total: int, share: float, allowed: int, path: Path) -> None:
    found = BadSamples(path, total, share)
    for place in range(allowed):
        found.note([bad(place)])
    if allowed == total:
        return
    with pytest.raises(DataError) as caught:
        found.note([bad(allowed)])
    assert str(caught.value) == (
        f"{allowed + 1} of {total} samples are damaged, a larger share than data.max_bad_share"
        f" {share:g} allows — {path} — mend the files listed there, remove the list and go"
        " on with --accept-new-data, or set a larger --data.max-bad-share"
    )
    assert caught.value.exit_code == ExitCode.BAD_DATA == 3
    assert places(path) == list(range(allowed + 1))  # the last one is listed as well


def test_a_run_that_goes_on_above_its_ceiling_stops_at_once(path: Path) -> None:
    BadSamples(path, 100, 1.0).note([bad(n) for n in range(3)])
    assert BadSamples(path, 100, 0.03).count == 3
    with pytest.raises(DataError, match="3 of 100 samples are damaged"):
        BadSamples(path, 100, 0.02)


# ---- what it tells


def test_warnings_are_few(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found, told = BadSamples(path, 10**4, 1.0), []
    with caplog.at_level(logging.WARNING):
        for place in range(100):
            found.note([bad(place, n) for n in range(3)])
            if caplog.messages:
                told.append(found.count)
                assert f"{found.count} of 10000 samples are damaged" in caplog.text
                assert f"é{place}.png" in caplog.text and str(path) in caplog.text
                caplog.clear()
    assert told == [1, 2, 4, 8, 16, 32, 64]


def test_many_at_once_are_one_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        BadSamples(path, 1000, 1.0).note([bad(n) for n in range(100)])
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("100 of 1000 samples")


# ---- a disk that fails


def full(path: Path, limit: int) -> Callable[[], object]:
    """Notes places with room for `limit` bytes; what is noted before the disk is full."""

    def work() -> int:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        found = BadSamples(path, 100, 1.0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        for place in range(100):
            found.note([bad(place)])
        return found.count

    return work


def test_a_full_disk_is_a_sentence_and_the_list_can_be_gone_on_from(path: Path) -> None:
    for limit in range(0, 400, 23):
        path.unlink(missing_ok=True)
        kind, message = outcome(full(path, limit))
        assert kind == "StorageError"
        assert message.startswith("cannot write bad_samples.jsonl (") and str(path) in message
        found = BadSamples(path, 100, 1.0)
        found.note([bad(n) for n in range(100)])
        assert BadSamples(path, 100, 1.0).count == 100


def test_a_failure_to_write_is_tried_again(path: Path) -> None:
    found = BadSamples(path / "no folder", 100, 1.0)
    with pytest.raises(StorageError):
        found.note([bad(3)])
    path.mkdir()
    found.note([bad(3)])
    assert found.count == 1


def test_a_list_that_cannot_be_read(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StorageError, match=r"cannot read the list of damaged .*Is a directory"):
        BadSamples(path, 100, 1.0)


def test_lines_about_other_data_count_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "bad_samples.jsonl"
    BadSamples(path, 10, 0.5, "then").note([bad(place) for place in range(5)])
    assert BadSamples(path, 10, 0.5, "then").count == 5
    now = BadSamples(path, 10, 0.1, "now")
    assert now.count == 0
    now.note([bad(3)])
    assert BadSamples(path, 10, 0.1, "now").count == 1
