"""Images of scenes against their prompts: GenEval's score by task, from a judge by rule."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffmoe.checkpoint import RunFolder, new_files
from diffmoe.config import RunConfig, SamplingConfig, ScenesData
from diffmoe.data import make_prompts
from diffmoe.errors import ConfigError, StorageError
from diffmoe.evaluation import TaskScore, TaskTable, Verdict, judge_pictures, tabulate
from diffmoe.experiments.evaluation.gallery import Gallery, open_gallery
from diffmoe.experiments.evaluation.grid import GRID_MARK, is_grid, verdict_grid
from diffmoe.experiments.evaluation.work import FORMAT
from diffmoe.experiments.evaluation.written import Evaluated, content_of, plain, refuse_foreign
from diffmoe.experiments.metadata import asked_of_metadata
from diffmoe.experiments.samples import draw_samples
from diffmoe.sampling import refuse_unwritable

__all__ = ["draw_splits", "judged", "refuse_of_judge"]

_COUNT, _EACH = 600, 4  # images of a split, of a prompt
_SPLITS = ("validation", "held_out")
_MOST = 10**6  # images of a split
_RULES = {"geneval": False, "strict": True}  # tables, and whether a thing too many is wrong
_VERSIONS = ("diffmoe", "numpy", "scipy", "pillow")  # that a verdict may depend on

Verdicts = Mapping[str, list[tuple[str, Verdict]]]  # of each table the images by name


def refuse_of_judge(
    config: RunConfig | None, given: bool, count: int | None, out: Path | None
) -> None:
    """Raise ConfigError for what the judge has no use for, or a run that is not of scenes.

    `given` tells whether a reference, a crop or weights are. Raises StorageError if `out` is of
    something else, or cannot be written.
    """
    _versions()
    if given:
        raise ConfigError(
            "the judge compares images with their prompts, by rule",
            remedy="leave out --reference, --crop and --network-weights",
        )
    if config is None and count is not None:
        raise ConfigError(
            "all images of the folder are judged", remedy="leave out --count, which is for a run"
        )
    scenes = config is None or (isinstance(config.data, ScenesData) and config.model.reads_text)
    if not scenes:
        raise ConfigError(
            "the judge reads pictures of scenes only, and the run draws others",
            remedy="choose another --network",
        )
    if out is not None:
        _refuse_place(out)
        refuse_unwritable(out.parent, out.name)


def draw_splits(
    path: Path,
    count: int | None,
    settings: SamplingConfig,
    first_seed: int,
    device: str,
    progress: bool,
) -> dict[str, Gallery]:
    """Images of prompts of each split: `count` of them, less what makes tasks and prompts unequal.

    What is drawn already is not drawn again. Raises ConfigError if there are too few.
    """
    found = {}
    for split in _SPLITS:
        each = _prompts_of_a_task(_COUNT if count is None else count, split)
        lines = [json.dumps(prompt.metadata) for prompt in make_prompts(each, split=split)]
        asked = asked_of_metadata(lines, _EACH, first_seed)
        drawn = draw_samples(
            path,
            asked.labels,
            asked.seeds,
            settings=settings,
            prompts=asked.prompts,
            law=f"prompts of {split}",
            format=asked.format,
            device=device,
            progress=progress,
        )
        found[split] = open_gallery(drawn.path)
    return found


def _prompts_of_a_task(count: int, split: str) -> int:
    tasks = max(len(make_prompts(1, split=each)) for each in _SPLITS)
    if not _EACH * tasks <= count <= _MOST:
        raise ConfigError(
            f"count {count} is not in [{_EACH * tasks}, {_MOST}]",
            remedy=f"there are {tasks} tasks, and {_EACH} images of a prompt",
        )
    return count // (_EACH * len(make_prompts(1, split=split)))


def judged(
    path: Path, run: bool, galleries: Mapping[str, Gallery], out: Path | None, progress: bool
) -> Evaluated:
    """The tables of galleries as JSON, and a picture of verdicts of the last one beside it.

    Where both are there already they are read.
    """
    key = _key(galleries)
    place = out or _place(path, run, key)
    _refuse_place(place)
    grid = _grid(place)
    if content_of(place).get("key") != plain(key) or not is_grid(grid):
        verdicts = {name: _verdicts(each, progress) for name, each in galleries.items()}
        content = {"format": FORMAT, "key": key, **_content(galleries, verdicts)}
        last = list(galleries)[-1]
        picture = verdict_grid(galleries[last], [each for _, each in verdicts[last]])
        with new_files(grid, place) as (image, text):
            picture.save(image, pnginfo=GRID_MARK)
            text.write_text(json.dumps(content, indent=1), encoding="utf-8")
    content = content_of(place)
    return Evaluated(place, content, (*_summary(content), f"verdicts at a glance: {grid}"))


def _key(galleries: Mapping[str, Gallery]) -> dict[str, Any]:
    """All that the tables depend on."""
    return {
        "format": FORMAT,
        "versions": _versions(),
        "network": ["judge", _judge_digest()],
        "images": {name: each.fingerprint for name, each in galleries.items()},
        "made": {name: each.made for name, each in galleries.items()},
    }


def _versions() -> dict[str, str]:
    """The versions that verdicts depend on; ConfigError if the judge's package is missing."""
    try:
        return {name: version(name) for name in _VERSIONS}
    except PackageNotFoundError as error:
        raise ConfigError(
            f"the judge of scenes needs the package {error.name}",
            remedy='pip install "diffmoe[demo]"',
        ) from error


def _judge_digest() -> str:
    """A hash of the judge's rules, which are its source and that of what scenes hold."""
    rooms = (Path(inspect.getfile(of)).parent for of in (judge_pictures, make_prompts))
    files = sorted(file for room in rooms for file in room.glob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _place(path: Path, run: bool, key: dict[str, Any]) -> Path:
    """Where the tables go when nothing says where: into the run, or beside the folder."""
    name = f"judge-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]}.json"
    here = path.absolute()
    return RunFolder(path).evaluations / name if run else here.parent / f"{here.name}-{name}"


def _grid(place: Path) -> Path:
    """Where the picture of verdicts lies."""
    return place.with_name(f"{place.stem}-grid.png")


def _refuse_place(place: Path) -> None:
    """Raise StorageError if another file than an evaluation's would be replaced."""
    refuse_foreign(place)
    grid = _grid(place)
    if grid.exists() and not is_grid(grid):
        raise StorageError(
            f"{grid.name} was not written by an evaluation and would be lost",
            where=str(grid),
            remedy="choose another --out",
        )


def _verdicts(gallery: Gallery, progress: bool) -> list[tuple[str, Verdict]]:
    """The verdict on each image, with its name."""
    found = []
    with tqdm(total=len(gallery), desc="judge", unit="image", disable=not progress) as bar:
        for prompt, file, pixels in gallery.pictures():
            found += [(gallery.name(file), one) for one in judge_pictures([prompt], [pixels])]
            bar.update()
    return found


def _content(galleries: Mapping[str, Gallery], verdicts: Verdicts) -> dict[str, Any]:
    """Values, deviations, cautions, the protocol, each table and each verdict."""
    tables = {name: _tables([each for _, each in found]) for name, found in verdicts.items()}
    values, deviations = dict[str, float](), dict[str, float]()
    for name, of_rule in tables.items():
        for rule, table in of_rule.items():
            scores = {"overall": (table.overall, table.overall_error)}
            scores |= {task.task: (task.score, task.error) for task in table.tasks}
            for of, (score, error) in scores.items():
                values[f"{name}/{rule}/{of}"], deviations[f"{name}/{rule}/{of}"] = score, error
    return {
        "values": values,
        "deviations": deviations,
        "cautions": [
            f"the record beside {name} is not of these images, and was left out"
            for name, each in galleries.items()
            if each.is_disowned
        ],
        "protocol": _protocol(galleries),
        "tables": {
            name: {rule: _told(table) for rule, table in of_rule.items()}
            for name, of_rule in tables.items()
        },
        "verdicts": {name: _listed(galleries[name], found) for name, found in verdicts.items()},
    }


def _tables(verdicts: list[Verdict]) -> dict[str, TaskTable]:
    """The table by each rule."""
    return {rule: tabulate(verdicts, strict=strict) for rule, strict in _RULES.items()}


def _protocol(galleries: Mapping[str, Gallery]) -> dict[str, Any]:
    prompts = {
        name: hashlib.sha256(json.dumps([one.prompt.metadata for one in each.shown]).encode())
        for name, each in galleries.items()
    }
    return {
        "samples": {
            "place": {name: str(each.folder) for name, each in galleries.items()},
            "count": {name: len(each) for name, each in galleries.items()},
            "prompts_sha256": {name: digest.hexdigest() for name, digest in prompts.items()},
            "made": {name: each.made for name, each in galleries.items()},
        },
        "reference": None,
        "network": {"name": "judge", "sha256": _judge_digest()},
        "settings": {},
        "versions": _versions(),
    }


def _told(table: TaskTable) -> dict[str, Any]:
    """A table as JSON."""
    tasks = [{**asdict(task), "score": task.score, "error": task.error} for task in table.tasks]
    overall = {"overall": table.overall, "overall_error": table.overall_error}
    prompts = {"prompts": table.prompts, "right_prompts": table.right_prompts}
    return overall | prompts | {"tasks": tasks}


def _table(told: dict[str, Any]) -> TaskTable:
    """The table that a JSON tells."""
    tasks = (TaskScore(one["task"], one["right"], one["total"]) for one in told["tasks"])
    return TaskTable(tuple(tasks), told["prompts"], told["right_prompts"])


def _listed(gallery: Gallery, found: list[tuple[str, Verdict]]) -> list[dict[str, Any]]:
    """Each verdict with its image, seed and prompt."""
    return [
        {
            "file": name,
            "seed": gallery.seeds.get(name),
            "task": verdict.prompt.task,
            "prompt": verdict.prompt.caption,
            "lenient": verdict.lenient,
            "strict": verdict.strict,
            "reason": verdict.reason,
        }
        for name, verdict in found
    ]


def _summary(content: dict[str, Any]) -> list[str]:
    """Each table in GenEval's layout, and the overall score by the strict rule."""
    found = []
    for name, told in content["tables"].items():
        strict = _table(told["strict"])
        said = f"{strict.overall:.5f} ± {strict.overall_error:.5f}"
        found += [f"{name}: {content['protocol']['samples']['place'][name]}", ""]
        found += _table(told["geneval"]).lines
        found += [f"strict, with nothing else in the picture: {said}", ""]
    return [*found, *(f"caution: {sentence}" for sentence in content["cautions"])]
