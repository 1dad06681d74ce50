"""Tables of findings: every number once, in its place, and as a file."""

import csv
import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffmoe.analysis import findings
from diffmoe.analysis.findings import (
    BatchOfOne,
    ClassCapacity,
    Cost,
    ExpertUse,
    Groups,
    PredictorCheck,
    RegionCapacity,
    StepCapacity,
    SweepPoint,
    TokenMaps,
    Variant,
    WordCapacity,
)
from diffmoe.analysis.tables import rows_of, sweep_rows, write_json, write_table

NAN = float("nan")
DRAWS = np.random.default_rng(0)


def some(*shape: int) -> np.ndarray:
    return DRAWS.random(shape)


STEPS = StepCapacity(
    level=some(3),
    mean=some(3),
    deviation=some(3),
    experts=some(3, 2, 4),
    images=np.array([9, 7, 2]),
)
CLASSES = ClassCapacity(
    names=["a, b", 'c "d"'],
    images=np.array([2, 0]),
    selected=np.array([0.5, NAN]),
    above=np.array([0.25, NAN]),
    error=np.array([0.1, NAN]),
    stability=0.5,
    stability_above=0.75,
    agreement=0.25,
)
MAPS = TokenMaps(
    labels=[3, 1],
    names=["three", "one"],
    images=np.zeros((2, 1, 4, 4), np.uint8),
    noisy=np.zeros((2, 3, 1, 4, 4), np.uint8),
    steps=np.array([0, 2, 4]),
    level=np.array([1, 0.5, 0.1]),
    number=some(2, 3, 4),
    share=some(2, 2, 5, 4),
)
EXPERTS = ExpertUse(
    share=some(2, 3),
    dead=np.array([[True, False, False], [False, False, True]]),
    overlap=some(2, 3, 3),
    class_information=some(2),
    class_chance=some(2),
    level_information=some(2),
)
PREDICTOR = PredictorCheck(
    level=np.array([0, 0.5, 1]),
    precision=some(3, 2),
    recall=some(3, 2),
    calibration_error=some(3, 2),
    predicted=some(3, 5),
    observed=some(3, 5),
    weight=some(3, 5),
    nominal=1.0,
    realised=some(3, 2),
    tracked=some(3, 4),
    training=some(3, 4),
    sampling=some(3, 4),
    images=40,
)
COST = Cost(rows=[("memory", "1 GB", "at most")], numbers={"memory_bytes": 1e9})
VARIANT = Variant(
    name="static",
    batch=1,
    capacity=1.0,
    change=0.1,
    agreement=None,
    frechet=3.0,
    images=np.zeros((1, 1, 4, 4), np.uint8),
)
SINGLE = BatchOfOne(variants=[VARIANT, replace(VARIANT, batch=64)], drawn=10)
POINT = SweepPoint(
    name="tracked",
    kind="ema",
    setting=None,
    capacity=0.9,
    seconds=0.1,
    spread=0.01,
    loss=0.2,
    frechet=None,
    agreement=0.5,
)
GROUPS = Groups(
    names=["red", "star"],
    prompts=np.array([3, 1]),
    images=np.array([12, 4]),
    capacity=some(2),
    error=np.array([0.1, NAN]),
    error_of_images=some(2),
)
WORDS = WordCapacity(words=GROUPS, kinds=["colour", "shape"], by_kind=GROUPS, average=1.0)
REGIONS = RegionCapacity(
    names=["background", "edge", "inside"],
    patches=np.array([40, 8, 2]),
    images=np.array([9, 8, 2]),
    capacity=some(3),
    error=some(3),
    level=some(4),
    by_level=some(3, 4),
    by_level_error=some(3, 4),
    objects=np.array([1, 3]),
    objects_images=np.array([7, 2]),
    by_objects=some(2),
    by_objects_error=some(2),
    region_by_objects=some(2, 3),
)
FINDINGS = [STEPS, CLASSES, MAPS, EXPERTS, PREDICTOR, COST, SINGLE, WORDS, REGIONS]


def test_every_finding_has_tables() -> None:
    parts = {"Rows", "Variant", "SweepPoint", "Groups"}  # of other findings
    parts.add("RegionPictures")  # a trace and other tables hold its numbers
    assert {type(one).__name__ for one in FINDINGS} == set(findings.__all__) - parts
    tables = [name for one in FINDINGS for name in rows_of(one)]
    assert len(set(tables)) == len(tables) == 24


@pytest.mark.parametrize(
    "finding", [STEPS, EXPERTS, PREDICTOR, REGIONS], ids=lambda one: type(one).__name__
)
def test_every_number_of_a_finding_is_in_a_table(finding: Any) -> None:
    told = [value for rows in rows_of(finding).values() for row in rows for value in row.values()]
    assert all(type(value) in (int, float, str) for value in told)
    for entry in fields(finding):
        if entry.name == "noun":
            continue
        values = np.asarray(getattr(finding, entry.name)).ravel().tolist()
        assert set(values) <= set(told), entry.name


def test_a_line_stands_in_its_place() -> None:
    steps = rows_of(STEPS)["capacity_by_expert_and_step"]
    assert len(steps) == 24
    place = {"step": 2, "layer": 1, "expert": 3}
    line = {"level": STEPS.level[2], **place, "capacity_of_expert": STEPS.experts[2, 1, 3]}
    assert line in steps
    assert rows_of(STEPS)["capacity_by_step"][1]["images"] == 7
    overlap = rows_of(EXPERTS)["expert_overlap"]
    assert {"layer": 1, "expert": 0, "other": 2, "overlap": EXPERTS.overlap[1, 0, 2]} in overlap
    assert rows_of(EXPERTS)["experts"][5]["dead"] == 1
    levels = rows_of(PREDICTOR)["predictor_by_level"]
    assert levels[3]["level_from"] == 0.5 and levels[3]["level_to"] == 1
    assert levels[3]["recall"] == PREDICTOR.recall[1, 1]


def test_classes_have_their_names_and_no_thresholds_no_number() -> None:
    tables = rows_of(CLASSES)
    first = {"name": "a, b", "class": 0, "images": 2, "selected": 0.5, "error": 0.1, "above": 0.25}
    assert tables["capacity_by_class"][0] == first
    assert tables["class_stability"][1] == {"name": "stability_above", "value": 0.75}
    without = replace(CLASSES, above=None, stability_above=None, agreement=None)
    tables = rows_of(without)
    assert math.isnan(tables["capacity_by_class"][0]["above"])
    assert [math.isnan(line["value"]) for line in tables["class_stability"]] == [False, True, True]
    nothing = rows_of(replace(without, stability=NAN))
    assert list(nothing) == ["capacity_by_class"]


def test_maps_name_the_expert_that_took_a_patch_most() -> None:
    tables = rows_of(MAPS)
    assert tables["map_images"][1] == {"image": 1, "label": 1, "name": "one"}
    assert tables["map_frames"][2] == {"frame": 2, "step_of_first_image": 4, "mean_level": 0.1}
    number = {"image": 1, "frame": 2, "token": 3, "experts": MAPS.number[1, 2, 3]}
    assert number in tables["experts_by_token"]
    most = tables["most_frequent_expert_by_token"]
    assert len(most) == 2 * 2 * 4
    for line in most:
        own = MAPS.share[line["image"], line["layer"], :, line["token"]].tolist()
        assert line["share"] == max(own) == own[line["expert"]]
        assert line["all_experts"] == pytest.approx(sum(own))


def test_a_patch_that_no_expert_took_names_none(tmp_path: Path) -> None:
    share = MAPS.share.copy()
    share[1, 0, :, 2] = 0
    most = rows_of(replace(MAPS, share=share))["most_frequent_expert_by_token"]
    none = [line for line in most if math.isnan(line["expert"])]
    where = {"image": 1, "layer": 0, "token": 2}
    assert [{name: line[name] for name in where} for line in none] == [where]
    text = write_table(tmp_path / "table.csv", most).read_text().splitlines()
    assert "1,0,2,,0.0,0.0" in text
    assert all(type(line["expert"]) is int for line in most if line not in none)


def test_costs_variants_and_sweeps_are_lines() -> None:
    assert rows_of(COST) == {
        "cost": [{"name": "memory", "value": "1 GB", "meaning": "at most"}],
        "cost_numbers": [{"name": "memory_bytes", "value": 1e9}],
    }
    one, many = rows_of(SINGLE)["batch_of_one"]
    assert (one["batch"], many["batch"], one["images"]) == (1, 64, 10)
    assert math.isnan(one["agreement"]) and "images" in one
    (line,) = sweep_rows([POINT])["sweep"]
    assert list(line) == [entry.name for entry in fields(SweepPoint)]
    assert math.isnan(line["setting"]) and line["capacity"] == 0.9


def test_a_table_is_written_as_csv(tmp_path: Path) -> None:
    rows = rows_of(CLASSES)["capacity_by_class"]
    path = write_table(tmp_path / "sub" / "table.csv", rows)
    with path.open(newline="") as stream:
        found = list(csv.DictReader(stream))
    assert [line["name"] for line in found] == ["a, b", 'c "d"']
    assert float(found[0]["selected"]) == 0.5 and found[1]["selected"] == ""
    assert b"\r" not in path.read_bytes()
    assert write_table(tmp_path / "none.csv", []).read_text() == ""


def test_numbers_survive_a_table(tmp_path: Path) -> None:
    rows = rows_of(STEPS)["capacity_by_step"]
    with write_table(tmp_path / "table.csv", rows).open(newline="") as stream:
        found = [
            {name: float(value) for name, value in one.items()} for one in csv.DictReader(stream)
        ]
    assert all(one == pytest.approx(row, rel=1e-8) for one, row in zip(found, rows, strict=True))


def test_rounding_is_not_written(tmp_path: Path) -> None:
    rows = [{"a": 0.5499999999999999, "b": 12345678901.0, "c": 1 / 3, "d": 3, "e": 1e-12 / 7}]
    text = write_table(tmp_path / "table.csv", rows).read_text()
    assert text == "a,b,c,d,e\n0.55,12345678901.0,0.333333333,3,1.42857143e-13\n"


def test_json_has_null_for_what_has_no_value(tmp_path: Path) -> None:
    content = {"a": [NAN, math.inf, np.float32(0.5)], 3: (np.arange(2), None, "x"), "b": True}
    path = write_json(tmp_path / "x.json", content)
    assert json.loads(path.read_text()) == {
        "a": [None, None, 0.5],
        "3": [[0, 1], None, "x"],
        "b": True,
    }


def test_lines_of_other_columns_are_no_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        write_table(tmp_path / "x.csv", [{"a": 1}, {"a": 1, "b": 2}])
    assert not list(tmp_path.iterdir())
