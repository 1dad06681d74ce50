"""Scenes of coloured shapes with captions of GenEval's six tasks, drawn from a number."""

from diffmoe.data.scenes.captions import TEMPLATES, scene_caption
from diffmoe.data.scenes.drawing import LEAST_SIDE, draw_scene, object_map
from diffmoe.data.scenes.layout import make_scene
from diffmoe.data.scenes.prompts import make_prompts
from diffmoe.data.scenes.records import Clause, Prompt, Scene, Thing
from diffmoe.data.scenes.shapes import has_angle, shape_area, shape_coverage
from diffmoe.data.scenes.sheet import scene_sheet
from diffmoe.data.scenes.source import SceneCaptions, ScenesSource
from diffmoe.data.scenes.words import (
    COLOURS,
    HELD_OUT_PAIRS,
    NUMBERS,
    PALETTE,
    RELATIONS,
    SHAPES,
    TASKS,
    article,
    plural,
    word_class,
)

__all__ = [
    "COLOURS",
    "HELD_OUT_PAIRS",
    "LEAST_SIDE",
    "NUMBERS",
    "PALETTE",
    "RELATIONS",
    "SHAPES",
    "TASKS",
    "TEMPLATES",
    "Clause",
    "Prompt",
    "Scene",
    "SceneCaptions",
    "ScenesSource",
    "Thing",
    "article",
    "draw_scene",
    "has_angle",
    "make_prompts",
    "make_scene",
    "object_map",
    "plural",
    "scene_caption",
    "scene_sheet",
    "shape_area",
    "shape_coverage",
    "word_class",
]
