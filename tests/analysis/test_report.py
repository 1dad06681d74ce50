"""The report is one page that needs no network and runs nothing it was given."""

import base64
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from diffmoe.analysis import Panel, samples_figure, write_report
from diffmoe.errors import ConfigError

HOSTILE = '<script>alert("&")</script>'


def page(folder: Path, **changes: Any) -> str:
    images = torch.arange(4 * 64).view(4, 1, 8, 8).to(torch.uint8)
    figure = samples_figure(images, torch.arange(4) % 2, ["a", "b"], folder / "samples.png")
    content: dict[str, Any] = {
        "title": "Report of demo",
        "summary": "A small model.",
        "numbers": [("agreement", "98.5 %", "of 1000 samples")],
        "panels": [Panel("Samples", figure, "Not chosen."), Panel("Again", figure, "The same.")],
        "stamp": {"step": 1300, "path": Path("runs/demo")},
        "command": "diffmoe demo",
    }
    path = write_report(folder / "report.html", **content | changes)
    return path.read_text()


class Links(HTMLParser):
    """Everything a browser would load, and every tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]


def test_the_page_loads_nothing_from_anywhere(tmp_path: Path) -> None:
    text = page(tmp_path)
    links = Links(text)
    assert len(links.loads) == 2
    assert all(link.startswith("data:image/png;base64,") for link in links.loads)
    assert not {"script", "link", "iframe", "object"} & set(links.tags)
    assert not re.search(r"https?:|@import|url\(", text)


def test_its_pictures_are_the_figures_themselves(tmp_path: Path) -> None:
    data = Links(page(tmp_path)).loads[0].split(",", 1)[1]
    assert base64.b64decode(data) == (tmp_path / "samples.png").read_bytes()


def test_it_says_what_and_how(tmp_path: Path) -> None:
    text = page(tmp_path)
    for part in ("Report of demo", "A small model.", "agreement", "98.5 %", "Not chosen."):
        assert part in text
    assert "diffmoe demo" in text and "1300" in text and "runs/demo" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"title": HOSTILE},
        {"summary": HOSTILE},
        {"command": HOSTILE},
        {"numbers": [(HOSTILE, HOSTILE, HOSTILE)]},
        {"stamp": {"class": HOSTILE, HOSTILE: 1}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_text_is_text_and_never_markup(tmp_path: Path, changes: dict[str, Any]) -> None:
    text = page(tmp_path, **changes)
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "script" not in Links(text).tags


def test_captions_and_titles_of_panels_are_text_too(tmp_path: Path) -> None:
    page(tmp_path)
    panel = Panel(f'" onerror="x" {HOSTILE}', tmp_path / "samples.png", HOSTILE)
    text = page(tmp_path, panels=[panel])
    assert "<script" not in text and 'onerror="x"' not in text


def test_a_failure_leaves_the_page_of_before(tmp_path: Path) -> None:
    before = page(tmp_path)
    with pytest.raises(FileNotFoundError):
        page(tmp_path, panels=[Panel("Lost", tmp_path / "lost.png", "")])
    assert (tmp_path / "report.html").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "samples.png"]


def test_without_jinja_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ConfigError, match=r'pip install "diffmoe\[plots\]"'):
        page(tmp_path)
