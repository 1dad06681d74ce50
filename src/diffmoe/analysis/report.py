"""One self-contained HTML page: pictures inside, numbers with their stamp, no network."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmoe.checkpoint import write_text
from diffmoe.errors import ConfigError

__all__ = ["Panel", "write_report"]


@dataclass(frozen=True)
class Panel:
    """A figure of the report with what it shows."""

    title: str
    figure: Path
    caption: str


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
figure { margin: 0.8rem 0; } img { max-width: 100%; }
figcaption { color: #555; max-width: 46rem; }
table { border-collapse: collapse; } td.n { font-variant-numeric: tabular-nums; }
td, th { padding: 0.25rem 1.2rem 0.25rem 0; text-align: left; vertical-align: top;
       border-bottom: 1px solid #ddd; }
pre { background: #f5f5f5; padding: 0.8rem; overflow-x: auto; font-size: 0.85rem; }
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ summary }}</p>
<table>
{% for name, value, meaning in numbers %}
<tr><th>{{ name }}</th><td class="n">{{ value }}</td><td>{{ meaning }}</td></tr>
{% endfor %}
</table>
{% for panel in panels %}
<h2>{{ panel.title }}</h2>
<figure><img alt="{{ panel.title }}" src="data:image/png;base64,{{ panel.data }}">
<figcaption>{{ panel.caption }}</figcaption></figure>
{% endfor %}
<h2>How it was made</h2>
<p>Made by <code>{{ command }}</code></p>
<pre>{{ stamp }}</pre>
</body></html>
"""


def write_report(
    path: Path,
    *,
    title: str,
    summary: str,
    numbers: list[tuple[str, str, str]],
    panels: list[Panel],
    stamp: Mapping[str, Any],
    command: str,
) -> Path:
    """Write the page; `numbers` are rows of name, value and meaning."""
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise ConfigError(
            "a report needs the package jinja2", remedy='pip install "diffmoe[plots]"'
        ) from error
    template = Environment(autoescape=True).from_string(_PAGE)
    pictures = [
        {
            "title": panel.title,
            "caption": panel.caption,
            "data": base64.b64encode(panel.figure.read_bytes()).decode(),
        }
        for panel in panels
    ]
    page = template.render(
        title=title,
        summary=summary,
        numbers=numbers,
        panels=pictures,
        stamp=json.dumps(stamp, indent=2, default=str),
        command=command,
    )
    write_text(path, page)
    return path
