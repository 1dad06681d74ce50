"""What scenes are made of and the words that name it."""

__all__ = [
    "COLOURS",
    "COUNTS",
    "HELD_OUT_PAIRS",
    "HELD_OUT_TASKS",
    "NUMBERS",
    "PALETTE",
    "RELATIONS",
    "SHAPES",
    "SPLITS",
    "TASKS",
    "allowed_pairs",
    "article",
    "plural",
    "word_class",
]

# GenEval's tags in its order (Ghosh et al. 2023, Table 1).
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
HELD_OUT_TASKS = ("counting", "colors", "position", "color_attr")  # their captions name colours
SPLITS = ("train", "validation", "held_out")

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
# Bright, and seen from the dark background at least 15 degrees apart: a noisy pixel keeps its name.
PALETTE = {
    "red": (230, 40, 45),
    "orange": (250, 135, 20),
    "yellow": (250, 230, 40),
    "green": (50, 185, 70),
    "cyan": (50, 205, 215),
    "blue": (60, 95, 250),
    "purple": (170, 60, 230),
    "white": (245, 245, 245),
}
COLOURS = tuple(PALETTE)
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
COUNTS = (2, 3, 4)  # that captions of `counting` ask for

# Every shape and every colour is seen in training, with others.
HELD_OUT_PAIRS = (
    ("circle", "purple"),
    ("circle", "cyan"),
    ("square", "orange"),
    ("square", "white"),
    ("triangle", "red"),
    ("star", "green"),
    ("star", "purple"),
    ("cross", "blue"),
    ("cross", "yellow"),
    ("ring", "cyan"),
)


def allowed_pairs(split: str) -> tuple[tuple[str, str], ...]:
    """The pairs of shape and colour that pictures of a split may hold."""
    pairs = ((shape, colour) for shape in SHAPES for colour in COLOURS)
    return tuple(pair for pair in pairs if split == "held_out" or pair not in HELD_OUT_PAIRS)


def plural(shape: str) -> str:
    """The word for several of a shape."""
    return shape + ("es" if shape.endswith("s") else "s")


def article(words: str) -> str:
    """The words behind their indefinite article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


_CLASSES = {
    **dict.fromkeys(COLOURS, "colour"),
    **dict.fromkeys(SHAPES, "shape"),
    **dict.fromkeys(map(plural, SHAPES), "shape"),
    **dict.fromkeys(NUMBERS.values(), "count"),
    **dict.fromkeys((relation.split()[0] for relation in RELATIONS), "position"),
}


def word_class(word: str) -> str:
    """What a word of a caption tells: "colour", "shape", "count", "position" or "other"."""
    return _CLASSES.get(word, "other")
