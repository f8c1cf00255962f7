"""The dtypes of safetensors in numpy, ml_dtypes and torch."""

from typing import TYPE_CHECKING, Any

from ._errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch

#: numpy's names; those that ml_dtypes adds begin with a dot.
NUMPY = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": ".float8_e5m2",
    "F8_E4M3": ".float8_e4m3fn",
    "F8_E8M0": ".float8_e8m0fnu",
    "F8_E4M3FNUZ": ".float8_e4m3fnuz",
    "F8_E5M2FNUZ": ".float8_e5m2fnuz",
    "I16": "<i2",
    "U16": "<u2",
    "F16": "<f2",
    "BF16": ".bfloat16",
    "I32": "<i4",
    "U32": "<u4",
    "F32": "<f4",
    "C64": "<c8",
    "F64": "<f8",
    "I64": "<i8",
    "U64": "<u8",
}

#: torch's names.
TORCH = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}

#: Values that share bytes. Neither library has arrays of them that are packed alike.
PACKED = frozenset({"F4", "F6_E2M3", "F6_E3M2"})


def numpy_dtype(name: str, tensor: str) -> "np.dtype[Any]":
    """The numpy dtype of a safetensors dtype; `tensor` is whose it is, for messages."""
    import numpy as np

    known = _known(NUMPY, name, tensor, "numpy")
    if not known.startswith("."):
        return np.dtype(known)
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, known[1:]))
    return dtype


def torch_dtype(name: str, tensor: str) -> "torch.dtype":
    """The torch dtype of a safetensors dtype; `tensor` is whose it is, for messages."""
    import torch

    known = _known(TORCH, name, tensor, "torch")
    dtype: torch.dtype | None = getattr(torch, known, None)
    if dtype is None:
        raise UsageError(
            f"tensor {tensor!r} has dtype {name}, which torch {torch.__version__} does not have",
            tensor=tensor,
            hint="a newer torch has it; pack.read(name) gives the bytes",
        )
    return dtype


def _known(names: dict[str, str], name: str, tensor: str, library: str) -> str:
    if name in names:
        return names[name]
    raise UsageError(
        f"tensor {tensor!r} has dtype {name}, whose values share bytes: {library} has no array of them",
        tensor=tensor,
        hint="pack.read(name) gives the bytes",
    )
