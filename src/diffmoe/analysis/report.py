"""One self-contained HTML page: pictures inside, numbers with their stamp, no network."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmoe.checkpoint import write_text
from diffmoe.errors import ConfigError

__all__ = ["Panel", "Section", "Table", "write_report"]

_KINDS = {
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".gif": "image/gif",
    ".webp": "image/webp",
}


@dataclass(frozen=True)
class Table:
    """A small table of the report."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]


@dataclass(frozen=True)
class Panel:
    """A figure of the report, or a table, with what it shows."""

    title: str
    figure: Path | None  # PNG, SVG, GIF or WebP
    caption: str
    table: Table | None = None
    data: Sequence[str] = ()  # files beside the page that hold the numbers


@dataclass(frozen=True)
class Section:
    """Panels under one heading."""

    title: str
    panels: Sequence[Panel]
    introduction: str = ""


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
h2.section { font-size: 1.4rem; margin-top: 3rem; border-top: 2px solid #1a1a1a;
       padding-top: 0.6rem; }
h3 { font-size: 1.1rem; margin-top: 1.8rem; }
nav ol { padding-left: 1.4rem; } a { color: #0b5394; }
figure { margin: 0.8rem 0; } img { max-width: 100%; height: auto; }
figcaption { color: #555; max-width: 46rem; }
.data { color: #555; font-size: 0.85rem; margin: 0.2rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; } td { font-variant-numeric: tabular-nums; }
td, th { padding: 0.25rem 1.2rem 0.25rem 0; text-align: left; vertical-align: top;
       border-bottom: 1px solid #ddd; }
pre { background: #f5f5f5; padding: 0.8rem; overflow-x: auto; font-size: 0.85rem; }
@media print {
  body { max-width: none; margin: 0; font-size: 11pt; }
  h1, h2, h3 { break-after: avoid; } figure, tr { break-inside: avoid; }
  pre { white-space: pre-wrap; } .wide { overflow: visible; } a { color: inherit; }
}
</style></head><body>
{% macro show(panel, level) %}
<h{{ level }}>{{ panel.title }}</h{{ level }}>
<figure>
{% if panel.source %}<img alt="{{ panel.title }}" src="{{ panel.source }}">{% endif %}
{% if panel.table %}
<div class="wide"><table>
<thead><tr>{% for name in panel.table.headers %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in panel.table.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endif %}
<figcaption>{{ panel.caption }}</figcaption></figure>
{% if panel.data %}
<p class="data">data: {% for file in panel.data %}<code>{{ file }}</code>
{%- if not loop.last %}, {% endif %}{% endfor %}</p>
{% endif %}
{% endmacro %}
<h1>{{ title }}</h1>
<p>{{ summary }}</p>
{% if sections | length > 1 %}
<nav><ol>
{% for section in sections %}
<li><a href="#section-{{ loop.index }}">{{ section.title }}</a></li>
{% endfor %}
<li><a href="#made">How it was made</a></li>
</ol></nav>
{% endif %}
{% if numbers %}
<div class="wide"><table>
{% for name, value, meaning in numbers %}
<tr><th>{{ name }}</th><td>{{ value }}</td><td>{{ meaning }}</td></tr>
{% endfor %}
</table></div>
{% endif %}
{% for panel in panels %}{{ show(panel, 2) }}{% endfor %}
{% for section in sections %}
<section id="section-{{ loop.index }}">
<h2 class="section">{{ section.title }}</h2>
{% if section.introduction %}<p>{{ section.introduction }}</p>{% endif %}
{% for panel in section.panels %}{{ show(panel, 3) }}{% endfor %}
</section>
{% endfor %}
<h2 id="made">How it was made</h2>
<p>Made by <code>{{ command }}</code></p>
<pre>{{ stamp }}</pre>
</body></html>
"""


def write_report(
    path: Path,
    *,
    title: str,
    summary: str,
    numbers: Sequence[tuple[str, str, str]],
    panels: Sequence[Panel],
    stamp: Mapping[str, Any],
    command: str,
    sections: Sequence[Section] = (),
) -> Path:
    """Write the page; `numbers` are rows of name, value and meaning, `panels` come first.

    Several sections have a table of contents.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise ConfigError(
            "a report needs the package jinja2", remedy='pip install "diffmoe[plots]"'
        ) from error
    template = Environment(autoescape=True, trim_blocks=True).from_string(_PAGE)
    page = template.render(
        title=title,
        summary=summary,
        numbers=numbers,
        panels=[_content(panel) for panel in panels],
        sections=[
            {**vars(section), "panels": [_content(panel) for panel in section.panels]}
            for section in sections
        ],
        stamp=json.dumps(stamp, indent=2, default=str),
        command=command,
    )
    write_text(path, page)
    return path


def _content(panel: Panel) -> dict[str, Any]:
    """What the page says of a panel."""
    return {**vars(panel), "source": _embedded(panel.figure) if panel.figure else ""}


def _embedded(figure: Path) -> str:
    """A picture as a text that stands in for its address."""
    kind = _KINDS.get(figure.suffix.lower())
    if kind is None:
        raise ConfigError(
            f"figure {figure.name} is no picture that a page can show",
            remedy=f"use one of {', '.join(_KINDS)}",
        )
    return f"data:{kind};base64,{base64.b64encode(figure.read_bytes()).decode()}"
