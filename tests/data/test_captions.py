"""Captions of pictures: the same from every layout, in one order, and part of what a set is."""

import json
import logging
import multiprocessing
import pickle
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data.captioned import (
    CAPTIONS,
    FLAT,
    FOLDERS,
    LAYOUTS,
    PICTURES,
    TABLE,
    TOLD,
    beside,
    csv_of,
    in_csv,
    json_samples,
    jsonl_of,
    parquet,
    pictures,
    record,
    rows,
    saved,
    text_samples,
    web_shards,
    written,
)
from data.packing import png, tar_of, zip_of
from diffmoe.config import RunConfig, WordEncoder, WordText
from diffmoe.data import ImageSource, Pictures, open_pictures, open_source
from diffmoe.data.pictures import Names
from diffmoe.errors import ConfigError, DataError


def shown(pictures: Pictures) -> list[tuple[bytes, str]]:
    """Content and caption of each picture."""
    assert pictures.captions is not None and len(pictures.captions) == len(pictures)
    return [(pictures.read(index), pictures.captions[index]) for index in range(len(pictures))]


def opened(path: Path, field: str | None = None) -> Pictures:
    return open_pictures(path, captioned=True, caption_field=field)


EXPECTED = list(zip(PICTURES, CAPTIONS, strict=True))


# ---- layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_captions_in_the_same_order(
    layout: str, tmp_path: Path
) -> None:
    found = opened(LAYOUTS[layout](tmp_path / "set"))
    assert isinstance(found, Pictures) and shown(found) == EXPECTED
    assert list(found.captions or ()) == CAPTIONS


def test_every_folder_and_archive_has_the_same_fingerprint(tmp_path: Path) -> None:
    made = [opened(LAYOUTS[layout](tmp_path / layout)) for layout in FOLDERS]
    assert len({one.fingerprint for one in made}) == len({one.listing for one in made}) == 1
    assert len(made) == 11 and made[0].class_names == ("a", "c")
    assert all(one.labels.tolist() == [0, 0, 0, 1, 1] for one in made)


def test_pictures_of_one_folder_have_captions_and_no_labels(tmp_path: Path) -> None:
    for name, found in {
        "folder": opened(written(tmp_path / "flat", beside(FLAT))),
        "below": opened(written(tmp_path, beside([FLAT[0]._replace(key="flat/x/y")]))),
    }.items():
        assert (found.labels, found.class_names) == (None, ()), name
    mixed = [*beside(), ("loose.png", png(7)), ("loose.txt", b"of no class")]
    found = opened(written(tmp_path / "mixed", mixed))
    assert found.labels is None and shown(found)[-1] == (png(7), "of no class")


def test_the_first_table_counts_and_only_what_it_lists(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = csv_of([("file", "caption"), ("a/b/2.png", "this")])
    files = [*beside(), ("captions.csv", listed), ("metadata.csv", b"file\nnothing")]
    assert shown(opened(written(tmp_path, files))) == [(PICTURES[2], "this")]
    assert "4 images of" in caplog.text and "not listed in captions.csv" in caplog.text


def test_empty_captions_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        opened(LAYOUTS["texts beside"](tmp_path))
    assert "1 of 5 captions of" in caplog.text and "no condition" in caplog.text


def test_blanks_at_the_ends_are_no_part_of_a_caption(tmp_path: Path) -> None:
    table = [("file", "caption"), ("a.png", "\t one  two \n"), ("b.png", " \n ")]
    files = [("captions.csv", csv_of(table)), ("a.png", png(1)), ("b.png", png(2))]
    assert shown(opened(written(tmp_path, files))) == [(png(1), "one  two"), (png(2), "")]


@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl", "a.txt"])
def test_a_mark_of_the_order_of_bytes_is_no_text(name: str, tmp_path: Path) -> None:
    table = [("file", "text"), ("a.png", "a cat")]
    content = {"csv": csv_of(table), "jsonl": jsonl_of([dict(zip(*table, strict=True))])}
    text = content.get(name.rpartition(".")[2], b"a cat")
    files = [(name, b"\xef\xbb\xbf" + text), ("a.png", png(1))]
    assert shown(opened(written(tmp_path, files))) == [(png(1), "a cat")]


# ---- which field


def two_fields(place: Path, layout: str) -> Path:
    """A set whose captions are in `mine`, with others in `caption`."""
    cells = [(f"{key}.png", "not this", text) for key, text in FLAT]
    if layout == "csv":
        table = csv_of([("file", "caption", "mine"), *cells])
        return written(place, [("captions.csv", table), *pictures(FLAT)])
    if layout == "jsonl":
        table = jsonl_of([{"file": f, "caption": c, "mine": m} for f, c, m in cells])
        return written(place, [("metadata.jsonl", table), *pictures(FLAT)])
    if layout == "samples.json":
        (record(place) / "samples.json").write_text(
            (place / "samples.json").read_text().replace('"caption"', '"mine"')
        )
        return place
    if layout == "hub":
        return saved(place, rows(column="mine", caption=["not this"] * len(TOLD)))
    place.mkdir()
    texts = [(f"{key}.txt", b"not this") for key, _ in FLAT]
    return tar_of(place / "set.tar", [*json_samples("mine"), *texts])


@pytest.mark.parametrize("layout", ["csv", "jsonl", "samples.json", "hub", "shard"])
def test_another_field_may_be_named(layout: str, tmp_path: Path) -> None:
    assert shown(opened(two_fields(tmp_path / "set", layout), "mine")) == EXPECTED


def test_the_first_of_the_usual_fields_counts(tmp_path: Path) -> None:
    entry = {"prompt": "c", "text": "b", "image": "a.png"}
    for place, more, said in (("one", {}, "b"), ("two", {"caption": "a"}, "a")):
        files = [("metadata.jsonl", jsonl_of([entry | more])), ("a.png", png(1))]
        assert opened(written(tmp_path / place, files)).captions[:] == [said]


# ---- what a set is

# As they were before there were captions: a run on classes goes on with them.
GOLDEN = {
    "folder": ("5 images sha256:8793cc963f545ba1", "5 images sha256:be7509f8b3384eb3"),
    "zip": ("5 images sha256:8793cc963f545ba1", "5 images sha256:be7509f8b3384eb3"),
    "tar": ("5 images sha256:8793cc963f545ba1", "5 images sha256:be7509f8b3384eb3"),
    "shard": ("5 images sha256:7923eee37909e47a", "5 images sha256:986e1dd7018174fe"),
    "samples.json": ("1 images sha256:17d34292ddf36857", "1 images sha256:a9a4dac16b1f2e2f"),
}


def plain(place: Path) -> dict[str, Path]:
    """Sets whose bytes are no picture's: what counts is theirs alone, not a library's version."""
    files = [(f"{key}.png", f"picture {key}".encode()) for key, _ in TOLD]
    texts = [(f"{key}.txt", text.encode()) for key, text in TOLD]
    labels = [(f"{key.replace('/', '_')}.cls", b"1") for key, _ in TOLD]
    flat = [(name.replace("/", "_"), content) for name, content in [*files, *texts]]
    content = b'{"images": [{"file": "a_0.png", "label": 2, "caption": "a"}]}'
    table = ("captions.csv", csv_of([("file", "caption"), *((n, "x") for n, _ in files)]))
    place.mkdir(parents=True)
    return {
        "folder": written(place / "folder", [*files, *texts, table]),
        "zip": zip_of(place / "set.zip", [*files, *texts, table]),
        "tar": tar_of(place / "set.tar", [*files, *texts, table]),
        "shard": tar_of(place / "shard.tar", [*flat, *labels]),
        "samples.json": written(place / "drawn", [*flat[:1], ("samples.json", content)]),
    }


def test_without_captions_a_set_is_what_it_was(tmp_path: Path) -> None:
    for name, path in plain(tmp_path / "sets").items():
        found = open_pictures(path)
        assert (found.fingerprint, found.listing) == GOLDEN[name], name
        assert found.captions is None
        captioned = opened(path)
        assert captioned.fingerprint.startswith(f"{found.fingerprint} captioned sha256:"), name


@pytest.mark.parametrize("layout", ["captions.csv", "zip of texts", "shards", "saved"])
def test_another_caption_is_another_set(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    was = opened(LAYOUTS[layout](tmp_path / "was"))
    with monkeypatch.context() as patch:
        for there, here in ((TOLD, "data.captioned.TOLD"), (FLAT, "data.captioned.FLAT")):
            patch.setattr(here, [*there[:4], there[4]._replace(caption="another")])
        made = {
            "captions.csv": lambda place: written(place, in_csv("captions.csv", "file", "text")),
            "zip of texts": lambda place: zipped(place, beside([*TOLD[:4], last])),
            "shards": web_shards,
            "saved": lambda place: saved(place, rows([*CAPTIONS[:4], "another"])),
        }
        last = TOLD[4]._replace(caption="another")
        now = opened(made[layout](tmp_path / "now"))
    assert now.captions[:] == [*CAPTIONS[:4], "another"]
    assert was.fingerprint != now.fingerprint and was.listing != now.listing
    assert was.state(range(4), [0]) == now.state(range(4), [0])
    assert was.state(range(3, 5), []) != now.state(range(3, 5), [])
    assert was.uncaptioned.fingerprint == now.uncaptioned.fingerprint


def zipped(place: Path, files: list[tuple[str, bytes]]) -> Path:
    place.mkdir()
    return zip_of(place / "set.zip", files)


def test_where_one_caption_ends_belongs_to_the_set() -> None:
    ends = [Names(["ab", "c"]), Names(["a", "bc"]), Names(["abc", ""]), Names(["", "abc"])]
    assert len({names.digest(range(2)) for names in ends}) == 4
    assert ends[0].digest(range(1, 2)) == Names(["c"]).digest(range(1))


# ---- many


def test_captions_of_many_pictures_take_little_more_than_their_bytes() -> None:
    tracemalloc.start()
    try:
        names = Names(f"a picture of the number {number:06d}" for number in range(100_000))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.1 * 100_000 * (30 + 8)
    assert names[-1] == "a picture of the number 099999" and names[1:3] == [names[1], names[2]]
    with pytest.raises(IndexError):
        names[100_000]


@pytest.mark.parametrize("layout", ["zip of a table", "texts beside", "shards", "saved"])
def test_readers_get_pictures_and_captions(layout: str, tmp_path: Path) -> None:
    found = opened(LAYOUTS[layout](tmp_path / "set"))
    again = pickle.loads(pickle.dumps(found))
    assert shown(again) == EXPECTED and again.fingerprint == found.fingerprint
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(shown, (again,)) == EXPECTED


# ---- captions if there are any


def test_captions_are_read_where_there_are_some(tmp_path: Path) -> None:
    both = open_pictures(LAYOUTS["texts beside"](tmp_path / "both"), captioned=None)
    assert both.captions[:] == CAPTIONS and both.class_names == ("a", "c")
    bare = open_pictures(written(tmp_path / "bare", pictures()), captioned=None)
    assert bare.captions is None and bare.class_names == ("a", "c")
    assert bare.fingerprint == both.uncaptioned.fingerprint


def test_a_class_folder_with_some_texts_is_told_and_read_by_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [*pictures(), ("a/0.txt", b"a caption")]
    found = open_pictures(written(tmp_path, files), captioned=None)
    assert found.captions is None and found.class_names == ("a", "c")
    assert "read without captions" in caplog.text and "a/1.png" in caplog.text


def test_no_image_of_a_class_is_lost_to_a_table_of_some(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some = ("captions.csv", csv_of([("file", "text"), ("a/0.png", "a caption")]))
    found = open_pictures(written(tmp_path / "classes", [*pictures(), some]), captioned=None)
    assert found.captions is None and len(found) == len(TOLD)
    assert "read without captions, as not every image has one: 4 are not listed" in caplog.text
    some = ("captions.csv", csv_of([("file", "text"), ("a_0.png", "a caption")]))
    found = open_pictures(written(tmp_path / "flat", [*pictures(FLAT), some]), captioned=None)
    assert found.captions[:] == ["a caption"]


# ---- training


@pytest.fixture
def make_text(make_config: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    """Builds a run that reads words."""
    words = WordText(tokens=8, words=50, width=16, layers=1, heads=2)

    def build(path: Path, **changes: object) -> RunConfig:
        with_classes = make_config(path)
        model = replace(with_classes.model, num_classes=0, text=words)
        data = replace(with_classes.data, **changes)
        return replace(with_classes, model=model, data=data, text=WordEncoder())

    return build


def test_a_run_on_text_reads_captions(tmp_path: Path, make_text) -> None:
    labelled = open_source(make_text(LAYOUTS["texts beside"](tmp_path / "classes")))
    flat = open_source(make_text(LAYOUTS["samples.json"](tmp_path / "flat")))
    assert isinstance(flat, ImageSource)
    assert list(flat.captions) == list(labelled.captions) == CAPTIONS
    assert (flat.labels.tolist(), flat.class_names) == ([0] * 5, ("captioned",))
    assert flat.fingerprint != labelled.fingerprint and flat.load(4, flip=False).shape == (1, 8, 8)
    named = open_source(make_text(two_fields(tmp_path / "named", "csv"), caption_field="mine"))
    assert list(named.captions) == CAPTIONS


def test_a_run_on_classes_reads_none(tmp_path: Path, make_config) -> None:
    source = open_source(make_config(written(tmp_path, TABLE)))
    assert source.captions is None and source.class_names == ("a", "c")


def test_pictures_with_neither_labels_nor_captions_are_refused(tmp_path: Path) -> None:
    loose = open_pictures(written(tmp_path, pictures(FLAT)), labelled=False)
    with pytest.raises(ConfigError, match="without labels or captions"):
        ImageSource(loose, channels=3, side=8)


def test_shards_and_tables_keep_labels_beside_captions(tmp_path: Path) -> None:
    files = [(name, content) for name, content in text_samples(range(5)) if name.endswith("jpg")]
    facts = [
        (f"{key}.json", f'{{"label": {number % 2}, "text": "n"}}'.encode())
        for number, (key, _) in enumerate(FLAT)
    ]
    found = opened(tar_of(tmp_path / "set.tar", [*files, *facts]))
    assert found.labels.tolist() == [0, 1, 0, 1, 0] and found.captions[:] == ["n"] * 5
    labelled = opened(parquet(tmp_path / "set", rows(label=[3, 2, 1, 0, 0])))
    assert labelled.labels.tolist() == [3, 2, 1, 0, 0] and labelled.captions[:] == CAPTIONS


def test_a_label_that_is_no_class_does_not_matter_beside_a_caption(tmp_path: Path) -> None:
    """Captioned shards carry all kinds of notes; a model that reads text needs no class."""
    members = json_samples("caption")
    dogs = [(name, change(content, label="dog")) for name, content in members]
    found = open_pictures(tar_of(tmp_path / "dogs.tar", dogs), labelled=False, captioned=True)
    plain = open_pictures(tar_of(tmp_path / "plain.tar", members), labelled=False, captioned=True)
    assert list(found.captions or ()) == list(plain.captions or ())
    with pytest.raises(DataError, match="has the label 'dog', which is no integer"):
        open_pictures(tmp_path / "dogs.tar")


def change(content: bytes, **more: str) -> bytes:
    """A member with more fields, if it is JSON."""
    if not content.startswith(b"{"):
        return content
    return json.dumps(json.loads(content) | more).encode()
