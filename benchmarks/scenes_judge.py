"""Is the judge of scenes right? On true pictures, on damaged ones, and on prompts that are wrong.

python benchmarks/scenes_judge.py --pictures 3000
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from diffmoe.data.scenes import LEAST_SIDE, Prompt, Scene, ScenesSource, draw_scene
from diffmoe.evaluation.judge import Reading, judge, mutations, read_picture, tabulate
from diffmoe.randomness import normals

DAMAGES = ((0.0, 0.0), (0.0, 0.5), (10.0, 0.0), (10.0, 0.5), (25.5, 0.0), (25.5, 0.5))
SPLITS = ("validation", "held_out")  # together all 48 pairs


def damaged(picture: np.ndarray, number: int, noise: float, blur: float) -> np.ndarray:
    """The picture blurred (standard deviation in pixels of 32), then noisy (in grey values)."""
    wide = blur * picture.shape[-1] / LEAST_SIDE
    values = gaussian_filter(picture.astype(np.float64), (0, wide, wide))
    values += noise * normals(0, "scenes/noise", number, 1, picture.shape)[0].numpy()
    return np.rint(values.clip(0, 255)).astype(np.uint8)


def is_right(scene: Scene, reading: Reading) -> bool:
    """Whether every thing was read, with shape and colour, and nothing else."""
    seen = Counter((each.shape, each.colour) for each in reading)
    return seen == Counter((thing.shape, thing.colour) for thing in scene.things)


def trial(scenes: list[Scene], side: int, noise: float, blur: float) -> dict[str, object]:
    """What the judge makes of pictures damaged so much, with their prompts and with wrong ones."""
    readings, verdicts, tried, passed, passed_strict = 0, [], Counter(), Counter(), Counter()
    scores, spent, less = [], 0.0, Counter()
    for number, scene in enumerate(scenes):
        picture = damaged(draw_scene(scene, side), number, noise, blur)
        begun = time.process_time()
        reading = read_picture(picture)
        verdicts.append(judge(scene.prompt, reading))
        spent += time.process_time() - begun
        readings += is_right(scene, reading)
        scores += [seen.score for seen in reading]
        if len(scene.include) == 2:
            verdict = judge(Prompt(scene.task, scene.caption, scene.include[:1]), reading)
            less.update(asked=1, accepted=verdict.lenient, accepted_strict=verdict.strict)
        for kind, prompt in mutations(scene):
            verdict = judge(prompt, reading)
            tried[kind] += 1
            passed[kind] += verdict.lenient
            passed_strict[kind] += verdict.strict
    return {
        "noise": noise,
        "blur": blur,
        "pictures": len(scenes),
        "read_right": readings,
        "accepted": sum(verdict.lenient for verdict in verdicts),
        "accepted_strict": sum(verdict.strict for verdict in verdicts),
        "least_score": min(scores, default=0.0),
        "wrong_prompts": dict(tried),
        "wrong_accepted": dict(passed),
        "wrong_accepted_strict": dict(passed_strict),
        "one_of_two": dict(less),
        "table": tabulate(verdicts, strict=True).lines,
        "pictures_per_cpu_second": len(scenes) / spent,
    }


def rate(work: Callable[[int], object], count: int) -> float:
    """Calls of `work` in a second of this process."""
    begun = time.process_time()
    for index in range(count):
        work(index)
    return count / (time.process_time() - begun)


def speeds(source: ScenesSource, count: int) -> dict[str, float]:
    """Samples and captions made in a second."""
    return {
        "samples_per_cpu_second": rate(lambda index: source.load(index, False), count),
        "captions_per_cpu_second": rate(lambda index: source.captions[index], count),
    }


def told(found: dict[str, object]) -> str:
    """One line of the printed table."""
    tried, lenient, strict = (
        sum(found[name].values())
        for name in ("wrong_prompts", "wrong_accepted", "wrong_accepted_strict")
    )
    count = found["pictures"]
    return (
        f"{found['noise']:5.1f} {found['blur']:4.1f} {found['read_right']:6d} / {count}"
        f" {found['accepted']:6d} {found['accepted_strict']:6d} {found['least_score']:6.3f}"
        f" {lenient:5d} {strict:5d} / {tried:5d}"
        f" {found['one_of_two']['accepted']:6d} {found['one_of_two']['accepted_strict']:5d}"
        f" / {found['one_of_two']['asked']} {found['pictures_per_cpu_second']:8.0f}"
    )


def main() -> None:
    """Measure, print a line for each damage, and write all of it where --out says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--side", type=int, default=LEAST_SIDE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    torch.set_num_threads(1)
    half = -(-words.pictures // len(SPLITS))
    sources = [ScenesSource(words.seed, count=half, side=words.side, split=s) for s in SPLITS]
    scenes = [source.scene(index) for source in sources for index in range(half)]
    print("of each pair of columns the first is by GenEval's rule, the second by the strict one")
    print(
        "noise blur     read right   accepted   score   wrong accepted  one of two asked  a second"
    )
    found = []
    for noise, blur in DAMAGES:
        found.append(trial(scenes, words.side, noise, blur))
        print(told(found[-1]), flush=True)
    made = speeds(sources[0], half)
    print(*(f"{name.replace('_', ' ')}: {value:.0f}" for name, value in made.items()), sep="\n")
    print("", *found[0]["table"], sep="\n")
    if words.out:
        words.out.write_text(json.dumps({"damages": found, **made}, indent=2) + "\n")


if __name__ == "__main__":
    main()
