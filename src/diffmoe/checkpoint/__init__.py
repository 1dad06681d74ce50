"""A run folder: config, weights and full state, written whole or not at all, verified on load."""

from diffmoe.checkpoint.files import (
    append_text,
    digest,
    new_files,
    new_folder,
    storage_errors,
    write_file,
    write_text,
)
from diffmoe.checkpoint.folder import RunFolder
from diffmoe.checkpoint.load import LoadedRun, load, load_tensors, refuse_foreign
from diffmoe.checkpoint.metrics import read_metrics
from diffmoe.checkpoint.parts import Parts, refuse_foreign_parts
from diffmoe.checkpoint.released import to_ours, to_released
from diffmoe.checkpoint.released_config import contradictions, infer_config
from diffmoe.checkpoint.released_file import ReleasedFile, read_released, write_released
from diffmoe.checkpoint.store import (
    Manifest,
    claimed_manifest,
    claimed_step,
    find_checkpoint,
    newest_checkpoint,
    prune,
    read_part,
    verify,
    write,
)

__all__ = [
    "LoadedRun",
    "Manifest",
    "Parts",
    "ReleasedFile",
    "RunFolder",
    "append_text",
    "claimed_manifest",
    "claimed_step",
    "contradictions",
    "digest",
    "find_checkpoint",
    "infer_config",
    "load",
    "load_tensors",
    "new_files",
    "new_folder",
    "newest_checkpoint",
    "prune",
    "read_metrics",
    "read_part",
    "read_released",
    "refuse_foreign",
    "refuse_foreign_parts",
    "storage_errors",
    "to_ours",
    "to_released",
    "verify",
    "write",
    "write_file",
    "write_released",
    "write_text",
]
