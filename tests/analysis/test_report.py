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
from diffmoe.analysis.report import Section, Table
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


# --- sections, tables, kinds of pictures ----------------------------------------------------------

KINDS = {"png": "image/png", "svg": "image/svg+xml", "gif": "image/gif", "webp": "image/webp"}


@pytest.mark.parametrize(("suffix", "kind"), KINDS.items())
def test_every_kind_of_picture_is_embedded_whole(tmp_path: Path, suffix: str, kind: str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(b"\x00picture")
    panel = Panel("A", tmp_path / f"a.{suffix}", "")
    (source,) = Links(page(tmp_path, panels=[panel])).loads
    head, data = source.split(",", 1)
    assert head == f"data:{kind};base64" and base64.b64decode(data) == b"\x00picture"


def test_a_file_that_no_page_shows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"figure a\.pdf is no picture.* use one of \.png"):
        page(tmp_path, panels=[Panel("A", tmp_path / "a.pdf", "")])


def sectioned(folder: Path, count: int) -> str:
    sections = [
        Section(f"Part {n}", [Panel(f"Figure {n}", folder / "samples.png", "")], f"About {n}.")
        for n in range(count)
    ]
    return page(folder, panels=[], sections=sections)


def test_several_sections_have_a_table_of_contents(tmp_path: Path) -> None:
    page(tmp_path)
    links = Links(sectioned(tmp_path, 3))
    inner = [link for link in links.loads if not link.startswith("data:")]
    assert inner == ["#section-1", "#section-2", "#section-3", "#made"]
    text = sectioned(tmp_path, 3)
    assert all(f'id="{link[1:]}"' in text for link in inner)
    assert text.index("Part 0</h2>") < text.index("About 0.") < text.index("Figure 0</h3>")


def test_one_section_has_none(tmp_path: Path) -> None:
    page(tmp_path)
    text = sectioned(tmp_path, 1)
    assert "<nav>" not in text and "Part 0</h2>" in text


def test_a_table_and_the_names_of_its_files_are_text(tmp_path: Path) -> None:
    table = Table(["name", HOSTILE], [("a", 1.5), (HOSTILE, 2)])
    panel = Panel("Cost", None, "What it costs.", table=table, data=["cost.csv", HOSTILE])
    text = page(tmp_path, panels=[panel])
    assert "<img" not in text and "<script" not in text
    assert "<td>a</td><td>1.5</td>" in text and "<th>name</th>" in text
    assert "data: <code>cost.csv</code>, <code>&lt;script" in text


def test_what_a_section_says_is_text(tmp_path: Path) -> None:
    page(tmp_path)
    panel = Panel(HOSTILE, tmp_path / "samples.png", HOSTILE)
    sections = [Section(HOSTILE, [panel], HOSTILE), Section(HOSTILE, [])]
    text = page(tmp_path, panels=[], sections=sections)
    assert "<script" not in text and text.count("&lt;script&gt;") >= 6
