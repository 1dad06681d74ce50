"""A run folder: config, weights and full state, written whole or not at all, verified on load."""

from diffmoe.checkpoint.choice import (
    abandon_later,
    claimed_manifest,
    claimed_step,
    find_checkpoint,
    newest_checkpoint,
    newest_good,
    prune,
    set_aside_later,
)
from diffmoe.checkpoint.files import (
    append_text,
    digest,
    new_files,
    new_folder,
    require_space,
    storage_errors,
    write_file,
    write_text,
)
from diffmoe.checkpoint.folder import RunFolder
from diffmoe.checkpoint.load import LoadedRun, load, load_tensors, refuse_foreign, refuse_misfit
from diffmoe.checkpoint.locks import unshared
from diffmoe.checkpoint.manifest import Manifest
from diffmoe.checkpoint.metrics import content_of, forget_later, read_metrics
from diffmoe.checkpoint.parts import Parts, refuse_foreign_parts
from diffmoe.checkpoint.pieces import Piece
from diffmoe.checkpoint.released import to_ours, to_released
from diffmoe.checkpoint.released_config import contradictions, infer_config
from diffmoe.checkpoint.released_file import ReleasedFile, read_released, write_released
from diffmoe.checkpoint.store import Content, read_part, verify, write

__all__ = [
    "Content",
    "LoadedRun",
    "Manifest",
    "Parts",
    "Piece",
    "ReleasedFile",
    "RunFolder",
    "abandon_later",
    "append_text",
    "claimed_manifest",
    "claimed_step",
    "content_of",
    "contradictions",
    "digest",
    "find_checkpoint",
    "forget_later",
    "infer_config",
    "load",
    "load_tensors",
    "new_files",
    "new_folder",
    "newest_checkpoint",
    "newest_good",
    "prune",
    "read_metrics",
    "read_part",
    "read_released",
    "refuse_foreign",
    "refuse_foreign_parts",
    "refuse_misfit",
    "require_space",
    "set_aside_later",
    "storage_errors",
    "to_ours",
    "to_released",
    "unshared",
    "verify",
    "write",
    "write_file",
    "write_released",
    "write_text",
]
