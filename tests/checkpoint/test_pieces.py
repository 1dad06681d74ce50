"""Several processes write a checkpoint together and any others read it, or none of them does."""

import errno
import hashlib
import json
import math
import os
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import children
from diffmoe.checkpoint import Content, Piece, files, joint, newest_checkpoint, read_part, verify
from diffmoe.checkpoint import write as write_checkpoint
from diffmoe.checkpoint.manifest import (
    Manifest,
    cut_text,
    piece_file,
    read_manifest,
    write_manifest,
)
from diffmoe.checkpoint.pieces import dtype_name
from diffmoe.config import to_dict
from diffmoe.errors import StorageError
from diffmoe.experiments.selftest.children import Answer, begin
from diffmoe.model import empty_model
from diffmoe.presets import preset

PATIENCE = timedelta(seconds=30)
Parts = dict[str, dict[str, Tensor | Piece]]
Box = tuple[tuple[int, ...], tuple[int, ...]]  # where it begins, and how far it goes


# ---- real processes


@contextmanager
def group_of(store: Path, rank: int, size: int) -> Iterator[dist.ProcessGroup]:
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(store), size), rank=rank, world_size=size, timeout=PATIENCE
    )
    dist.barrier()
    before = open_files()
    yield dist.group.WORLD
    assert open_files() == before, "files were left open"
    dist.destroy_process_group()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def together(
    folder: Path, size: int, work: Callable[[int, dist.ProcessGroup], object]
) -> list[Answer]:
    """What `work(rank, group)` comes to in each of `size` processes that run it at once."""
    folder.mkdir(exist_ok=True)
    store = folder / f"meet-{os.urandom(4).hex()}"

    def of(rank: int) -> Callable[[], object]:
        def member() -> object:
            warnings.simplefilter("error")
            with group_of(store, rank, size) as group:
                return work(rank, group)

        return member

    started = [begin(of(rank)) for rank in range(size)]
    answers = [child.answer(40) for child in started]
    store.unlink(missing_ok=True)
    return answers


def done(answers: list[Answer]) -> list[Any]:
    assert all(not each.error and not each.signal for each in answers), answers
    return [each.value for each in answers]


# ---- what is written


def whole(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Tensors of many shapes and types."""
    numbers = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=numbers, dtype=torch.float64)

    return {
        "model": {
            "dense": drawn(7, 6).float(),
            "experts": drawn(3, 8, 5).float(),
            "bias": drawn(2),
            "half": drawn(9, 2).bfloat16(),
            "count": torch.tensor(12345678901 + seed),
            "mask": drawn(5) > 0,
            "none": torch.zeros(0, 4),
        },
        "optimizer": {f"{n}/exp_avg": drawn(7, 6).float() for n in range(4)},
        "window": {},
    }


def chunk(shape: tuple[int, ...], axis: int, number: int, of: int) -> Box:
    """What FSDP gives to a process: chunks of one size, the last smaller, some empty."""
    size = math.ceil(shape[axis] / of)
    begin_at = min(number * size, shape[axis])
    offsets = tuple(begin_at if n == axis else 0 for n in range(len(shape)))
    end = min(begin_at + size, shape[axis])
    return offsets, tuple(end - begin_at if n == axis else s for n, s in enumerate(shape))


def cut_out(tensor: Tensor, box: Box) -> Tensor:
    return tensor[tuple(slice(a, a + n) for a, n in zip(*box, strict=True))]


def box_of(tensor: Tensor, number: int, of: int) -> Box:
    """Stacked experts are cut across the second axis, as there are fewer of them than processes."""
    return chunk(tuple(tensor.shape), 1 if tensor.dim() == 3 else 0, number, of)


def held_by(rank: int, size: int, shards: int, seed: int = 0) -> Parts:
    """The pieces of a process where `shards` of them share one copy."""
    return {
        part: {
            name: Piece(cut_out(t, box := box_of(t, rank % shards, shards)), box[0], tuple(t.shape))
            if t.dim() and shards > 1
            else t
            for name, t in tensors.items()
        }
        for part, tensors in whole(seed).items()
    }


def content(parts: Parts, step: int = 4) -> Content:
    return Content(step, 16 * step, parts, state={"bad_steps": step})


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value)
        for name, value in wanted.items()
    )


def left_in(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir() if not path.name.startswith("meet"))


CUTS = [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Path]:
    """A checkpoint by each number of processes, and by each number that share a copy."""
    home = tmp_path_factory.mktemp("written")

    def work(size: int) -> Callable[[int, dist.ProcessGroup], object]:
        def write_all(rank: int, group: dist.ProcessGroup) -> list[str]:
            return [
                str(write_checkpoint(home / f"{n}-{k}", content(held_by(rank, n, k)), group))
                for n, k in CUTS
                if n == size
            ]

        return write_all

    paths: dict[tuple[int, int], Path] = {(1, 1): write_checkpoint(home, content(dict(whole())))}
    for size in (2, 4):
        answers = done(together(home, size, work(size)))
        assert all(each == answers[0] for each in answers)
        paths |= zip([cut for cut in CUTS if cut[0] == size], map(Path, answers[0]), strict=True)
    return paths


@pytest.mark.parametrize("cut", [(1, 1), *CUTS], ids=lambda cut: f"{cut[0]}-by-{cut[1]}")
def test_what_some_processes_wrote_any_others_read_bit_for_bit(
    cut: tuple[int, int], written: dict[tuple[int, int], Path]
) -> None:
    path = written[cut]
    assert verify(path).state == {"bad_steps": 4} and left_in(path.parent)[-1] == path.name
    for part, tensors in whole().items():
        assert same(read_part(path, part), tensors)
        for size in (1, 2, 4):
            for rank in range(size):
                boxes = {n: box_of(t, rank, size) for n, t in tensors.items() if t.dim()}
                wanted = {n: cut_out(t, boxes[n]) if n in boxes else t for n, t in tensors.items()}
                assert same(read_part(path, part, boxes), wanted)


def test_one_process_writes_the_same_bytes_whether_it_calls_a_tensor_a_piece(
    written: dict[tuple[int, int], Path], tmp_path: Path
) -> None:
    pieces: Parts = {
        part: {n: Piece(t, (0,) * t.dim(), tuple(t.shape)) for n, t in tensors.items()}
        for part, tensors in whole().items()
    }
    again = write_checkpoint(tmp_path, content(pieces))
    for file in written[1, 1].iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()
    assert "cuts" not in json.loads((again / "manifest.json").read_text())


def test_one_process_does_not_write_a_piece_as_the_whole(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"one process has \(7, 3\) of a, which is \(7, 6\)"):
        write_checkpoint(
            tmp_path, content({"model": {"a": Piece(torch.ones(7, 3), (0, 0), (7, 6))}})
        )
    assert not left_in(tmp_path)


def test_only_tensors_and_the_manifest_lie_on_the_disk(
    written: dict[tuple[int, int], Path],
) -> None:
    for (size, _), path in written.items():
        manifest = verify(path)
        assert {file.name for file in path.iterdir()} == {*manifest.files, "manifest.json"}
        for name in manifest.files:
            assert size == 1 or name.endswith(f"-of-{size:05d}.safetensors")
            assert load_file(path / name) or size == 1, "no process writes an empty file"
        for file in path.iterdir():
            assert file.stat().st_mode & 0o777 == 0o644


def test_each_piece_is_written_once_and_all_write_about_as_much(tmp_path: Path) -> None:
    sizes = [64, 3, 200, 50, 50, 128, 7, 90, 130, 31]
    tensors = {f"{n}": torch.full((size, 8), float(n)) for n, size in enumerate(sizes)}

    def work(rank: int, group: dist.ProcessGroup) -> None:
        write_checkpoint(tmp_path / "plain", content({"model": dict(tensors)}), group)
        pieces: dict[str, Tensor | Piece] = {}
        for name, tensor in tensors.items():
            box = box_of(tensor, rank % 2, 2)
            pieces[name] = Piece(cut_out(tensor, box), box[0], tuple(tensor.shape))
        write_checkpoint(tmp_path / "hybrid", content({"model": pieces}), group)

    done(together(tmp_path, 4, work))
    for kind in ("plain", "hybrid"):
        path = tmp_path / kind / "step-00000004"
        held = [load_file(file) for file in sorted(path.glob("*.safetensors"))]
        amounts = [sum(each.nbytes for each in own.values()) for own in held]
        assert len(held) == 4 and sum(amounts) == sum(t.nbytes for t in tensors.values())
        assert max(amounts) <= 1.1 * min(amounts), amounts
        assert same(read_part(path, "model"), tensors)


def test_a_process_without_anything_to_write_writes_no_file(tmp_path: Path) -> None:
    def work(rank: int, group: dist.ProcessGroup) -> None:
        write_checkpoint(tmp_path, content({"model": {"a": torch.ones(3)}}), group)

    done(together(tmp_path, 2, work))
    assert list(verify(tmp_path / "step-00000004").files) == ["model-00000-of-00002.safetensors"]


def test_the_first_process_alone_looks_whether_the_checkpoint_is_there(tmp_path: Path) -> None:
    def work(rank: int, group: dist.ProcessGroup) -> str:
        def unseen(path: Path) -> None:
            raise AssertionError("only the first may look")

        if rank:
            joint.verify = unseen  # type: ignore[attr-defined, assignment]
        path = write_checkpoint(tmp_path, content(held_by(rank, 2, 2)), group)
        before = (path / "manifest.json").stat().st_ino
        dist.barrier(group)
        write_checkpoint(tmp_path, content(held_by(rank, 2, 2)), group)
        assert (path / "manifest.json").stat().st_ino == before
        dist.barrier(group)
        if rank:
            (path / "model-00000-of-00002.safetensors").write_bytes(b"damaged")
        dist.barrier(group)
        return str(write_checkpoint(tmp_path, content(held_by(rank, 2, 2)), group))

    done(together(tmp_path, 2, work))
    assert left_in(tmp_path) == ["step-00000004"]
    assert same(read_part(tmp_path / "step-00000004", "model"), whole()["model"])


# ---- one fails: all give up


def failing(
    tmp_path: Path, size: int, prepare: Callable[[int], object], held: Callable[[int], Parts]
) -> list[Answer]:
    """What the processes say of a save that fails; the one before it has to stay, and alone."""

    def work(rank: int, group: dist.ProcessGroup) -> None:
        write_checkpoint(tmp_path, content(held_by(rank, size, size), 2), group)
        prepare(rank)
        try:
            write_checkpoint(tmp_path, content(held(rank), 4), group)
        finally:
            dist.barrier(group)  # they live on, and their group with them

    answers = together(tmp_path, size, work)
    assert left_in(tmp_path) == ["step-00000002"]
    found = newest_checkpoint(tmp_path)
    assert found is not None and found[1].step == 2
    assert same(read_part(found[0], "model"), whole()["model"])
    return answers


def large(rank: int, size: int) -> Parts:
    return {"model": {"a": Piece(torch.ones(1000, 4), (1000 * rank, 0), (1000 * size, 4))}}


@pytest.mark.parametrize(("size", "broken"), [(2, 0), (2, 1), (4, 2)])
def test_a_full_disk_of_one_process_is_told_by_all(size: int, broken: int, tmp_path: Path) -> None:
    def starve(rank: int) -> None:
        if rank == broken:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    answers = failing(tmp_path, size, starve, lambda rank: large(rank, size))
    own = f"cannot write model-{broken:05d}-of-{size:05d}.safetensors (Error while serializing: "
    for rank, each in enumerate(answers):
        assert (each.error, each.exit_code) == ("StorageError", 5), answers
        word = own if rank == broken else f"process {broken} of {size} could not save: {own}"
        assert each.said.startswith(word) and "File too large" in each.said, each.said
        assert len(each.said.splitlines()) == 1


@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_of_one_process_is_its_own_and_is_named_by_the_other(
    broken: int, tmp_path: Path
) -> None:
    class OddError(Exception):  # one that cannot be sent
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    def explode(*_: object) -> None:
        raise OddError(1, 2)

    def prepare(rank: int) -> None:
        if rank == broken:
            joint.save_file = explode  # type: ignore[attr-defined, assignment]

    answers = failing(tmp_path, 2, prepare, lambda rank: large(rank, 2))
    assert (answers[broken].error, answers[broken].said) == ("OddError", "1 and 2")
    other = answers[1 - broken]
    assert (other.error, other.exit_code) == ("PeerError", 6)
    assert other.said == f"process {broken} of 2 could not save: OddError: 1 and 2"


@pytest.mark.parametrize("place", ["write_manifest", "new_folder", "rename"])
def test_what_fails_on_the_first_process_alone_is_told_by_all(place: str, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def prepare(rank: int) -> None:
        if rank == 0 and place == "rename":
            files._exchange = full  # type: ignore[attr-defined, assignment]
        elif rank == 0:
            where = {"write_manifest": (files, "write_file"), "new_folder": (Path, "mkdir")}[place]
            setattr(*where, full)

    answers = failing(tmp_path, 2, prepare, lambda rank: large(rank, 2))
    assert [each.error for each in answers] == ["StorageError"] * 2, answers
    assert "No space left on device" in answers[0].said
    assert answers[1].said == f"process 0 of 2 could not save: {answers[0].said}"


def test_what_a_process_still_writes_after_the_others_gave_up_is_not_left(tmp_path: Path) -> None:
    def explode(*_: object) -> None:
        raise ValueError

    def prepare(rank: int) -> None:
        if rank:
            joint.save_file = explode  # type: ignore[attr-defined, assignment]
            return
        honest, (sound, *_) = os.rmdir, tmp_path.glob("step-*")

        def amid_removal(*words: Any, **more: Any) -> None:
            for folder in tmp_path.glob(".tmp-step-00000004-*"):
                shutil.copy(sound / "manifest.json", folder / "late")
            honest(*words, **more)

        os.rmdir = amid_removal  # type: ignore[assignment]

    answers = failing(tmp_path, 2, prepare, lambda rank: large(rank, 2))
    assert [each.error for each in answers] == ["PeerError", "ValueError"]


def two(*pieces: Piece) -> Callable[[int], Parts]:
    return lambda rank: {"model": {"a": pieces[rank]}}


WRONG: dict[str, tuple[Callable[[int], Parts], str]] = {
    "a gap": (
        two(Piece(torch.ones(3), (0,), (6,)), Piece(torch.ones(2), (3,), (6,))),
        "do not mak",
    ),
    "overlap": (
        two(Piece(torch.ones(3), (0,), (6,)), Piece(torch.ones(3), (2,), (6,))),
        "do not m",
    ),
    "shapes": (
        two(Piece(torch.ones(3), (0,), (6,)), Piece(torch.ones(3), (3,), (7,))),
        "processes 0 and 1 do not hold the same model/a",
    ),
    "types": (
        two(Piece(torch.ones(3), (0,), (6,)), Piece(torch.ones(3).double(), (3,), (6,))),
        "processes 0 and 1 do not hold the same model/a",
    ),
    "copies": (
        two(Piece(torch.ones(3), (0,), (6,)), Piece(torch.ones(2), (0,), (6,))),
        "processes 0 and 1 do not hold the same model/a",
    ),
    "outside": (
        two(Piece(torch.ones(3), (0,), (6,)), Piece(torch.ones(3), (4,), (6,))),
        "no piece of (3,) at (4,) lies in model/a, which is (6,)",
    ),
    "axes": (
        two(Piece(torch.ones(3), (0,), (6,)), Piece(torch.ones(3, 1), (3,), (6,))),
        "no piece of (3, 1) at (3,) lies in model/a, which is (6,)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_pieces_that_do_not_make_the_tensors_are_not_written(name: str, tmp_path: Path) -> None:
    held, said = WRONG[name]
    for each in failing(tmp_path, 2, lambda rank: None, held):
        assert each.error == "StorageError" and said in each.said, each


def test_processes_that_share_no_folder_say_so(tmp_path: Path) -> None:
    def work(rank: int, group: dist.ProcessGroup) -> None:
        write_checkpoint(tmp_path / f"machine-{rank}", content(large(rank, 2)), group)

    answers = together(tmp_path, 2, work)
    assert [each.error for each in answers] == ["StorageError"] * 2
    assert "process 1 does not see the folder that process 0 has made" in answers[1].said
    assert "put the run on a file system that all machines share" in answers[0].said
    assert not left_in(tmp_path / "machine-0") and left_in(tmp_path) == ["machine-0"]


PLACES = {
    "amid its tensors": (joint, "save_file"),
    "before its digest": (joint, "digest"),
    "before the manifest": (joint, "write_manifest"),
    "before the rename": (files, "_exchange"),
}


@pytest.mark.parametrize(
    ("place", "victim", "size"),
    [
        ("amid its tensors", 1, 2),
        ("amid its tensors", 0, 4),
        ("before its digest", 3, 4),
        ("before the manifest", 0, 2),
        ("before the rename", 0, 4),
    ],
)
def test_a_killed_process_leaves_the_checkpoint_before_and_the_others_notice(
    place: str, victim: int, size: int, tmp_path: Path
) -> None:
    def work(rank: int, group: dist.ProcessGroup) -> None:
        write_checkpoint(tmp_path, content(held_by(rank, size, size), 2), group)
        if rank == victim:
            setattr(*PLACES[place], lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        write_checkpoint(tmp_path, content(large(rank, size), 4), group)

    answers = together(tmp_path, size, work)
    assert answers[victim].signal == signal.SIGKILL
    others = [each for rank, each in enumerate(answers) if rank != victim]
    assert all(each.error == "RuntimeError" for each in others), answers
    assert all("gloo" in each.said and "Timed out" not in each.said for each in others), answers
    found = newest_checkpoint(tmp_path)
    assert found is not None and found[1].step == 2
    assert same(read_part(found[0], "model"), whole()["model"])
    if victim:  # the first has tidied up
        assert left_in(tmp_path) == ["step-00000002"]
    files.sweep(tmp_path)
    assert left_in(tmp_path) == ["step-00000002"]


# ---- what was damaged is refused


def sealed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit a manifest and give it, and each file, the digest that a forger would."""
    text = json.loads((path / "manifest.json").read_text())
    del text["sha256"]
    for name, facts in text["files"].items():
        if (path / name).exists():
            facts["sha256"] = hashlib.sha256((path / name).read_bytes()).hexdigest()
    change(text)
    own = hashlib.sha256(json.dumps(text).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps({**text, "sha256": own}, indent=2) + "\n")


def refused(path: Path) -> bool:
    try:
        for part in verify(path).tensors:
            read_part(path, part)
    except StorageError as error:
        return len(str(error).splitlines()) == 1
    return False


@pytest.fixture
def sound(written: dict[tuple[int, int], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(written[4, 4], tmp_path / "step-00000004"))


def test_a_missing_an_extra_and_a_damaged_file_are_refused(sound: Path) -> None:
    assert not refused(sound)
    for file in sorted(sound.glob("*.safetensors")):
        before = file.read_bytes()
        file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert refused(sound)
        file.unlink()
        assert refused(sound)
        file.write_bytes(before)
        shutil.copy(file, sound / "model-00004-of-00004.safetensors")
        assert refused(sound)
        (sound / "model-00004-of-00004.safetensors").unlink()
    assert not refused(sound)


def other_pieces(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of one file."""
    file = path / "model-00001-of-00004.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


PIECES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "less": lambda t: t.pop("dense"),
    "more": lambda t: t.update(more=torch.ones(1)),
    "smaller": lambda t: t.update(dense=t["dense"][:1].clone()),
    "larger": lambda t: t.update(dense=torch.ones(3, 6)),
    "other axes": lambda t: t.update(dense=t["dense"].flatten()),
    "turned": lambda t: t.update(dense=t["dense"].T.contiguous()),
    "other type": lambda t: t.update(dense=t["dense"].double()),
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces_unlike_their_manifest_are_refused_whole_and_in_boxes(
    name: str, sound: Path
) -> None:
    other_pieces(sound, PIECES[name])
    sealed(sound, lambda _: None)
    verify(sound)
    with pytest.raises(StorageError, match="not as its manifest says"):
        read_part(sound, "model")
    with pytest.raises(StorageError, match="not as its manifest says"):  # though not of that file
        read_part(sound, "model", {"dense": ((6, 0), (1, 6))})


CUT_EDITS: dict[str, Callable[[str], str]] = {
    "a piece less": lambda cut: cut.rpartition(" ")[0],
    "no piece": lambda cut: cut.partition(" ")[0],
    "empty": lambda cut: "",
    "twice": lambda cut: f"{cut} {cut.split(' ')[-1]}",
    "turned round": lambda cut: " ".join([cut[0], *cut.split(" ")[:0:-1]]),
    "of other processes": lambda cut: f"5{cut[1:]}",
    "of fewer": lambda cut: f"1{cut[1:]}",
    "padded": lambda cut: cut.replace(" 0:", " 00:"),
    "signed": lambda cut: cut.replace(" 0:", " +0:"),
    "other digits": lambda cut: cut.replace(" 0:", " \u0660:"),
    "two spaces": lambda cut: cut.replace(" ", "  "),
    "below nothing": lambda cut: cut.replace(" 0:", " -1:"),
    "an axis more": lambda cut: cut.replace(":", ":0,"),
    "an axis less": lambda cut: " ".join(w.rpartition(",")[0] or w for w in cut.split(" ")),
    "shifted": lambda cut: cut.replace(":0", ":1", 1),
    "no number": lambda cut: cut.replace(":0", ":x", 1),
    "beyond counting": lambda cut: cut.replace(":0", ":" + "9" * 5000, 1),
}


@pytest.mark.parametrize("name", CUT_EDITS)
def test_a_forged_cut_is_refused(name: str, sound: Path) -> None:
    cuts = read_manifest(sound).cuts
    wide = next(key for key, cut in cuts.items() if "," in cut and cut.count(":") == 4)
    sealed(sound, lambda text: text["cuts"].update({wide: CUT_EDITS[name](cuts[wide])}))
    assert refused(sound)


FORGERIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no cuts": lambda m: m.pop("cuts"),
    "cuts empty": lambda m: m.update(cuts={}),
    "cuts list": lambda m: m.update(cuts=[]),
    "cuts null": lambda m: m.update(cuts=None),
    "cut null": lambda m: m.update(cuts=dict.fromkeys(m["cuts"])),
    "cut list": lambda m: m.update(cuts={key: [] for key in m["cuts"]}),
    "cut of another name": lambda m: m["tensors"]["model"]["dense"].__setitem__(2, "x"),
    "cut of a number": lambda m: m["tensors"]["model"]["dense"].__setitem__(2, 0),
    "files of nobody": lambda m: m.update(
        files={name: facts for name, facts in m["files"].items() if "00003" not in name}
    ),
    "another shape": lambda m: m["tensors"]["model"]["dense"].__setitem__(1, [6, 7]),
    "a huge shape": lambda m: m["tensors"]["model"]["dense"].__setitem__(1, [2**40, 6]),
    "another type": lambda m: m["tensors"]["model"]["dense"].__setitem__(0, "float16"),
    "no type": lambda m: m["tensors"]["model"]["dense"].__setitem__(0, "load"),
    "a tensor less": lambda m: m["tensors"]["model"].pop("dense"),
    "a tensor more": lambda m: m["tensors"]["model"].update(more=m["tensors"]["model"]["dense"]),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_manifest_of_pieces_is_refused(name: str, sound: Path) -> None:
    sealed(sound, FORGERIES[name])
    assert refused(sound)


def test_a_cut_of_a_file_that_is_neither_listed_nor_there_is_refused(sound: Path) -> None:
    (sound / "model-00003-of-00004.safetensors").unlink()
    sealed(sound, lambda m: m["files"].pop("model-00003-of-00004.safetensors"))
    with pytest.raises(StorageError, match="manifest is damaged"):
        read_manifest(sound)


def numbers_of(path: Path) -> list[tuple[str, int, int]]:
    """Every number of every cut that has elements to place: its cut, its word, its axis."""
    manifest = read_manifest(path)
    used = {
        row[2]: row[1]
        for tensors in manifest.tensors.values()
        for row in tensors.values()
        if math.prod(row[1])
    }
    return [
        (cut, word, axis)
        for cut, shape in used.items()
        for word in range(manifest.cuts[cut].count(":"))
        for axis in range(len(shape))
    ]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_place_that_is_changed_is_refused(
    written: dict[tuple[int, int], Path], tmp_path: Path, data: st.DataObject
) -> None:
    """Pieces of one size might change places: one number alone makes a gap and an overlap."""
    source = written[data.draw(st.sampled_from(CUTS))]
    cut, word, axis = data.draw(st.sampled_from(numbers_of(source)))
    change = data.draw(st.integers(-8, 8).filter(bool))

    def edit(text: dict[str, Any]) -> None:
        head, *words = text["cuts"][cut].split(" ")
        process, _, place = words[word].partition(":")
        found = [int(n) for n in place.split(",")]
        found[axis] += change
        words[word] = f"{process}:{','.join(map(str, found))}"
        text["cuts"][cut] = " ".join([head, *words])

    path = Path(shutil.copytree(source, tmp_path / os.urandom(4).hex()))
    sealed(path, edit)
    assert refused(path)
    shutil.rmtree(path)


# ---- boxes


def test_boxes_that_the_checkpoint_has_not_are_refused(sound: Path) -> None:
    for box in [((0, 0), (8, 6)), ((-1, 0), (1, 6)), ((0,), (7,)), ((6, 0), (2, 6))]:
        with pytest.raises(StorageError, match=r"has dense of shape \(7, 6\), in which no"):
            read_part(sound, "model", {"dense": box})
    with pytest.raises(StorageError, match="lacks other"):
        read_part(sound, "model", {"other": ((0,), (1,))})


def test_an_empty_box_has_type_and_axes(sound: Path) -> None:
    found = read_part(sound, "model", {"half": ((9, 0), (0, 2))})["half"]
    assert found.shape == (0, 2) and found.dtype == torch.bfloat16


def halves(draw: st.DrawFn, box: Box, depth: int) -> list[Box]:
    """A box cut at random, and its halves again."""
    offsets, sizes = box
    axes = [n for n, size in enumerate(sizes) if size > 1]
    if not depth or not axes or draw(st.integers(0, 4)) == 0:
        return [box]
    axis = draw(st.sampled_from(axes))
    at = draw(st.integers(1, sizes[axis] - 1))
    low = tuple(at if n == axis else size for n, size in enumerate(sizes))
    high = tuple(size - at if n == axis else size for n, size in enumerate(sizes))
    moved = tuple(offset + at if n == axis else offset for n, offset in enumerate(offsets))
    return halves(draw, (offsets, low), depth - 1) + halves(draw, (moved, high), depth - 1)


@st.composite
def cuts_and_boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box], Box]:
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=3)))
    pieces = halves(draw, ((0,) * len(shape), shape), 4)
    begins = tuple(draw(st.integers(0, size)) for size in shape)
    sizes = tuple(draw(st.integers(0, n - a)) for a, n in zip(begins, shape, strict=True))
    return shape, draw(st.permutations(pieces)), (begins, sizes)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts_and_boxes())
def test_a_box_is_that_of_the_whole_however_it_was_cut(
    tmp_path: Path, case: tuple[tuple[int, ...], list[Box], Box]
) -> None:
    shape, pieces, box = case
    tensor = torch.arange(float(math.prod(shape))).view(shape)
    path = tmp_path / os.urandom(4).hex()
    path.mkdir()
    listed: dict[str, dict[str, str | int]] = {}
    for number, piece in enumerate(pieces):
        name = piece_file("model", number, len(pieces))
        save_file({"a": cut_out(tensor, piece).contiguous()}, path / name)
        listed[name] = {"sha256": files.digest(path / name), "bytes": (path / name).stat().st_size}
    cut = cut_text(len(pieces), {number: piece[0] for number, piece in enumerate(pieces)})
    rows: dict[str, dict[str, list[Any]]] = {
        "model": {"a": [dtype_name(tensor.dtype), list(shape), "0"]}
    }
    write_manifest(path, Manifest(2, 1, 1, "", "", {}, {}, {}, rows, listed, {"0": cut}))
    verify(path)
    assert torch.equal(read_part(path, "model")["a"], tensor)
    assert torch.equal(read_part(path, "model", {"a": box})["a"], cut_out(tensor, box))
    shutil.rmtree(path)


def test_a_box_takes_the_memory_of_a_box(tmp_path: Path) -> None:
    tensor = torch.zeros(1 << 15, 1 << 10)  # 128 MiB
    path = write_checkpoint(tmp_path, content({"model": {"a": tensor}}))

    def grown() -> list[float]:
        def peak() -> float:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        path_of_all = read_part(path, "model", {"a": ((5, 0), (1, 1))})  # what reading itself takes
        before = peak()
        found = read_part(path, "model", {"a": ((1000, 0), (1 << 12, 1 << 10))})["a"]
        return [peak() - before, found.untyped_storage().nbytes() / 2**20, len(path_of_all)]

    del tensor
    taken, stored, _ = children.outcome(grown)
    assert stored == 16 and taken < 64, taken


# ---- a thousand processes


@pytest.mark.parametrize("shards", [1024, 64])
def test_the_manifest_of_the_largest_model_on_1024_processes_is_read(
    shards: int, tmp_path: Path
) -> None:
    config, size = preset("diffmoe-xl-e16-flow"), 1024
    shapes = [tuple(value.shape) for value in empty_model(config.model).state_dict().values()]
    cuts: dict[str, str] = {}

    @cache
    def cut(copy: int, shape: tuple[int, ...]) -> str:
        axis = 1 if len(shape) == 3 and shape[0] < shards else 0
        boxes = [chunk(shape, axis, n, shards) if shape else ((), ()) for n in range(shards)]
        full = [n for n, box in enumerate(boxes) if math.prod(box[1])] if shape else [0]
        text = cut_text(size, {copy * shards + n: boxes[n][0] for n in full})
        return cuts.setdefault(text, str(len(cuts)))

    def row(number: int, shape: tuple[int, ...]) -> list[Any]:
        return ["float32", list(shape), cut(number % (size // shards), shape)]

    rows = {
        part: {
            f"blocks.{n}.of_a_long_name": row(n, shape) for n, shape in enumerate(shapes * times)
        }
        for part, times in {"model": 1, "ema": 1, "optimizer": 3}.items()
    }
    facts: dict[str, str | int] = {"sha256": "0" * 64, "bytes": 10**10}
    listed = {piece_file(part, n, size): facts for part in rows for n in range(size)}
    named = {name: text for text, name in cuts.items()}
    whole_run = to_dict(config)
    manifest = Manifest(2, 10**7, 10**10, "", "", whole_run, {}, {}, rows, listed, named)
    write_manifest(tmp_path, manifest)
    print(f"{(tmp_path / 'manifest.json').stat().st_size} bytes, {len(cuts)} cuts")
    assert read_manifest(tmp_path) == manifest


def test_a_manifest_that_nobody_would_read_is_not_written(tmp_path: Path) -> None:
    rows: dict[str, dict[str, list[Any]]] = {"model": {"a" * (2 << 20): ["float32", [1], {}]}}
    with pytest.raises(StorageError, match="so many pieces that their manifest has"):
        write_manifest(tmp_path, Manifest(2, 1, 1, "", "", {}, {}, {}, rows))
    assert not left_in(tmp_path)
