"""What each global of a pickle becomes: plain data, a tensor on disk, or an inert placeholder. No code is imported.

Placeholders are harmless whatever they stand for, so safety does not hang on a list of bad names. Names that only a
hostile file holds are refused nevertheless: such a file is not to be trusted with anything.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import Any

import torch

from megabert.formats.checkpoint import LazyTensor
from megabert.formats.regions import Region

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        "float64", "double", "float32", "float", "float16", "half", "bfloat16", "uint8", "int8", "int16", "short",
        "int32", "int", "int64", "long", "bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
    )
}  # fmt: skip

STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "ByteStorage": torch.uint8, "CharStorage": torch.int8,
    "ShortStorage": torch.int16, "IntStorage": torch.int32, "LongStorage": torch.int64, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip

# Of the standard library, what real checkpoints name. All of it but the containers stays a placeholder.
_STANDARD = {
    "argparse": None, "collections": None, "functools": {"partial"}, "enum": None, "pathlib": None, "datetime": None,
    "signal": {"Signals"}, "io": {"BytesIO"}, "_io": {"BytesIO"}, "types": {"SimpleNamespace"}, "_codecs": {"encode"},
    "copyreg": {"_reconstructor"}, "copy_reg": {"_reconstructor"}, "random": {"Random"}, "typing": None,
    "dataclasses": None, "uuid": {"UUID"}, "decimal": {"Decimal"}, "fractions": {"Fraction"},
    "logging": {"Logger", "getLogger"},
    "builtins": {"set", "frozenset", "list", "dict", "tuple", "bytearray", "bytes", "complex", "int", "float", "str",
                 "bool", "object", "slice", "range"},
}  # fmt: skip
_STANDARD["__builtin__"] = _STANDARD["builtins"]
_DANGEROUS = {"nt", "torch.hub", "torch.jit", "torch.package", "torch.utils.cpp_extension", "dill", "cloudpickle",
              "commands", "numpy.testing", "numpy.f2py", "pip", "setuptools"}  # fmt: skip


class Placeholder:
    """Stands for an object whose class is not loaded; inert.

    Attributes:
        name: `module.Class` of the object, or of the global itself.
        arguments: what it would have been called with; None: the global itself, not called.
        state: its attributes.
        items: what would have been appended, or set by key.
    """

    __slots__ = ("arguments", "items", "name", "state")

    def __init__(self, name: str, arguments: tuple[Any, ...] | None = None):
        self.name = name
        self.arguments = arguments
        self.state: dict[Any, Any] = {}
        self.items: list[Any] = []

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Storage:
    """The numbers of one or more tensors: `numbers` of `dtype`, in a region that may be known only later."""

    __slots__ = ("_checked", "dtype", "numbers", "region", "where")

    def __init__(self, dtype: torch.dtype, numbers: int, where: str, region: Region | None = None):
        self.dtype = dtype
        self.numbers = numbers
        self.where = where
        self.region = region
        self._checked = False

    def tensor(self, shape: tuple[int, ...], offset: int, strides: tuple[int, ...] | None) -> torch.Tensor:
        """A tensor of these numbers from `offset` on; strides of None: contiguous.

        Raises:
            ValueError: the file is cut short, or its bytes are not those of their checksum.
        """
        assert self.region is not None, self.where
        if not self._checked:
            self.region.check()
            self._checked = True
        return self.region.tensor(self.dtype, shape, offset=offset * self.dtype.itemsize, strides=strides)


def resolve(module: str, name: str, where: str) -> Any:
    """A global of a pickle: a dtype, or a placeholder for a name that may stand there.

    Raises:
        ValueError: the name has no business in a checkpoint.
    """
    if module == "torch" and name in DTYPES:
        return DTYPES[name]
    root = module.partition(".")[0]
    standard = root in sys.stdlib_module_names or root in _STANDARD
    allowed = _STANDARD.get(module) if module in _STANDARD else set()
    refused = standard and not (module in _STANDARD and (allowed is None or name in allowed))
    dangerous = any(module == bad or module.startswith(bad + ".") for bad in _DANGEROUS)
    if refused or dangerous or ("." in name and module in _STANDARD):
        raise ValueError(
            f"{where} asks for {f'{module}.{name}'[:120]!r}, which no checkpoint needs and which could run code: the "
            "file is refused, nothing of it was run"
        )
    return Placeholder(f"{module}.{name}")


# Larger numbers may be chosen so that all have one hash, and a long tuple is hashed anew each time.
_LARGEST_KEY, _LONGEST_KEY = 1 << 60, 64


def _ordered(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    if isinstance(pairs, dict):
        return dict(pairs)
    return {key(first): second for first, second in pairs}


def key(value: Any) -> Any:
    """A value that may be the key of a dict or a member of a set; refuses others (deep tuples overflow the stack).

    Raises:
        ValueError: it may not.
    """
    if isinstance(value, str | float | bytes | complex | torch.dtype | Placeholder | Storage | type(None)):
        return value
    if isinstance(value, int) and abs(value) < _LARGEST_KEY:
        return value
    if (
        isinstance(value, tuple)
        and len(value) <= _LONGEST_KEY
        and all(
            isinstance(item, str | float | bytes | torch.dtype | Placeholder | type(None))
            or (isinstance(item, int) and abs(item) < _LARGEST_KEY)
            for item in value
        )
    ):
        return value
    raise ValueError(f"a {type(value).__name__} is no key of a dictionary")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any = None, *_: Any) -> LazyTensor:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    shape = tuple(shape)
    strides = tuple(strides) if strides is not None else contiguous(shape)
    good = len(shape) == len(strides) <= 16 and all(
        type(number) is int and 0 <= number < 1 << 48 for number in (offset, *shape, *strides)
    )
    if not good:
        raise ValueError("a tensor of an impossible shape")
    numbers = 1
    for size in shape:
        numbers *= size
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if numbers else 0
    if numbers > storage.numbers or last >= max(1, storage.numbers):
        raise ValueError(f"a tensor of shape {list(shape)} is larger than its storage of {storage.numbers:,} numbers")
    plain = None if strides == contiguous(shape) else strides
    return LazyTensor(shape, storage.dtype, lambda: storage.tensor(shape, offset, plain), storage.where)


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor without gaps, in numbers."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(1, size)
    return tuple(reversed(strides))


def _tensor_v3(storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any,
               *_: Any) -> LazyTensor:  # fmt: skip
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype) or storage.region is None:
        raise ValueError("a tensor without a storage")
    numbers = storage.numbers * storage.dtype.itemsize // dtype.itemsize
    viewed = Storage(dtype, numbers, storage.where, storage.region)
    return _tensor(viewed, offset, shape, strides)


def _from_type(_function: Any, _type: Any, arguments: Any, _state: Any) -> LazyTensor:
    return _tensor(*arguments)


def _first(value: Any, *_: Any) -> Any:
    return value


def _encode(text: Any, encoding: Any = "utf-8", *_: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8"):
        raise ValueError("bytes in an encoding that is not known")
    return text.encode(encoding)


def _scalar(dtype: Any, data: Any = b"") -> Any:
    code = dtype.arguments[0] if isinstance(dtype, Placeholder) and dtype.arguments else None
    form = {"f8": "<d", "f4": "<f", "f2": "<e", "i8": "<q", "i4": "<i", "i2": "<h", "u8": "<Q", "u4": "<I", "b1": "?"}
    if isinstance(code, str) and code in form and isinstance(data, bytes) and len(data) == struct.calcsize(form[code]):
        return struct.unpack(form[code], data)[0]
    return Placeholder("numpy.generic", (dtype, data))


def _set(values: Any = ()) -> set[Any]:
    return {key(value) for value in values}


def _sized(kind: type) -> Callable[..., Any]:
    # bytes(10**12) would take memory: only a copy of what the file holds is made.
    def make(value: Any = b"", *rest: Any) -> Any:
        if isinstance(value, int):
            raise ValueError(f"a {kind.__name__} made from a length")
        return kind(_encode(value, *rest) if isinstance(value, str) else value)

    return make


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda *_: {},
    "collections.Counter": _ordered,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Tensor": _first,
    "torch.nn.parameter.Parameter": _first,
    "torch.Size": lambda values=(): tuple(values),
    "torch.serialization._get_layout": lambda name="": str(name),
    "_codecs.encode": _encode,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
}
for _module in ("builtins", "__builtin__"):
    CALLS |= {
        f"{_module}.set": _set,
        f"{_module}.frozenset": lambda values=(): frozenset(_set(values)),
        f"{_module}.list": lambda values=(): list(values),
        f"{_module}.tuple": lambda values=(): tuple(values),
        f"{_module}.dict": _ordered,
        f"{_module}.bytearray": _sized(bytearray),
        f"{_module}.bytes": _sized(bytes),
        f"{_module}.complex": lambda real=0.0, imaginary=0.0: complex(real, imaginary),
    }
"""What is made at once when it is called; every other call gives a placeholder."""
