"""Capacity by what patches show, against loops over all pairs and pixels."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import trained
from diffmoe.analysis import (
    RegionCapacity,
    patch_regions,
    read_trace,
    region_capacity,
    region_capacity_figure,
    region_level_figure,
    region_pictures,
    region_pictures_figure,
    rows_of,
)
from diffmoe.analysis.routing_trace import RoutingTrace
from diffmoe.analysis.tallies import TokenTally, tokens
from diffmoe.data import draw_scene, make_scene, object_map
from diffmoe.errors import ConfigError
from diffmoe.evaluation import object_pixels
from diffmoe.objective import build_objective
from diffmoe.presets import preset
from diffmoe.sampling import Moment, balanced_labels, generate

COUNT, COUNTED = 11, 7
DRAWS = np.random.default_rng(5)
RUNS: dict[str, dict[str, Any]] = {
    "guided": {"guidance": 2.0, "batch": 4},
    "interval": {"guidance": 2.0, "guidance_end": 0.6, "batch": 3},
    "pool": {"guidance": 2.0, "selection": "pool", "guidance_pool": "joint", "batch": 4},
    "heun": {"sampler": "heun", "steps": 3, "batch": 5},
    "many steps": {"steps": 40, "batch": 16},
    "ancestral": {"sampler": "ancestral", "steps": 30, "batch": 8},
    "dopri5": {"sampler": "dopri5", "rtol": 0.5, "atol": 0.5, "steps": 3},
}


def traced(
    settings: dict[str, Any], counted: int = COUNTED
) -> tuple[Any, RoutingTrace, list[Moment]]:
    run = trained.config(**settings)
    trace, moments = RoutingTrace.empty(run, counted=counted), []

    def watch(moment: Moment) -> None:
        trace(moment)
        moments.append(moment)

    labels = balanced_labels(COUNT, 10)
    generate(trained.network(run), run, labels, range(COUNT), callback=watch)
    return run, trace, moments


@pytest.mark.parametrize("name", RUNS)
def test_tokens_are_those_of_a_slow_count(name: str) -> None:
    run, trace, moments = traced(RUNS[name])
    level_of, tally = build_objective(run.objective).noise_level, trace.tokens
    size, bins = run.model.tokens, tally.counts.shape[1]
    assert bins == (25 if name in ("dopri5", "many steps", "ancestral") else run.sampling.steps)
    pairs: dict[tuple[int, int, int], int] = defaultdict(int)
    times: dict[tuple[int, int], int] = defaultdict(int)
    levels: dict[int, float] = defaultdict(float)
    for moment in moments:
        level = level_of(moment.evaluation.time)
        own = next(b for b in reversed(range(bins)) if level <= 1 - b / bins + 0.01 / bins)
        for image in moment.images:
            times[image, own] += 1
            levels[own] += level if image < COUNTED else 0.0
        for record in moment.evaluation.output.routing:
            for row in record.token.tolist():
                if row // size < len(moment.images):
                    pairs[moment.images[row // size], own, row % size] += 1
    for place, value in np.ndenumerate(tally.counts):
        assert value == pairs[place], place
    for place, value in np.ndenumerate(tally.evaluations):
        assert value == times[place], place
    assert tally.level == pytest.approx([levels[b] for b in range(bins)])


def test_every_step_of_a_solver_has_a_bin_of_its_own() -> None:
    for steps in (2, 7, 25):
        _, trace, _ = traced({"steps": steps, "batch": 16})
        assert (trace.tokens.evaluations == 1).all()


def test_parts_count_for_the_images_they_hold() -> None:
    run, whole, _ = traced({"batch": 4})
    parts = RoutingTrace.empty(run, counted=COUNTED)
    labels, model = balanced_labels(COUNT, 10), trained.network(run)
    for first, last in ((0, 4), (4, 8), (8, COUNT)):
        take = parts.from_image(first)
        generate(model, run, labels[first:last], range(first, last), callback=take)
    np.testing.assert_array_equal(parts.tokens.counts, whole.tokens.counts)


def test_memory_is_bounded_whatever_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = preset("diffmoe-l-e16-flow")
    tally = TokenTally.empty(largest, 10**9)
    assert 2**25 < tally.nbytes < 2**26 + 2**20
    run = trained.config()
    monkeypatch.setattr(tokens, "MOST_BYTES", 3 * 4 * 4 * 16)  # of three images
    assert len(TokenTally.empty(run, 100).counts) == 3
    assert TokenTally.empty(run, 0).arrays() == {}


def test_the_counts_are_written_with_the_trace(tmp_path: Path) -> None:
    _, trace, _ = traced({"batch": 4})
    trace.write(tmp_path)
    arrays, schema = read_trace(tmp_path)
    np.testing.assert_array_equal(arrays["token_pairs"], trace.tokens.counts)
    assert schema["arrays"]["token_pairs"]["axes"] == ["images", "levels", "T"]


# --- regions --------------------------------------------------------------------------------------


def test_a_patch_is_background_edge_or_inside() -> None:
    seen = set()
    for share in (0.05, 0.5, 0.95):
        objects = DRAWS.integers(1, 4, (8, 8)) * (DRAWS.random((8, 8)) < share)
        found = patch_regions(objects, 4).reshape(4, 4)
        for row in range(4):
            for column in range(4):
                own = [objects[2 * row + y, 2 * column + x] > 0 for y in (0, 1) for x in (0, 1)]
                assert found[row, column] == (2 if all(own) else 1 if any(own) else 0)
                seen.add(sum(own))
    assert seen == {0, 1, 2, 3, 4}
    with pytest.raises(ConfigError, match="3 patches a side do not divide a picture of 8 pixels"):
        patch_regions(objects, 3)


def test_the_judge_finds_the_regions_of_drawn_scenes() -> None:
    """Against the map that a scene was drawn by: a core's rim may differ by a pixel."""
    same = total = 0
    for index in range(120):
        scene = make_scene(0, "validation", index)
        found = object_pixels(draw_scene(scene))
        truth = object_map(scene)
        assert len(np.unique(found)) - 1 == len(scene.things)
        one, other = patch_regions(found, 8), patch_regions(truth, 8)
        same, total = same + (one == other).sum(), total + one.size
        assert not ((one == 0) & (other == 2)).any() and not ((one == 2) & (other == 0)).any()
    assert same / total > 0.95


def known(images: int = 9) -> tuple[TokenTally, np.ndarray, np.ndarray]:
    """Random counts of 9 images with 16 patches, of which the last has no object."""
    tally = TokenTally.empty(trained.config(), images)
    tally.counts[:] = DRAWS.integers(0, 9, tally.counts.shape)
    tally.evaluations[:] = DRAWS.integers(1, 3, tally.evaluations.shape)
    tally.level[:] = (1 - np.arange(4) / 4) * tally.evaluations.sum(axis=0)
    regions = DRAWS.integers(0, 3, (images, 16))
    regions[-1] = 0
    return tally, regions, np.array([1, 2, 1, 4, 9, 7, 1, 2, 0])[:images]


def slow_ratio(parts: list[tuple[int, int]]) -> tuple[float, float]:
    """The ratio of sums of pairs (part, whole), and its error over the pairs."""
    parts = [pair for pair in parts if pair[1]]
    whole = sum(w for _, w in parts)
    mean = sum(p for p, _ in parts) / whole
    if len(parts) < 2:
        return mean, float("nan")
    spread = sum((p - mean * w) ** 2 for p, w in parts) * len(parts) / (len(parts) - 1)
    return mean, spread**0.5 / whole


def test_regions_are_those_of_a_slow_count() -> None:
    tally, regions, objects = known()
    found = region_capacity(tally, regions, objects)
    assert found is not None
    pairs: dict[Any, list[int]] = defaultdict(lambda: [0, 0])
    for (image, level, token), count in np.ndenumerate(tally.counts):
        rows = tally.layers * tally.evaluations[image, level]
        region, number = regions[image, token], min(6, objects[image])
        for key in (("r", region), ("l", region, level), ("n", number), ("b", number, region)):
            own = pairs[(image, *key)]
            own[0], own[1] = own[0] + int(count), own[1] + int(rows)

    def wanted(*key: Any) -> tuple[float, float]:
        return slow_ratio([(p, w) for (_, *own), (p, w) in pairs.items() if tuple(own) == key])

    for region in range(3):
        assert (found.capacity[region], found.error[region]) == pytest.approx(wanted("r", region))
        assert found.patches[region] == (regions == region).sum()
        assert found.images[region] == (regions == region).any(axis=1).sum()
        for level in range(4):
            own = found.by_level[region, level], found.by_level_error[region, level]
            assert own == pytest.approx(wanted("l", region, level))
    assert found.level == pytest.approx([1, 0.75, 0.5, 0.25])
    assert found.objects.tolist() == [0, 1, 2, 4, 6]
    assert found.objects_images.tolist() == [1, 3, 2, 1, 2]
    for place, number in enumerate(found.objects):
        own = found.by_objects[place], found.by_objects_error[place]
        assert own == pytest.approx(wanted("n", number), nan_ok=True)
        for region in range(3):
            value = found.region_by_objects[place, region]
            if number or region == 0:
                assert value == pytest.approx(wanted("b", number, region)[0])
            else:
                assert np.isnan(value)


def test_without_counted_images_there_is_nothing_to_tell() -> None:
    empty = TokenTally.empty(trained.config(), 3)
    regions, objects = np.zeros((3, 16), int), np.zeros(3, int)
    assert region_capacity(empty, regions, objects) is None


@pytest.fixture
def found() -> RegionCapacity:
    result = region_capacity(*known())
    assert result is not None
    return result


def test_figures_of_regions(found: RegionCapacity, tmp_path: Path) -> None:
    for draw in (region_capacity_figure, region_level_figure):
        files = draw(found, tmp_path / draw.__name__, command="diffmoe analyze $x$")
        with Image.open(files[0]) as picture:
            assert min(picture.size) > 500
        assert "<!-- inside of an object -->" in files[1].read_text()
    assert "6 or more" in (tmp_path / "region_capacity_figure.svg").read_text()


def test_a_figure_of_pictures_has_each_beside_its_maps(tmp_path: Path) -> None:
    tally, _, _ = known()
    scenes = [make_scene(0, "validation", index) for index in range(3)]
    shown = region_pictures(
        tally,
        [0, 4, 8],
        [scene.caption for scene in scenes],
        np.stack([draw_scene(scene) for scene in scenes]),
        np.stack([object_map(scene) for scene in scenes]),
    )
    rows = tally.layers * tally.evaluations[4].sum()
    assert shown.capacity[1] == pytest.approx(tally.counts[4].sum(axis=0) / rows)
    assert shown.regions[2].tolist() == patch_regions(object_map(scenes[2]), 4).tolist()
    files = region_pictures_figure(shown, tmp_path / "pictures")
    with Image.open(files[0]) as picture:
        assert min(picture.size) > 600


def test_tables_of_regions(found: RegionCapacity) -> None:
    tables = rows_of(found)
    assert [line["region"] for line in tables["capacity_by_region"]] == found.names
    levels = tables["capacity_by_region_and_level"]
    line = next(one for one in levels if one["region"] == found.names[1] and one["bin"] == 2)
    assert (line["level"], line["capacity"]) == (found.level[2], found.by_level[1, 2])
    assert tables["capacity_by_objects"][3]["images"] == 1
    parts = tables["capacity_by_objects_and_region"]
    line = next(one for one in parts if one["region"] == found.names[2] and one["objects"] == 4)
    assert line["capacity"] == found.region_by_objects[3, 2]
