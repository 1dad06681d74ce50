"""A pytest plugin (`-p shape_checks`): the shapes in the model room's signatures are checked.

It runs in a process of its own, for a checked function cannot be compiled.
"""

from jaxtyping import install_import_hook

with install_import_hook("diffmoe.model", "beartype.beartype"):
    import diffmoe.model  # noqa: F401
