"""Captions that cannot be used: each is one sentence with the file and the line, key or row."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from data.captioned import (
    FLAT,
    Files,
    beside,
    csv_of,
    in_csv,
    jsonl_of,
    parquet,
    pictures,
    record,
    rows,
    saved,
    text_samples,
    written,
)
from data.packing import files_of, png, tar_of, zip_of
from diffmoe.data import open_pictures
from diffmoe.errors import ConfigError, DataError, ExitCode

LONG = "x" * 10_001
HUGE = b"x" * (2**20 + 1)
BAD = b"caf\xe9"


def refused(path: Path, said: str, field: str | None = None) -> str:
    with pytest.raises(DataError, match=said) as caught:
        open_pictures(path, captioned=True, caption_field=field)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and message.isprintable()
    assert caught.value.exit_code is ExitCode.BAD_DATA
    return message


# ---- tables

A, B = ("a.png", png(1)), ("b.png", png(2))
HEAD = b"file_name,caption\n"
TABLES: dict[str, tuple[str, bytes, str]] = {
    "bad bytes": ("captions.csv", HEAD + b"a.png,x\nb.png," + BAD, r"line 3 is no UTF-8.*csv"),
    "bad bytes in the header": ("captions.csv", BAD + HEAD, r"line 1 is no UTF-8"),
    "UTF-16": ("captions.csv", HEAD.decode().encode("utf-16"), r"line 1 is no UTF-8"),
    "missing images": (
        "metadata.csv",
        HEAD + b'a.png,"two\nlines"\nlost.png,x\nb.png,y\nalso/lost.png,z\n',
        r"line 4 lists lost.png, which is not there; in all 2 of this table",
    ),
    "a missing image of two lines": (
        "captions.csv",
        HEAD + b'a.png,x\nlost.png,"two\nlines"\nb.png,y\n',
        "line 3 lists lost.png",
    ),
    "no image by its name": ("captions.csv", HEAD + b"a.txt,x", "line 2 lists a.txt.*no image by"),
    "hidden image": ("captions.csv", HEAD + b".b.png,x", r"lists \.b\.png, which is not there"),
    "twice": (
        "captions.csv",
        HEAD + b"a.png,x\nb.png,y\n./a.png,z",
        "line 4 lists a.png again, as line 2 did",
    ),
    "outside": ("captions.csv", HEAD + b"../a.png,x", "line 2 names '../a.png', .*outside"),
    "absolute": ("captions.csv", HEAD + b"/etc/a.png,x", "line 2 names '/etc/a.png', .*outside"),
    "outside and back": ("captions.csv", HEAD + b"b/../a.png,x", "which lies outside"),
    "no file": ("captions.csv", HEAD + b" ,x", "line 2 names no file"),
    "too few cells": ("captions.csv", HEAD + b"a.png,x\nb.png\n", "line 3 has 1 cells, the header"),
    "an unquoted comma": ("captions.csv", HEAD + b"a.png,x, y\n", "line 2 has 3 cells, .*quotes"),
    "an open quote": ("captions.csv", HEAD + b'a.png,"x\nb.png,y\n', "cannot be read"),
    "a quote that never ends": ("captions.csv", HEAD + b'a.png,"' + b"x\n" * 99_999, "larger than"),
    "old line ends": ("captions.csv", HEAD + b"a.png,x\rb.png,y\r", "cannot be read"),
    "too long": ("captions.csv", HEAD + b"a.png," + LONG.encode(), "line 2 has .* 10,001 charac"),
    "endless line": ("captions.csv", HEAD + b"a.png," + HUGE, "line 2 is longer than 1,048,576"),
    "no rows": ("captions.csv", HEAD, r"holds 2 images but no captions \(captions.csv lists none"),
    "empty": ("captions.csv", b"", r"no captions \(captions.csv has no column file_name or file"),
    "no column": (
        "metadata.csv",
        b"file_name,label\na.png,3\n",
        r"has no column caption or text or prompt, only file_name, label",
    ),
    "other separators": ("captions.csv", b"file;caption\na.png;x", "only file;caption"),
    "zeros": ("captions.csv", bytes(999), "has no column"),
    "an image": ("captions.csv", png(3), "line 1 is no UTF-8"),
    "no JSON": ("captions.jsonl", b'{"file": "a.png", "text": "x"}\n\n{"file', "line 3 is no JSON"),
    "no object": ("captions.jsonl", b'["a.png", "x"]', "line 1 is no object"),
    "no object later": ("captions.jsonl", b'{"file": "a.png", "text": ""}\n7', "line 2 is no ob"),
    "deep": ("captions.jsonl", b"[" * 200_000, "line 1 is no JSON"),
    "long number": ("captions.jsonl", b'{"n": ' + b"9" * 5000 + b"}", "line 1 is no JSON"),
    "no caption": (
        "captions.jsonl",
        b'{"file": "a.png", "text": "x"}\n{"file": "b.png"}',
        "line 2 has no caption",
    ),
    "null": ("captions.jsonl", b'{"file": "a.png", "text": null}', "line 1 has no caption"),
    "an empty list": ("captions.jsonl", b'{"file": "a.png", "text": []}', "line 1 has no caption"),
    "a number": ("captions.jsonl", b'{"file": "a.png", "text": 7}', "the caption 7, which is no t"),
    "a list of numbers": ("captions.jsonl", b'{"file": "a.png", "text": [7]}', "caption 7, which"),
    "half a sign": ("captions.jsonl", rb'{"file": "a.png", "text": "\ud800"}', "is no Unicode"),
    "no name": ("captions.jsonl", b'{"file": 3, "text": "x"}', "line 1 names no file"),
    "name of half a sign": ("captions.jsonl", rb'{"file": "\ud800.png", "text": "x"}', "not there"),
    "NUL in a name": ("captions.jsonl", rb'{"file": "a\u0000.png", "text": "x"}', "not there"),
    "nothing in it": ("captions.jsonl", b"\n \n", r"captions \(captions.jsonl has no column file"),
}


@pytest.mark.parametrize("place", ["folder", "zip", "tar"])
@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_cannot_be_used(kind: str, place: str, tmp_path: Path) -> None:
    name, content, said = TABLES[kind]
    folder = written(tmp_path / "set", [(name, content), A, B, (".b.png", png(3))])
    if place == "folder":
        refused(folder, said)
    else:
        pack = zip_of if place == "zip" else tar_of
        path = pack(tmp_path / f"other.{place}", files_of(folder))
        assert kind.startswith(("no rows", "empty", "no col", "other", "zeros", "nothing")) or (
            f"{path}:{name}" in refused(path, said)
        )
        refused(path, said)


def test_a_field_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "table", in_csv("captions.csv", "file", "caption"))
    refused(folder, r"has no column mine, only width, file, caption", "mine")
    refused(written(tmp_path / "texts", beside()), "no table with a column mine", "mine")
    refused(tar_of(tmp_path / "s.tar", text_samples(range(2))), "no field mine in any", "mine")
    refused(saved(tmp_path / "hub", rows()), "no column mine of texts, only image, cap", "mine")
    refused(record(tmp_path / "drawn"), "holds 5 images but no captions", "mine")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    written(tmp_path / "outside", [A])
    folder = written(tmp_path / "set", [B, ("captions.csv", HEAD + b"way/a.png,x\n")])
    (folder / "way").symlink_to(tmp_path / "outside")
    refused(folder, "line 2 lists way/a.png, which is not there")


# ---- a text beside each picture


def one_text(content: bytes | None) -> Files:
    """Pictures with a text each; one of them is another, or is not there."""
    files = [(name, text) for name, text in beside() if name != "a/b/2.txt"]
    return files if content is None else [*files, ("a/b/2.txt", content)]


TEXTS = {
    "not there": (None, "2.png — the image|the image has no caption, and so have 0 others.*2.png"),
    "bad bytes": (BAD, "the caption is no UTF-8.*2.txt"),
    "too long": (LONG.encode(), "has a caption of 10,001 characters.*2.txt"),
    "endless": (HUGE, "the caption has 1,048,577 bytes.*2.txt"),
}


@pytest.mark.parametrize("place", ["folder", "zip", "tar"])
@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_that_cannot_be_used(kind: str, place: str, tmp_path: Path) -> None:
    content, said = TEXTS[kind]
    path = written(tmp_path / "set", one_text(content))
    if place != "folder":
        pack = zip_of if place == "zip" else tar_of
        path = pack(tmp_path / f"set.{place}", files_of(path))
    assert "a/b/2" in refused(path, said)


@pytest.mark.parametrize("kind", ["folder", "pipe", "dead link"])
def test_a_text_that_is_no_file(kind: str, tmp_path: Path) -> None:
    place = written(tmp_path, one_text(None)) / "a" / "b" / "2.txt"
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(tmp_path / "nowhere")
    said = "the caption is no file" if kind == "dead link" else "the image has no caption"
    refused(tmp_path, said)


def test_a_set_without_captions(tmp_path: Path) -> None:
    said = "the path holds 5 images but no captions .* write a .txt"
    refused(written(tmp_path / "folder", pictures()), said)
    refused(zip_of(tmp_path / "set.zip", pictures()), said)
    labels = [(f"{key}.cls", b"1") for key, _ in FLAT]
    refused(tar_of(tmp_path / "set.tar", [*pictures(FLAT), *labels]), said)
    refused(saved(tmp_path / "hub", rows(column="title")), r"5 images but no captions \(no col")
    with pytest.raises(DataError, match=r"data\.path holds 5 images but no captions"):
        open_pictures(tmp_path / "folder", captioned=True, subject="data.path")
    refused(written(tmp_path / "none", [("a.txt", b"x")]), "holds no images")
    with pytest.raises(ConfigError, match="does not exist"):
        open_pictures(tmp_path / "nothing", captioned=True)


def test_a_damaged_member_of_an_archive(tmp_path: Path) -> None:
    for name, files in (("table", [A, ("captions.csv", HEAD + b"a.png,y")]), ("text", beside())):
        path = zip_of(tmp_path / f"{name}.zip", files, method=0)
        content = path.read_bytes()
        place = content.index(b"a.png,y" if name == "table" else b" a red")
        path.write_bytes(content[:place] + b"!" + content[place + 1 :])
        refused(path, "the captions cannot be read .its bytes are not those that were packed")


# ---- shards

NOTES: dict[str, tuple[str, bytes, str]] = {
    "bad bytes": ("txt", BAD, "the caption of sample c_3 is no UTF-8"),
    "bad bytes of a .json": ("json", b'{"text": "' + BAD + b'"}', "sample c_3 is no UTF-8"),
    "no JSON": ("json", b"{", "sample c_3 has a .json that cannot be read"),
    "deep JSON": ("json", b"[" * 200_000, "sample c_3 has a .json that cannot be read"),
    "no caption": ("json", b'{"url": "x"}', "sample c_3 has no caption"),
    "a list of facts": ("json", b"[1, 2]", "sample c_3 has no caption"),
    "a number": ("json", b'{"text": 7}', "sample c_3 has the caption 7, which is no text"),
    "too long": ("txt", LONG.encode(), "sample c_3 has a caption of 10,001 characters"),
    "endless": ("txt", HUGE, "sample c_3 has a caption of 1,048,577 bytes"),
    "nothing": ("xyz", b"", "sample c_3 has no caption"),
}


@pytest.mark.parametrize("kind", NOTES)
def test_a_sample_that_cannot_be_used(kind: str, tmp_path: Path) -> None:
    ending, content, said = NOTES[kind]
    files = [(n, c) for n, c in text_samples(range(5)) if n not in ("c_3.txt", "c_3.json")]
    message = refused(tar_of(tmp_path / "set.tar", [*files, (f"c_3.{ending}", content)]), said)
    assert "set.tar" in message


def test_of_several_shards_the_one_is_named(tmp_path: Path) -> None:
    tar_of(tmp_path / "0.tar", text_samples(range(2)))
    files = [(n, c) for n, c in text_samples(range(2, 5)) if n[:3] != "c_4" or n.endswith("jpg")]
    tar_of(tmp_path / "1.tar", files)
    assert "1.tar" in refused(tmp_path, "sample c_4 has no caption")


# ---- records and data sets


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "image 'c_3.png' has no caption"),
        (7, "image 'c_3.png' has the caption 7"),
        (LONG, "image 'c_3.png' has a caption of 10,001 characters"),
        ("\ud800", "image 'c_3.png' has a caption that is no Unicode"),
        (["\ud800"], "image 'c_3.png' has a caption that is no Unicode"),
    ],
)
def test_a_record_that_cannot_be_used(value: Any, said: str, tmp_path: Path) -> None:
    place = record(tmp_path) / "samples.json"
    content = json.loads(place.read_text())
    content["images"][3]["caption"] = value
    place.write_text(json.dumps(content))
    assert "samples.json" in refused(tmp_path, said)


def test_a_record_with_a_file_that_is_no_text(tmp_path: Path) -> None:
    place = record(tmp_path) / "samples.json"
    place.write_text(place.read_text().replace("c_3.png", r"\ud800.png"))
    refused(tmp_path, r"names '\\ud800.png', which is no text")


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["a", "b", "c", None, "e"], "row 3 has no caption"),
        ([["a"], ["b"], ["c"], [], ["e"]], "row 3 has no caption"),
        (["a", "b", "c", LONG, "e"], "row 3 has a caption of 10,001 characters"),
        ([1, 2, 3, 4, 5], "no column caption or text or prompt of texts, only image, caption"),
    ],
)
def test_a_data_set_that_cannot_be_used(texts: list[Any], said: str, tmp_path: Path) -> None:
    refused(saved(tmp_path / "set", rows(texts)), said)


def test_a_table_of_the_hub_that_is_no_text(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet as tables

    path = parquet(tmp_path / "set", rows(["a", "b", "c", "caf#", "e"])) / "train.parquet"
    table = tables.read_table(path)
    place = table.column_names.index("caption")
    cells = [BAD if text == "caf#" else text.encode() for text in table["caption"].to_pylist()]
    broken = pa.array(cells, pa.binary()).view(pa.string())
    tables.write_table(table.set_column(place, table.schema.field("caption"), broken), path)
    refused(tmp_path / "set", "column caption of row 3 is no UTF-8")


def test_a_table_may_be_larger_than_any_caption(tmp_path: Path) -> None:
    text = "x" * 9_990
    files = [(f"{number}.png", png(1)) for number in range(120)]
    lines = [("file", "caption"), *((name, f"{name} {text}"[:10_000]) for name, _ in files)]
    path = zip_of(tmp_path / "set.zip", [*files, ("captions.csv", csv_of(lines))])
    assert len(open_pictures(path, captioned=True)) == 120
    many = jsonl_of([{"file": name, "text": text, "more": "y" * 50_000} for name, _ in files])
    place = written(tmp_path / "set", [*files, ("captions.jsonl", many)])
    assert open_pictures(place, captioned=True).captions[119] == text
