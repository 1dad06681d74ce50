"""Training from captions: what is hidden, what a run keeps of them, and what it goes on with."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from diffmoe.captions import Captions
from diffmoe.checkpoint import RunFolder, newest_checkpoint
from diffmoe.config import FeatureText, FolderData, RunConfig, ScenesData, T5Encoder
from diffmoe.data import Batch, ScenesSource, open_source, source_texts, stream
from diffmoe.errors import ConfigError, DataError
from diffmoe.training import train
from diffmoe.training.step import drop_conditions
from runs import changed, newest_tensors, run_config
from texts import text_run

CPU = torch.device("cpu")


def first_batch(config: RunConfig) -> tuple[Batch, ScenesSource]:
    source = open_source(config)
    assert isinstance(source, ScenesSource)
    texts = source_texts(config, source, CPU)
    return next(stream(config, source, None, texts, first=0, device=CPU)), source


def test_a_batch_holds_the_captions_of_its_images() -> None:
    config = text_run()
    batch, source = first_batch(config)
    texts = source_texts(config, source, CPU)
    assert batch.captions is not None and texts is not None
    wanted = texts.encode([source.captions[place] for place in batch.index])
    assert torch.equal(batch.captions.tokens, wanted.tokens)
    assert torch.equal(batch.captions.mask, wanted.mask)
    assert torch.equal(batch.x, torch.stack([source.load(place, False) for place in batch.index]))


def test_readers_beside_give_the_same_batches() -> None:
    one, _ = first_batch(text_run())
    other, _ = first_batch(text_run(machine__workers=1))
    assert isinstance(other.captions, Captions)
    assert all(torch.equal(a, b) for a, b in zip(one.captions, other.captions, strict=True))
    assert torch.equal(one.x, other.x)


def test_a_share_of_the_captions_is_hidden_and_the_rest_is_as_it_was() -> None:
    config = text_run(training__label_dropout=0.25, training__global_batch=64)
    batch, _ = first_batch(config)
    told = drop_conditions(config, batch)
    assert isinstance(told, Captions) and batch.captions is not None
    silent = ~told.mask.any(dim=1)
    assert 6 <= int(silent.sum()) <= 26  # of 64, 16 expected
    assert torch.equal(told.mask[~silent], batch.captions.mask[~silent])
    again = drop_conditions(config, batch)
    assert torch.equal(told.mask, again.mask)
    none = drop_conditions(changed(config, {"training.label_dropout": 0.0}), batch)
    assert torch.equal(none.mask, batch.captions.mask)


def test_a_run_keeps_its_words_and_some_captions(tmp_path: Path) -> None:
    folder = train(text_run(), tmp_path / "run", progress=False)
    source = ScenesSource(count=64)
    assert set(folder.captions) <= set(source.captions) and len(folder.captions) > 20
    assert {"a", "red", "circle"} <= set(folder.words) and len(folder.words) <= 94
    found = newest_checkpoint(folder.checkpoints)
    assert found is not None and found[1].trained_on["text"].startswith("words sha256:")


def test_a_resumed_run_is_the_undisturbed_one(tmp_path: Path) -> None:
    whole, parts = text_run(), tmp_path / "parts"
    train(whole, tmp_path / "whole", progress=False)
    train(changed(whole, {"loop.steps": 2}), parts, progress=False)
    train(whole, parts, progress=False)
    one, other = newest_tensors(tmp_path / "whole"), newest_tensors(parts)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    config, path = text_run(), tmp_path / "run"
    words = train(changed(config, {"loop.steps": 2}), path, progress=False).words
    path.joinpath("words.txt").write_text("\n".join([*words[1:], words[0]]) + "\n")
    with pytest.raises(ConfigError, match="the text encoder of this run changed"):
        train(config, path, progress=False)
    path.joinpath("words.txt").write_text("\n".join(words) + "\n")
    more = changed(config, {"data": ScenesData(count=64, seed=5)})
    with pytest.raises(ConfigError, match="another config"):
        train(more, path, progress=False)
    train(config, path, progress=False)
    assert RunFolder(path).words == words


def test_a_run_that_begins_anew_finds_its_words_anew(tmp_path: Path) -> None:
    """Those left by a job that was killed before its first checkpoint do not count."""
    path = tmp_path / "run"
    path.mkdir()
    RunFolder(path).claim(text_run())
    path.joinpath("words.txt").write_text("stale\n")
    assert "circle" in train(text_run(), path, progress=False).words


def test_captions_are_needed_and_not_too_long(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = changed(text_run().model.text, {"tokens": 3})
    train(text_run(model__text=text, loop__steps=2), tmp_path / "run", progress=False)
    assert "captions are longer than the 3 tokens that the model reads" in caplog.text
    assert "' is cut" in caplog.text
    strict = text_run(model__text=text, text__too_long="refuse")
    with pytest.raises(DataError, match=r"would be cut — shorten them, or set --text"):
        train(strict, tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigError, match=r"have no captions, and model.text reads some"):
        train(
            text_run(
                data=run_config().data,
                model__input_size=8,
                model__channels=1,
                model__out_channels=1,
            ),
            tmp_path / "third",
            progress=False,
        )


def test_captions_that_say_nothing_at_all_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
        tmp_path.joinpath(f"{name}.txt").write_text(" \n")
    config = text_run(data=FolderData(path=tmp_path, flip=False))
    with pytest.raises(DataError, match=r"all 2 captions are empty"):
        source_texts(config, open_source(config), "cpu")
    tmp_path.joinpath("b.txt").write_text("a cat")
    assert source_texts(config, open_source(config), "cpu") is not None


def test_classes_and_captions_are_not_mixed_up() -> None:
    with pytest.raises(ConfigError, match=r"num_classes 10 does not go with model\.text"):
        text_run(model__num_classes=10)
    with pytest.raises(ConfigError, match=r"num_classes 0 is not positive"):
        run_config(model__num_classes=0)
    with pytest.raises(ConfigError, match=r"text of kind t5 is not what model.text of kind words"):
        text_run(text=T5Encoder())
    with pytest.raises(ConfigError, match=r"of kind words is not what model.text of kind features"):
        text_run(model__text=FeatureText(tokens=4, width=8))
    with pytest.raises(ConfigError, match=r"width 9 is not a multiple of model.text.heads 2"):
        text_run(model__text=changed(text_run().model.text, {"width": 9}))
    with pytest.raises(ConfigError, match=r"sampling.negative blur would change nothing"):
        run_config(sampling__negative="blur", sampling__guidance=2.0)


def test_a_run_of_classes_trains_on_scenes_by_their_tasks(tmp_path: Path) -> None:
    config = text_run()
    classes = changed(
        config,
        {
            "model": changed(config.model, {"text": run_config().model.text, "num_classes": 6}),
            "text": run_config().text,
        },
    )
    folder = train(classes, tmp_path / "run", progress=False)
    assert folder.class_names[0] == "single_object" and not folder.words


def test_a_run_goes_on_with_its_own_words(tmp_path: Path) -> None:
    """Captions that are accepted may have words that the table lacks: its rows stay as they are."""
    data, path = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for number in range(8):
        Image.new("RGB", (32, 32), (30 * number, 0, 0)).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text("a red square")
    config = text_run(data=FolderData(path=data, flip=False))
    words = train(changed(config, {"loop.steps": 2}), path, progress=False).words
    assert set(words) == {"a", "red", "square"}
    for number in range(8):
        (data / f"{number}.txt").write_text("a zebra zebra zebra")
    with pytest.raises(ConfigError, match="the data of this run changed"):
        train(config, path, progress=False)
    folder = train(config, path, progress=False, accept_new_data=True)
    assert folder.words == words and folder.captions == ("a zebra zebra zebra",)
