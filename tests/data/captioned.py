"""One set of captioned pictures in every layout that captions lie in."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.packing import files_of, png, tar_of, zip_of


class Told(NamedTuple):
    """A picture without its ending, and its caption."""

    key: str
    caption: str


# Captions that each layout stores in another way; in the order of their keys.
TOLD = [
    Told("a/0", "a red square left of a blue circle"),
    Told("a/1", 'says "hello, world", twice'),
    Told("a/b/2", "two\nlines"),
    Told("c/3", ""),
    Told("c/4", "ein Bär — 熊 \U0001f43b\u2028still the same line"),
]
FLAT = [Told(told.key.replace("/", "_"), told.caption) for told in TOLD]
CAPTIONS = [told.caption for told in TOLD]
PICTURES = [png(40 * number) for number in range(len(TOLD))]
Files = list[tuple[str, bytes]]


def written(folder: Path, files: Files) -> Path:
    """A folder of these files."""
    for name, content in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def pictures(told: Sequence[Told] = TOLD) -> Files:
    return [(f"{one.key}.png", PICTURES[number]) for number, one in enumerate(told)]


def csv_of(rows: Sequence[Sequence[str]], encoding: str = "utf-8") -> bytes:
    """A table of cells, the last row first behind the header: the order does not count."""
    file = io.StringIO(newline="")
    csv.writer(file).writerows([rows[0], *reversed(rows[1:])])
    return file.getvalue().encode(encoding)


def jsonl_of(entries: Sequence[object]) -> bytes:
    return "".join(json.dumps(entry) + "\n" for entry in reversed(entries)).encode()


def in_csv(name: str, file: str, caption: str, encoding: str = "utf-8", start: str = "") -> Files:
    rows = [("width", file, caption), *(("9", f"{start}{k}.png", text) for k, text in TOLD)]
    return [(name, csv_of(rows, encoding)), *pictures()]


def in_json(name: str, file: str, caption: str) -> Files:
    return [(name, jsonl_of([{file: f"{k}.png", caption: text} for k, text in TOLD])), *pictures()]


def beside(told: Sequence[Told] = TOLD) -> Files:
    texts = [(f"{key}.txt", f" {text}\n".encode()) for key, text in told]
    return [*texts, *pictures(told), ("LICENSE.txt", b"\xff is no caption")]


def text_samples(places: range) -> Files:
    """Samples of a shard with a .txt each."""
    return [
        pair
        for place in places
        for pair in (
            (f"{FLAT[place].key}.txt", FLAT[place].caption.encode()),
            (f"{FLAT[place].key}.jpg", PICTURES[place]),
            (f"{FLAT[place].key}.json", b'{"caption": "not this one", "cls": 0}'),
        )
    ]


def json_samples(field: str) -> Files:
    facts = ((k, json.dumps({"url": "x", field: text}).encode()) for k, text in FLAT)
    return [*((f"{key}.json", content) for key, content in facts), *pictures(FLAT)]


def web_shards(folder: Path) -> Path:
    """Two shards with a .txt a sample."""
    folder.mkdir()
    tar_of(folder / "0.tar", text_samples(range(2)))
    tar_of(folder / "1.tar", text_samples(range(2, 5)))
    return folder


def one_shard(folder: Path) -> Path:
    """A shard with a .json a sample."""
    folder.mkdir()
    return tar_of(folder / "set.tar", json_samples("caption"))


def record(folder: Path) -> Path:
    """What sampling writes, the contact sheet included."""
    entries = [
        {"file": f"{key}.png", "label": None, "seed": 0, "caption": text} for key, text in FLAT
    ]
    content = json.dumps({"images": entries}).encode()
    return written(folder, [("samples.json", content), ("sheet.png", png(1)), *pictures(FLAT)])


def rows(texts: Sequence[Any] = CAPTIONS, column: str = "caption", **others: Any) -> Any:
    """A data set of the library's."""
    import datasets

    cells = [{"bytes": content, "path": None} for content in PICTURES]
    made = datasets.Dataset.from_dict({"image": cells, column: list(texts), **others})
    return made.cast_column("image", datasets.Image())


def saved(folder: Path, table: Any) -> Path:
    table.save_to_disk(str(folder))
    return folder


def parquet(folder: Path, table: Any) -> Path:
    folder.mkdir()
    table.to_parquet(str(folder / "train.parquet"))
    return folder


def packed(pack: Callable[[Path, Files], Path], name: str, files: Files, prefix: str = "") -> Any:
    """A layout: an archive of files below a folder."""

    def make(folder: Path) -> Path:
        written(folder / "files", files)
        return pack(folder / name, files_of(folder / "files", prefix))

    return make


def lower(files: Files) -> Files:
    """The same with the pictures in a folder of their own."""
    return [(f"in/{name}" if name.endswith(".png") else name, text) for name, text in files]


def folder(files: Files) -> Callable[[Path], Path]:
    return lambda place: written(place, files)


TABLE = in_csv("captions.csv", "file_name", "caption")
LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "captions.csv": folder(TABLE),
    "captions.csv with a BOM": folder(in_csv("captions.csv", "file", "text", "utf-8-sig")),
    "metadata.csv": folder(in_csv("metadata.csv", "path", "prompt", start="./")),
    "captions.jsonl": folder(in_json("captions.jsonl", "image", "text")),
    "metadata.jsonl": folder(in_json("metadata.jsonl", "file_name", "caption")),
    "below a folder": folder(lower(in_csv("captions.csv", "file", "text", start="in/"))),
    "texts beside": folder(beside()),
    "tar of a table": packed(tar_of, "set.tar", TABLE, "somewhere/"),
    "zip of a table": packed(zip_of, "set.zip", TABLE),
    "tar of texts": packed(tar_of, "set.tar", beside()),
    "zip of texts": packed(zip_of, "set.zip", beside(), "somewhere/else/"),
    "shards": web_shards,
    "shard of .json": one_shard,
    "samples.json": record,
    "saved": lambda place: saved(place, rows()),
    "saved, several a picture": lambda place: saved(place, rows([[c, "other"] for c in CAPTIONS])),
    "parquet": lambda place: parquet(place, rows(column="text", prompt=["no"] * len(TOLD))),
}
FOLDERS = [name for name in LAYOUTS if not name.startswith(("s", "parquet"))]
