"""Work in parts: shared by processes, gone on with after a kill, ended once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from diffmoe.checkpoint import Parts
from diffmoe.errors import ConfigError, StorageError

COUNT = 12
KEY = {"of": "numbers", "to": {"power": 2}}
WORK = f"""
import json, sys, time
from pathlib import Path
from diffmoe.checkpoint import Parts, write_text
target, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
with Parts.opened(target.with_suffix(".parts"), {COUNT}, {KEY!r}, target.exists) as parts:
    if parts is None:
        sys.exit(0)
    def make(number, folder):
        (folder / "half").write_text("")
        time.sleep(seconds)
        (folder / "square").write_text(str(number**2))
        with log.open("a") as lines:
            lines.write(f"{{number}}\\n")
    def assemble():
        squares = [(parts.path(n) / "square").read_text() for n in range(parts.count)]
        with log.open("a") as lines:
            lines.write("end\\n")
        write_text(target, " ".join(squares))
    parts.fill(make)
    parts.end(assemble, target.exists)
assert target.exists()
"""
WHOLE = " ".join(str(n**2) for n in range(COUNT))


def start(tmp_path: Path, seconds: float = 0.01) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", WORK, tmp_path / "squares", tmp_path / "log", str(seconds)]
    return subprocess.Popen(words)


def opened(tmp_path: Path, key: Any = KEY, finished: bool = False) -> Any:
    return Parts.opened(tmp_path / "squares.parts", COUNT, key, lambda: finished)


def test_processes_share_the_parts_and_one_ends_the_work(tmp_path: Path) -> None:
    jobs = [start(tmp_path, 0.05) for _ in range(3)]
    assert [job.wait(60) for job in jobs] == [0, 0, 0]
    assert (tmp_path / "squares").read_text() == WHOLE
    lines = (tmp_path / "log").read_text().split()
    assert sorted(lines) == sorted([*map(str, range(COUNT)), "end"])  # nothing twice
    assert {path.name for path in tmp_path.iterdir()} == {"squares", "log"}


def test_a_killed_work_goes_on_and_does_no_part_twice(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    for wanted in (3, 7):
        job = start(tmp_path, 0.05)
        while len(log.read_text().split()) < wanted:
            time.sleep(0.005)
        job.send_signal(signal.SIGKILL)
        job.wait()
        assert not (tmp_path / "squares").exists()
    assert start(tmp_path).wait(60) == 0
    assert (tmp_path / "squares").read_text() == WHOLE
    lines = log.read_text().split()
    assert len(lines) <= COUNT + 1 + 2  # a kill between the log and the rename costs one part
    assert not (tmp_path / "squares.parts").exists()


def test_a_part_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with opened(tmp_path) as parts:
        with pytest.raises(RuntimeError), parts.claimed(3) as aside:
            (aside / "half").touch()
            raise RuntimeError
        assert parts.done == []
        with parts.claimed(3) as aside:
            (aside / "whole").touch()
        assert parts.done == [3] and [p.name for p in parts.path(3).iterdir()] == ["whole"]
        with parts.claimed(3) as again:
            assert again is None
        assert not parts.is_whole
        with parts.ending() as mine:
            assert not mine
    left = {path.name for path in (tmp_path / "squares.parts").iterdir()}
    assert left == {".lock", "work.json", "part-000003"}


def test_what_another_process_works_on_is_left_to_it(tmp_path: Path) -> None:
    job = start(tmp_path, 30)
    place = tmp_path / "squares.parts"
    while not list(place.glob(".tmp-part-000000-*")):
        time.sleep(0.01)
    with opened(tmp_path) as parts:
        with parts.claimed(0) as aside:
            assert aside is None
        with parts.claimed(1) as aside:
            assert aside is not None
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        with parts.claimed(0) as aside:  # the lock went with its holder, and its folder goes now
            assert aside is not None
        assert not list(place.glob(".tmp-*"))


def test_a_work_that_has_ended_meanwhile_is_not_begun_again(tmp_path: Path) -> None:
    with opened(tmp_path) as late:
        assert start(tmp_path).wait(60) == 0
        assert late.is_over
        for number in range(COUNT):
            with late.claimed(number) as aside:
                assert aside is None
        with late.ending() as mine:
            assert not mine
    with opened(tmp_path, finished=True) as parts:
        assert parts is None
    assert not (tmp_path / "squares.parts").exists()


def test_parts_of_other_settings_are_refused_once_there_is_one(tmp_path: Path) -> None:
    with opened(tmp_path, {"a": 1}):
        pass
    with opened(tmp_path) as parts, parts.claimed(0):  # nothing was lost with the first key
        pass
    with (
        pytest.raises(ConfigError, match=r"other settings lies here: to\.power 2 -> 3"),
        opened(tmp_path, {"of": "numbers", "to": {"power": 3}}),
    ):
        pass
    with opened(tmp_path) as parts:
        assert parts.done == [0]


def test_two_works_of_other_settings_never_share_parts(tmp_path: Path) -> None:
    """Not even before the first part is done."""
    slow = start(tmp_path, 30)
    while not list((tmp_path / "squares.parts").glob(".tmp-part-000000-*")):
        time.sleep(0.01)
    with (
        pytest.raises(ConfigError, match="another process with a work of other settings lies"),
        opened(tmp_path, {"of": "others"}),
    ):
        pass
    slow.kill()
    slow.wait()
    with opened(tmp_path, {"of": "others"}) as parts, parts.claimed(0):
        pass  # nothing was done, and nobody is at it any more
    assert json.loads((tmp_path / "squares.parts" / "work.json").read_text()) == {"of": "others"}


@pytest.mark.parametrize("damage", ["empty", "gone", "other"])
def test_parts_of_nobody_knows_what_are_refused(tmp_path: Path, damage: str) -> None:
    with opened(tmp_path) as parts, parts.claimed(0):
        pass
    record = tmp_path / "squares.parts" / "work.json"
    record.unlink() if damage == "gone" else record.write_text("" if damage == "empty" else "[")
    with pytest.raises(ConfigError, match="parts lie here without a record"), opened(tmp_path):
        pass
    assert (tmp_path / "squares.parts" / "part-000000").is_dir()


def test_what_is_left_of_removed_parts_goes(tmp_path: Path) -> None:
    left = tmp_path / ".tmp-squares.parts-0a1b2c3d"
    left.mkdir()
    (left / "part-000000").mkdir()
    other = tmp_path / ".tmp-squares-0a1b2c3d"
    other.mkdir()
    with opened(tmp_path):
        assert not left.exists() and other.exists()


def test_what_a_killed_process_was_at_is_taken_over(tmp_path: Path) -> None:
    slow = start(tmp_path, 30)
    while not list((tmp_path / "squares.parts").glob(".tmp-part-000000-*")):
        time.sleep(0.01)
    other = start(tmp_path)
    while len(list((tmp_path / "squares.parts").glob("part-*"))) < COUNT - 1:
        time.sleep(0.01)
    assert other.poll() is None  # it waits for the part that is not its own
    slow.kill()
    slow.wait()
    assert other.wait(60) == 0
    assert (tmp_path / "squares").read_text() == WHOLE


def test_a_result_that_vanished_is_told(tmp_path: Path) -> None:
    with opened(tmp_path) as late:
        assert start(tmp_path).wait(60) == 0
        with pytest.raises(StorageError, match="its result is gone"):
            late.end(lambda: None, lambda: False)


def test_how_far_the_work_is_can_be_watched(tmp_path: Path) -> None:
    told: list[int] = []
    with opened(tmp_path) as parts:
        with parts.claimed(4):
            pass
        parts.fill(lambda number, folder: None, told.append)
    assert told == list(range(2, COUNT + 1))


def test_parts_left_by_a_kill_at_the_very_end_go_with_the_next_command(tmp_path: Path) -> None:
    with opened(tmp_path) as parts, parts.claimed(0):
        pass
    with opened(tmp_path, {"of": "others"}, finished=True) as parts:
        assert parts is None
    assert (tmp_path / "squares.parts" / "part-000000").exists()  # not of this work
    with opened(tmp_path, finished=True) as parts:
        assert parts is None
    assert not (tmp_path / "squares.parts").exists()


@pytest.mark.parametrize("what", ["file", "other"])
def test_other_things_are_never_taken_for_parts(tmp_path: Path, what: str) -> None:
    place = tmp_path / "squares.parts"
    if what == "file":
        place.touch()
    else:
        place.mkdir()
        (place / "thesis.tex").touch()
    with pytest.raises(StorageError, match="lies where parts are to be kept"), opened(tmp_path):
        pass
    assert place.exists()
