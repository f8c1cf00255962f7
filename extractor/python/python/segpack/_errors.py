"""What goes wrong, as exceptions with fields."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class SegpackError(Exception):
    """Why something failed. The message says what, where, what was seen and what was wanted.

    Attributes:
        file: the file or folder that it is about, where it is about one.
        tensor: the name of the tensor that was read, where one was.
        hint: what to change, where that is known.
        causes: the messages of the causes, the nearest first; the message has them, too.
        findings: all that is wrong with an input, as ``segpack verify --json`` has them; empty where the
            error is a single one.
        exit_status: the exit status of the command for such an error.
    """

    exit_status: int = 1

    def __init__(
        self,
        message: str,
        *,
        file: "str | Path | None" = None,
        tensor: "str | None" = None,
        hint: "str | None" = None,
        causes: Sequence[str] = (),
        findings: "Sequence[Mapping[str, Any]] | None" = None,
    ) -> None:
        super().__init__(message)
        self.file: Path | None = None if file is None else Path(file)
        self.tensor = tensor
        self.hint = hint
        self.causes: tuple[str, ...] = tuple(causes)
        self.findings: tuple[Mapping[str, Any], ...] = tuple(findings or ())

    def __str__(self) -> str:
        message = str(self.args[0]) if self.args else ""
        return message if self.hint is None else f"{message}\nhint: {self.hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(kind: type[SegpackError], args: tuple[Any, ...], fields: dict[str, Any]) -> SegpackError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class DamagedError(SegpackError):
    """The input is damaged, incomplete or different from what it has to be."""

    exit_status = 3


class EnvironmentFailure(SegpackError):
    """The environment failed: no permission, no memory, no answer from a server. Nothing is known of the
    bytes."""

    exit_status = 1


class UsageError(SegpackError):
    """An argument cannot be."""

    exit_status = 2


class NoSuchTensorError(UsageError, KeyError):
    """The pack has no tensor of this name. It is a ``KeyError``, too, as of every mapping."""
