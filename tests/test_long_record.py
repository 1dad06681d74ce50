"""The helper of the long tests keeps its word."""

import json
from pathlib import Path

import pytest

from long_record import code_state, hold


def test_an_outcome_is_recorded_once_for_a_code_state(tmp_path: Path) -> None:
    tried: list[int] = []

    def measure() -> dict[str, int]:
        tried.append(1)
        return {"kills": 3}

    hold("name", "a promise", 3, measure, tmp_path)
    with pytest.raises(pytest.skip.Exception, match="recorded for this code"):
        hold("name", "a promise", 3, measure, tmp_path)
    record = json.loads((tmp_path / "name.json").read_text())
    assert len(tried) == 1
    assert record["outcome"] == {"kills": 3} and record["count"] == 3
    assert record["versions"]["torch"]


def test_a_record_of_other_code_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "name.json").write_text(json.dumps({"code": "other"}))
    hold("name", "a promise", 1, lambda: {"now": True}, tmp_path)
    assert json.loads((tmp_path / "name.json").read_text())["outcome"] == {"now": True}


def test_a_failure_leaves_no_record(tmp_path: Path) -> None:
    def measure() -> dict[str, int]:
        raise AssertionError("broken promise")

    with pytest.raises(AssertionError):
        hold("name", "a promise", 1, measure, tmp_path)
    assert not list(tmp_path.iterdir())


def test_any_change_of_a_source_is_another_state(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1")
    before = code_state(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    renamed = code_state(tmp_path)
    (tmp_path / "b.py").write_text("x = 2")
    assert len({before, renamed, code_state(tmp_path)}) == 3
