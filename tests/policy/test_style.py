"""The house style that no linter knows: sizes, forbidden calls, a pure model room, clean text."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "diffmoe"
SOURCES = sorted(PACKAGE.rglob("*.py"))

FILE_LINES, FUNCTION_LINES, MEDIAN_LINES = 300, 60, 10
USUAL_LINES, USUAL_SHARE = 35, 0.95

UNSAFE_MODULES = {
    *("pickle", "_pickle", "cPickle", "pickletools", "copyreg", "dill", "cloudpickle", "joblib"),
    *("marshal", "shelve", "imp", "runpy", "code", "codeop", "jsonpickle"),
}
# Names of what loads or runs whatever it is given, from whichever module they are taken.
UNSAFE_NAMES = {
    *("eval", "exec", "compile", "__import__", "import_module", "resolve_name", "run_path"),
    *("run_module", "execfile", "popen", "spawnv", "spawnl", "read_pickle", "to_pickle"),
    *("unsafe_load", "unsafe_load_all", "full_load", "full_load_all", "load_all"),
    *("UnsafeLoader", "FullLoader", "CUnsafeLoader", "CFullLoader", "UnsafeConstructor"),
    *("FileSystemReader", "FileSystemWriter", "load_dataset", "load_dataset_builder"),
    *("DefaultLoadPlanner", "FsspecReader", "FsspecWriter"),
}
UNSAFE_PLACES = (
    *("os.system", "os.exec", "os.popen", "os.spawn", "os.posix_spawn", "pty.spawn"),
    *("torch.jit.load", "torch.package", "torch.hub.load", "torch.export.load", "torch.classes"),
    *("yaml.load", "yaml.Loader", "yaml.CLoader", "pkgutil.resolve_name", "logging.config"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "torch.distributed.checkpoint"),
    *("builtins.eval", "builtins.exec", "sys.modules"),
)
# Of a place, what neither stores nor reads: the planners, what a storage of one's own derives from,
# and the driver, as long as it is given one.
HARMLESS_PLACES = tuple(
    f"torch.distributed.checkpoint.{name}"
    for name in ("api", "default_planner", "metadata", "planner", "save", "storage")
)
UNSAFE_KEYWORDS = {
    *(("weights_only", False), ("allow_pickle", True), ("shell", True), ("trust_remote_code", True))
}
METHODS = {"compile", "eval"}  # of modules and patterns, which run nothing
# What loads a pickle unless it is told not to, and how it is told.
WANTED_KEYWORDS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b")

TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".cff", ".html", ".css", ".j2", ""}
TEXT_FOLDERS = ("recipes", "src", "tests", "benchmarks", "docs", ".ci", ".github")
# The brackets keep the patterns from matching themselves.
LOCAL_TEXT = re.compile(
    r"/wor[k]/|/opt/[w]heels|/opt/[p]ypi|/roo[t]/|/home/[a-z]|/Users/[A-Za-z]|/tmp/[b]ash"
    r"|\b[w]orkplace|\bshared/[d]esign|\b[Ii]ssue #?\d|\b[s]ub-?agent|\b[b]rief says"
)
PAGE = re.compile(r"(?<![\w/.:-])[\w./-]+\.md\b")


def functions(source: str) -> Iterator[tuple[str, int]]:
    """Name and length of each function, its signature and docstring included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def oversized(path: Path, source: str) -> list[str]:
    """Functions and files above the limit."""
    lines = len(source.splitlines())
    faults = [f"{path.name}: {lines} lines"] if lines > FILE_LINES else []
    long = ((name, length) for name, length in functions(source) if length > FUNCTION_LINES)
    return faults + [f"{path.name}: {name} has {length} lines" for name, length in long]


def unbalanced(lengths: list[int]) -> list[str]:
    """What is wrong with the distribution of function lengths."""
    usual = sum(length <= USUAL_LINES for length in lengths) / len(lengths)
    faults = [f"the median is {median(lengths)}"] if median(lengths) > MEDIAN_LINES else []
    return faults + ([f"{usual:.0%} are of usual length"] if usual < USUAL_SHARE else [])


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain, its last attribute if it starts with a call."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imported(node: ast.AST) -> list[str]:
    """The modules a statement imports, a name taken from a module as `module.name`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module or ''}.{alias.name}" for alias in node.names]
    return []


def unsafe(path: Path, source: str) -> list[str]:
    """Code run from data or from strings, and prints outside the command line."""
    faults, tree = [], ast.parse(source)
    known = aliases(tree) | {
        node.arg: "an argument" for node in ast.walk(tree) if is_argument(node)
    }
    for node in ast.walk(tree):
        named = [name.rstrip(".") for name in imported(node)]
        faults += [(node, name) for name in named if is_unsafe_module(name)]
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            named = [spelt(dotted(node), known)]
        faults += [(node, name) for name in named if is_unsafe(name)]
        if isinstance(node, ast.Call):
            bare = dotted(node.func)
            faults += [(node, bare)] if bare in UNSAFE_NAMES else []
            faults += [(node, call) for call in unsafe_call(path, node, spelt(bare, known))]
    return sorted({f"{path.name}:{node.lineno}: {what}" for node, what in faults})


def is_argument(node: ast.AST) -> bool:
    """Whether a function has a switch that is called as the built-in which compiles strings."""
    return isinstance(node, ast.arg) and node.arg == "compile"


def aliases(tree: ast.AST) -> dict[str, str]:
    """What the names that a module imports stand for, whatever it calls them."""
    known = {"np": "numpy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            for alias in node.names:
                whole = f"{module}.{alias.name}" if module else alias.name
                if alias.asname or module:
                    known[alias.asname or alias.name] = whole
    return known


def spelt(name: str, known: dict[str, str]) -> str:
    """A dotted name with what its first part stands for."""
    first, dot, rest = name.partition(".")
    return f"{known.get(first, first)}{dot}{rest}"


def is_unsafe_module(name: str) -> bool:
    """Whether an import is of what unpickles, or imports by string."""
    parts = name.split(".")
    return parts[0] in UNSAFE_MODULES or dynamic(parts)


def is_unsafe(name: str) -> bool:
    """Whether a dotted name is of what runs or loads whatever it is given."""
    parts = name.split(".")
    return (
        name in UNSAFE_NAMES
        or (len(parts) > 1 and parts[-1] in UNSAFE_NAMES - METHODS)
        or (lies_in(name, UNSAFE_PLACES) and not lies_in(name, HARMLESS_PLACES))
        or name.startswith(("os.exec", "os.spawn", "os.posix_spawn", "torch.hub.load"))
    )


def lies_in(name: str, places: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of some places or inside of one."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def dynamic(parts: list[str]) -> bool:
    """Whether a name is a means to import by string; metadata and resources are none."""
    return parts[0] == "importlib" and parts[1:2] not in (["metadata"], ["resources"])


def unsafe_call(path: Path, call: ast.Call, name: str) -> list[str]:
    """What is unsafe or noisy about one call."""
    said = {word.arg: ast.unparse(word.value) for word in call.keywords}
    faults = ["print"] * (name == "print" and path.relative_to(PACKAGE).parts[0] != "cli")
    faults += [
        f"{word}={said[word]}" for word, bad in UNSAFE_KEYWORDS if said.get(word) == str(bad)
    ]
    if name in WANTED_KEYWORDS:
        word, value = WANTED_KEYWORDS[name]
        faults += [f"{name} without {word}={value}"] * (said.get(word) != str(value))
    if name == "torch.distributed.checkpoint.save":
        own = "storage_writer" in said and not {"checkpoint_id", None} & said.keys()
        faults += [f"{name} without a storage_writer of one's own"] * (not own)
    if None in said and name in WANTED_KEYWORDS:
        faults.append(f"{name} with keywords that nobody sees")
    return faults


def unfinished(path: Path, source: str) -> list[str]:
    """Marks of work left undone."""
    return [f"{path.name}: {mark}" for mark in UNFINISHED.findall(source)]


def impure(path: Path, source: str) -> list[str]:
    """What ties the model room to a process group, an environment or a device."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        name = dotted(node) if isinstance(node, ast.Attribute) else ""
        for module in [*imported(node), name]:
            if module.startswith(("torch.distributed", "os.environ", "os.getenv")):
                faults.append((node, module))
        if isinstance(node, ast.Call) and dotted(node.func).endswith(".cuda"):
            faults.append((node, ".cuda()"))
        if isinstance(node, ast.Constant) and re.match(r"cuda(:\d+)?$", str(node.value)):
            faults.append((node, str(node.value)))
    return [f"{path.name}:{node.lineno}: {what}" for node, what in faults]


def moody(path: Path, source: str) -> list[str]:
    """Reads of `.training` in a module that routes: the plan says what to select, not a mode."""
    nodes = list(ast.walk(ast.parse(source)))
    if not any(isinstance(node, ast.FunctionDef) and node.name == "route" for node in nodes):
        return []
    reads = [n for n in nodes if isinstance(n, ast.Attribute) and n.attr == "training"]
    return [f"{path.name}:{node.lineno}: .training" for node in reads]


def furnished(path: Path, source: str) -> list[str]:
    """Statements in a door that are neither import nor docstring nor `__all__`."""
    doc, *rest = ast.parse(source).body
    faults = [] if isinstance(doc, ast.Expr) else [doc]
    faults += [
        node for node in rest if not isinstance(node, ast.Import | ast.ImportFrom | ast.Assign)
    ]
    assigned = [node for node in rest if isinstance(node, ast.Assign)]
    faults += [node for node in assigned if [dotted(t) for t in node.targets] != ["__all__"]]
    return [f"{path.parent.name}/{path.name}:{node.lineno}" for node in faults]


def local(path: Path, text: str) -> list[str]:
    """Places and words that mean nothing outside the machine a file was written on."""
    return [f"{path.name}: {match.group()}" for match in LOCAL_TEXT.finditer(text)]


def dangling(path: Path, text: str, pages: set[str]) -> list[str]:
    """Pages that a text names and the repository does not hold."""
    named = (Path(match.group()).name for match in PAGE.finditer(text))
    return [f"{path.name}: {page}" for page in named if page not in pages]


def repository() -> list[Path]:
    """The text files of the repository."""
    inside = [path for folder in TEXT_FOLDERS for path in (ROOT / folder).rglob("*")]
    top = [path for path in ROOT.glob("*") if path.name != ".git"]  # a file in a git worktree
    return [path for path in top + inside if path.is_file() and path.suffix in TEXT_SUFFIXES]


def each(checker, paths=SOURCES) -> list[str]:
    """All faults that a checker finds in the files."""
    return [fault for path in paths for fault in checker(path, path.read_text())]


def test_files_and_functions_are_small() -> None:
    assert not each(oversized)


def test_most_functions_are_very_small() -> None:
    lengths = [length for path in SOURCES for _, length in functions(path.read_text())]
    assert not unbalanced(lengths)


@pytest.mark.parametrize("checker", [unsafe, unfinished], ids=lambda checker: checker.__name__)
def test_the_sources_are_safe_and_finished(checker) -> None:
    assert not each(checker)


@pytest.mark.parametrize("checker", [impure, moody], ids=lambda checker: checker.__name__)
def test_the_model_room_is_mathematics_only(checker) -> None:
    assert not each(checker, sorted((PACKAGE / "model").rglob("*.py")))


def test_doors_hold_names_only() -> None:
    assert not each(furnished, sorted(PACKAGE.glob("*/__init__.py")))


def test_no_file_speaks_of_the_machine_it_was_written_on() -> None:
    assert not each(local, repository())


def test_every_page_named_exists() -> None:
    pages = {path.name for path in repository()}
    assert not each(lambda path, text: dangling(path, text, pages), repository())


MODEL = PACKAGE / "model" / "routing.py"
ROUTE = "def route(self, rows, plan):\n    return "


UNSAFE_SOURCES = [
    "import pickle",
    "import _pickle",
    "import os, pickle as p",
    "from pickle import load",
    "import dill",
    "import cloudpickle",
    "from joblib import load",
    "import marshal",
    "import shelve",
    "x = pandas.read_pickle(path)",
    "import importlib",
    "import importlib.util as u",
    "from importlib import import_module",
    "from importlib import import_module as get",
    "import runpy",
    "from pkgutil import resolve_name",
    "import pkgutil\nx = pkgutil.resolve_name(text)",
    "exec('x = 1')",
    "x = eval('1')",
    "run = eval",
    "import builtins\nx = builtins.eval('1')",
    "x = compile(text, '', 'exec')",
    "def run(compile):\n    return compile(text, '', 'exec')",
    "x = __import__(name)",
    "x = sys.modules[name]",
    "import os\nos.system(text)",
    "from os import system",
    "import os\nos.popen(text)",
    "import os\nos.execvp(text, [])",
    "subprocess.run(text, shell=True)",
    "import subprocess as s\ns.Popen(text, shell=True)",
    "subprocess.getoutput(text)",
    "yaml.load(text)",
    "yaml.load(text, Loader=yaml.SafeLoader)",
    "import yaml as y\ny.load(text)",
    "from yaml import load",
    "from yaml import unsafe_load as load",
    "yaml.full_load(text)",
    "class Loader(yaml.FullLoader): ...",
    "class Loader(yaml.Loader): ...",
    "Loader = yaml.UnsafeLoader",
    "torch.load(path)",
    "torch.load(path, weights_only=False)",
    "torch.load(path, weights_only=safe)",
    "torch.load(path, **options)",
    "from torch import load\nload(path)",
    "import torch as t\nt.load(path)",
    "torch.jit.load(path)",
    "from torch import jit\njit.load(path)",
    "import torch.package",
    "from torch.package import PackageImporter",
    "torch.hub.load(name, name)",
    "from torch import hub\nhub.load_state_dict_from_url(name)",
    "import torch.distributed.checkpoint as dcp",
    "from torch.distributed.checkpoint import FileSystemReader",
    "from torch.distributed.checkpoint import FileSystemWriter",
    "from torch.distributed import checkpoint",
    "from torch.distributed.checkpoint import *",
    "from torch.distributed.checkpoint import load",
    "from torch.distributed.checkpoint.filesystem import FileSystemWriter as Writer",
    "from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner",
    "import torch.distributed.checkpoint.planner\ntorch.distributed.checkpoint.load(state)",
    "import torch.distributed.checkpoint.planner_helpers",
    "from torch.distributed.checkpoint import save\nsave(state, checkpoint_id=path)",
    "from torch.distributed.checkpoint import save as write\nwrite(state)",
    "from torch.distributed.checkpoint import save\nsave(state, storage_writer=own, **more)",
    "from torch.distributed.checkpoint import save\n"
    "save(state, storage_writer=own, checkpoint_id=path)",
    "torch.distributed.checkpoint.format_utils.dcp_to_torch_save(path, path)",
    "np.load(path)",
    "np.load(path, mmap_mode='r')",
    "numpy.load(path, allow_pickle=True)",
    "np.load(path, allow_pickle=trusted)",
    "from numpy import load as read\nread(path)",
    "datasets.load_dataset(name)",
    "datasets.load_dataset(name, trust_remote_code=True)",
    "AutoModel.from_pretrained(name, trust_remote_code=True)",
]


@pytest.mark.parametrize(
    ("checker", "source"),
    [
        (oversized, "x = 1\n" * (FILE_LINES + 1)),
        (oversized, "def f():\n" + "    x = 1\n" * FUNCTION_LINES),
        (unsafe, "print('loss')"),
        *((unsafe, source) for source in UNSAFE_SOURCES),
        (unfinished, "x = 1  # TODO"),
        (unfinished, "raise NotImplementedError"),
        (impure, "import torch.distributed as dist"),
        (impure, "from torch import distributed"),
        (impure, "torch.distributed.all_reduce(x)"),
        (impure, "from os import environ"),
        (impure, "rank = os.environ['RANK']"),
        (impure, "x = x.cuda()"),
        (impure, "x = x.to('cuda:0')"),
        (moody, ROUTE + "self.training"),
        (furnished, '"""Doc."""\nfrom .dit import DiT\nx = 1'),
        (furnished, "from .dit import DiT\n__all__ = ['DiT']"),
        (furnished, '"""Doc."""\ndef f(): ...'),
        (local, "see /wor" + "k/main"),
        (local, "as Iss" + "ue 12 asks"),
    ],
)
def test_a_planted_fault_is_seen(checker, source: str) -> None:
    assert checker(MODEL, source)


@pytest.mark.parametrize(
    ("checker", "source"),
    [
        (unsafe, "model.eval()\nyaml.safe_load(text)\ntorch.load(path, weights_only=True)"),
        (unsafe, "def measure(compile):\n    return Machine(compile)"),
        (unsafe, "re.compile(text)\ntorch.compile(model)\nclass Loader(yaml.SafeLoader): ..."),
        (unsafe, "np.load(path, allow_pickle=False)\njson.loads(text)\nload(path)"),
        (unsafe, "subprocess.run(words, check=True)\ndatasets.load_from_disk(path)"),
        (unsafe, "from importlib.metadata import version"),
        (unsafe, "from torch.distributed.checkpoint.default_planner import DefaultSavePlanner"),
        (unsafe, "from torch.distributed.checkpoint.planner import SavePlan, WriteItem"),
        (unsafe, "from torch.distributed.checkpoint.storage import StorageReader, StorageWriter"),
        (
            unsafe,
            "from torch.distributed.checkpoint import save\n"
            "save(state, storage_writer=own, planner=plan)",
        ),
        (impure, "with torch.autocast(x.device.type): ..."),
        (moody, "def forward(self, x):\n    return self.training"),
        (moody, ROUTE + "plan.selection"),
        (furnished, '"""Doc."""\nfrom .dit import DiT\n__all__ = ["DiT"]'),
    ],
)
def test_a_clean_line_passes(checker, source: str) -> None:
    assert not checker(MODEL, source)


def test_planted_lengths_are_seen() -> None:
    assert len(unbalanced([MEDIAN_LINES + 1] * 9)) == 1
    assert len(unbalanced([MEDIAN_LINES] * 9 + [USUAL_LINES + 1])) == 1
    assert not unbalanced([MEDIAN_LINES] * 20 + [USUAL_LINES + 1])


def test_a_planted_dangling_page_is_seen() -> None:
    suffix = ".md"  # apart, so that this file names no page
    text = f"see [the guide](docs/train{suffix}) and [more](docs/lost{suffix})"
    assert dangling(ROOT / "README", text, {f"train{suffix}"}) == [f"README: lost{suffix}"]
