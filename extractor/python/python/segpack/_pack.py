"""Packs as mappings from names to arrays."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import _native
from ._dtypes import numpy_dtype, torch_dtype
from ._errors import NoSuchTensorError, UsageError
from ._maps import Maps
from ._report import VerifyReport, verify

if TYPE_CHECKING:
    import mmap

    import numpy as np
    import torch

Check = Literal["first", "always", "never"]
_CHECKS = ("first", "always", "never")


class Pack(Mapping[str, "np.ndarray[Any, Any]"]):
    """An open pack: a mapping from the names of its tensors to numpy arrays, in the order of the pack.

    Opening reads the manifest alone. The arrays have the shapes and dtypes of the checkpoint, bfloat16 and the
    8-bit floats as ml_dtypes has them. Of a raw pack on this machine they are views of the mapped file: read-only,
    without a copy, valid after the pack is gone. Of a coded pack, or of one on a server, they are decoded into
    memory of their own and may be written to.

    Args:
        place: a folder, or an address as every command takes it: ``hf://OWNER/NAME[@REVISION]``,
            ``https://HOST/FOLDER/``, ``s3://BUCKET/PREFIX``, ``gs://…``, ``az://…``.
        manifest_sha256: the SHA-256 that ``manifest.json`` must have, 64 hex digits.
        check: when the SHA-256 of a tensor is compared with the manifest's: the ``"first"`` time that it is
            read, ``"always"``, or ``"never"``.

    A file that is cut while it is mapped ends the process with SIGBUS, as with every mapped file.
    """

    def __init__(
        self,
        place: "str | os.PathLike[str]",
        *,
        manifest_sha256: "str | None" = None,
        check: Check = "first",
    ) -> None:
        if check not in _CHECKS:
            raise UsageError(f"check is {check!r}: wanted one of {', '.join(_CHECKS)}")
        self._place = os.fspath(place)
        self._check: Check = check
        self._native = _native.Pack(self._place, manifest_sha256)
        folder = self._native.folder
        self._maps = None if folder is None else Maps(Path(folder))
        self._checked: set[str] = set()

    def __getitem__(self, name: str) -> "np.ndarray[Any, Any]":
        """The tensor of this name. A stacked one, which the pack holds as the tensors of its experts, is put
        together of them."""
        import numpy as np

        dtype_name, shape = self._facts(name)
        dtype = numpy_dtype(dtype_name, name)
        buffer, offset, nbytes = self._bytes(name, writable=False)
        flat = np.frombuffer(buffer, np.uint8, nbytes, offset)
        return flat.view(dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._native.names())

    def __len__(self) -> int:
        return self._native.count()

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        return self._native.tensor(name) is not None or self._native.stacked(name) is not None

    def __repr__(self) -> str:
        return f"Pack({self._place!r}): {len(self)} tensors"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._place, self.manifest_sha256, self._check)

    def __eq__(self, other: object) -> bool:
        """Whether it is the same object: comparing all arrays is nobody's intention."""
        return self is other

    __hash__ = object.__hash__

    @property
    def place(self) -> str:
        """The folder or the address, as it was given."""
        return self._place

    @property
    def manifest_sha256(self) -> str:
        """SHA-256 of ``manifest.json``, 64 hex digits: the pack's identity."""
        return self._native.manifest_sha256

    @property
    def info(self) -> dict[str, Any]:
        """What the pack is: model, codec, sizes, components, origin (``schemas/info-report.schema.json``)."""
        return self._native.info()

    def tensors(self) -> list[_native.TensorInfo]:
        """What the manifest says of each tensor, in the order of the pack. No weight is read."""
        return self._native.tensors()

    def tensor(self, name: str) -> _native.TensorInfo:
        """What the manifest says of a tensor. No weight is read.

        Raises:
            NoSuchTensorError: the pack has none of this name.
        """
        found = self._native.tensor(name)
        if found is None:
            raise self._missing(name)
        return found

    def read(self, name: str) -> "memoryview":
        """The bytes of a tensor, little-endian, the last dimension fastest: read-only and without a copy where
        the pack is raw, decoded otherwise."""
        buffer, offset, nbytes = self._bytes(name, writable=False)
        return memoryview(buffer)[offset : offset + nbytes]

    def file(self, name: str) -> bytes:
        """A file of the checkpoint that is no shard, such as ``config.json``, checked against its SHA-256.

        Raises:
            UsageError: the checkpoint had none of this name.
        """
        found = self._native.file(name)
        if found is None:
            raise UsageError(f"{self._place}: the checkpoint had no file {name!r}")
        return found

    def experts(self, layer: int, component: "str | None" = None) -> "dict[int, Expert]":
        """The routed experts of a layer by their numbers. Nothing is read until a tensor of one is.

        Args:
            layer: the number of the layer.
            component: the part of the model, such as ``thinker.text``; needed where several have such a layer.

        Raises:
            UsageError: no component has experts in this layer, or several have.
        """
        found: dict[str, dict[int, dict[str, str]]] = {}
        layers: set[int] = set()
        for tensor in self._native.tensors():
            if tensor.expert is None or tensor.layer is None:
                continue
            layers.add(tensor.layer)
            if tensor.layer == layer:
                experts = found.setdefault(tensor.component, {})
                experts.setdefault(tensor.expert, {})[_short(tensor)] = tensor.name
        if component is not None:
            found = {component: found[component]} if component in found else {}
        if not found:
            of = "" if component is None else f" of {component!r}"
            raise UsageError(f"layer {layer}{of} has no experts; layers that have: {sorted(layers)}")
        if len(found) > 1:
            raise UsageError(
                f"layer {layer} has experts in several components: {', '.join(sorted(found))}",
                hint="name one: pack.experts(layer, component)",
            )
        (experts,) = found.values()
        return {number: Expert(self, layer, number, experts[number]) for number in sorted(experts)}

    def state_dict(
        self, prefix: str = "", *, strip: bool = True, threads: "int | None" = None
    ) -> "dict[str, torch.Tensor]":
        """The checkpoint's tensors as torch's, under the checkpoint's names, for ``load_state_dict``.

        Tensors of a raw pack are views of the mapped file, without a copy; what is written to them stays in this
        process. Stacked ones are put together, coded ones decoded.

        Args:
            prefix: the tensors whose names begin with it, such as ``thinker.``.
            strip: whether it is taken off their names.
            threads: how many read and decode at once; one per core if not given.

        Raises:
            UsageError: no name begins with the prefix, or torch has no such dtype.
        """
        names = [name for name in self._native.source_names() if name.startswith(prefix)]
        if not names:
            raise UsageError(f"no tensor of {self._place} has a name that begins with {prefix!r}")
        keys = [name[len(prefix) :] if strip else name for name in names]
        pool = ThreadPoolExecutor(threads or os.cpu_count() or 1)
        try:
            return dict(zip(keys, pool.map(self._torch, names), strict=True))
        finally:
            pool.shutdown(cancel_futures=True)

    def verify(self, **options: Any) -> VerifyReport:
        """Checks the whole pack and returns all that is wrong with it. Takes the options of
        :func:`segpack.verify`."""
        options.setdefault("manifest_sha256", self.manifest_sha256)
        return verify(self._place, **options)

    def _torch(self, name: str) -> "torch.Tensor":
        import torch

        dtype_name, shape = self._facts(name)
        dtype = torch_dtype(dtype_name, name)
        buffer, offset, nbytes = self._bytes(name, writable=True)
        if nbytes == 0:
            return torch.empty(shape, dtype=dtype)
        if offset % dtype.itemsize != 0:
            buffer, offset = bytearray(memoryview(buffer)[offset : offset + nbytes]), 0
        flat = torch.frombuffer(buffer, dtype=dtype, count=nbytes // dtype.itemsize, offset=offset)
        return flat.reshape(shape)

    def _facts(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Dtype and shape of a tensor of the pack or of a stacked one of the checkpoint."""
        tensor = self._native.tensor(name)
        if tensor is not None:
            return tensor.dtype, tensor.shape
        stacked = self._native.stacked(name)
        if stacked is None:
            raise self._missing(name)
        dtype, shape, _ = stacked
        return dtype, shape

    def _bytes(self, name: str, *, writable: bool) -> "tuple[mmap.mmap | bytearray, int, int]":
        """Where the bytes of a tensor are: a buffer, the first of them in it, and how many there are."""
        check = self._check == "always" or (self._check == "first" and name not in self._checked)
        tensor = self._native.tensor(name)
        if tensor is None:
            stacked = self._native.read_stacked(name, check)
            if stacked is None:
                raise self._missing(name)
            self._checked.add(name)
            return stacked, 0, len(stacked)
        span = self._native.span(name)
        if span is None or self._maps is None:
            decoded = self._native.read(name, check)
            self._checked.add(name)
            return decoded, 0, len(decoded)
        path, length, offset = span
        mapped = self._maps.get(path, length, writable=writable)
        if check:
            self._native.check(name)
            self._checked.add(name)
        return mapped, offset, tensor.nbytes

    def _missing(self, name: str) -> NoSuchTensorError:
        import difflib

        near = difflib.get_close_matches(name, self._native.names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "iterating over the pack lists its names"
        return NoSuchTensorError(f"{self._place} has no tensor {name!r}", tensor=name, hint=hint)


class Expert(Mapping[str, "np.ndarray[Any, Any]"]):
    """A routed expert: a mapping from what its tensors do to arrays, as :class:`Pack` gives them.

    The names are those of the roles, without ``expert_``: ``gate`` ``[intermediate, hidden]``, ``up``
    ``[intermediate, hidden]``, ``down`` ``[hidden, intermediate]``, or ``gate_up``; of a quantised weight also its
    other parts, ``gate.scale``.
    """

    def __init__(self, pack: Pack, layer: int, number: int, names: Mapping[str, str]) -> None:
        self._pack = pack
        self._names = dict(names)
        #: The layer.
        self.layer = layer
        #: Its number in the layer, from 0.
        self.number = number

    def __getitem__(self, name: str) -> "np.ndarray[Any, Any]":
        return self._pack[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Expert(layer={self.layer}, number={self.number}, {list(self._names)})"

    @property
    def tensor_names(self) -> dict[str, str]:
        """The names of its tensors in the pack."""
        return dict(self._names)


def _short(tensor: _native.TensorInfo) -> str:
    role = tensor.role.removeprefix("expert_")
    return role if tensor.part == "weight" else f"{role}.{tensor.part}"


def _reopen(place: str, manifest_sha256: str, check: Check) -> Pack:
    """The same pack in another process."""
    return Pack(place, manifest_sha256=manifest_sha256, check=check)
