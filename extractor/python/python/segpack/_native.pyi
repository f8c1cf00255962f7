from os import PathLike
from typing import Any, Literal

__version__: str

class TensorInfo:
    """What the manifest says of a tensor."""

    @property
    def name(self) -> str:
        """Its name."""
    @property
    def dtype(self) -> str:
        """Element type, as safetensors names it."""
    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, outermost dimension first."""
    @property
    def nbytes(self) -> int:
        """Bytes, decoded."""
    @property
    def sha256(self) -> str:
        """SHA-256 of these bytes, 64 hex digits."""
    @property
    def component(self) -> str:
        """Part of the model, such as ``thinker.text``."""
    @property
    def role(self) -> str:
        """What it does there, such as ``expert_gate``."""
    @property
    def part(self) -> str:
        """Which tensor of its weight it is, such as ``weight`` or ``scale``."""
    @property
    def layer(self) -> int | None:
        """Layer, if it belongs to one."""
    @property
    def expert(self) -> int | None:
        """Expert, if it belongs to one."""
    @property
    def segment(self) -> str:
        """The segment that holds it."""
    @property
    def codec(self) -> str:
        """How the segment is coded: ``raw``, ``zstd``, ``bf16-zstd`` or ``bf16-rans``."""
    @property
    def file(self) -> str:
        """The file that holds it, relative to the pack."""
    @property
    def source_file(self) -> str:
        """The checkpoint's file that it came from."""
    @property
    def source_tensor(self) -> str:
        """The tensor of that file; a stacked one holds many."""

class Pack:
    def __init__(self, place: str, manifest_sha256: str | None = None) -> None: ...
    @property
    def folder(self) -> PathLike[str] | None: ...
    @property
    def manifest_sha256(self) -> str: ...
    def info(self) -> dict[str, Any]: ...
    def names(self) -> list[str]: ...
    def count(self) -> int: ...
    def tensors(self) -> list[TensorInfo]: ...
    def tensor(self, name: str) -> TensorInfo | None: ...
    def span(self, name: str) -> tuple[str, int, int] | None: ...
    def read(self, name: str, check: bool) -> bytearray: ...
    def check(self, name: str) -> None: ...
    def source_names(self) -> list[str]: ...
    def stacked(self, name: str) -> tuple[str, tuple[int, ...], int] | None: ...
    def read_stacked(self, name: str, check: bool) -> bytearray | None: ...
    def file(self, name: str) -> bytes | None: ...

class Session:
    def __init__(self, pack: Pack, settings: dict[str, Any]) -> None: ...
    @property
    def device(self) -> str: ...
    @property
    def context_length(self) -> int: ...
    def stream(self, prompt: Any, settings: dict[str, Any]) -> Stream: ...
    def close(self) -> None: ...

class Stream:
    def next(self) -> tuple[Literal["token", "summary"], dict[str, Any]]: ...
    def close(self) -> None: ...

def verify(
    place: str,
    *,
    mode: str,
    against: str | None,
    values: bool,
    restorable: bool,
    allow_unaudited: bool,
    manifest_sha256: str | None,
    jobs: int | None,
) -> dict[str, Any]: ...
def dtypes() -> list[str]: ...
def main(arguments: list[str]) -> int: ...
