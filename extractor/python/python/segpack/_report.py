"""What a verification found."""

import os
from typing import Any, Literal

from . import _native
from ._errors import DamagedError


class VerifyReport:
    """All that a verification found. It is true where nothing is wrong.

    Attributes:
        document: the report as ``segpack verify --json`` prints it (``schemas/verify-report.schema.json``).
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return bool(self.document["ok"])

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What is wrong or odd, each with its ``kind`` and ``severity``, and its ``file``, ``tensor``, ``segment``,
        ``seen`` and ``wanted`` where it has them."""
        return list(self.document["findings"])

    def raise_for_findings(self) -> "VerifyReport":
        """Raises where something is wrong, and returns itself otherwise.

        Raises:
            DamagedError: with all findings.
        """
        if self.ok:
            return self
        number = sum(finding.get("severity") == "error" for finding in self.findings)
        counted = "1 problem" if number == 1 else f"{number} problems"
        raise DamagedError(f"the pack is damaged: {counted} found", findings=self.findings)

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        return f"VerifyReport(ok={self.ok}, {len(self.findings)} findings)"


def verify(
    place: "str | os.PathLike[str]",
    *,
    mode: Literal["quick", "full", "sums"] = "full",
    against: "str | os.PathLike[str] | None" = None,
    values: bool = False,
    restorable: bool = True,
    allow_unaudited: bool = False,
    manifest_sha256: "str | None" = None,
    jobs: "int | None" = None,
) -> VerifyReport:
    """Checks a pack; everything that is wrong with it is a finding of the report.

    Args:
        place: a folder, or an address (see :class:`Pack`).
        mode: ``"quick"`` checks the structure and reads no weights; ``"full"`` hashes every stored byte once and
            compares the SHA-256 of every tensor; ``"sums"`` also that of every file.
        against: a checkpoint to compare with.
        values: whether statistics of the values are taken, and what looks untrained is a finding.
        restorable: whether the original files are proved to be restorable.
        allow_unaudited: whether it is no error that nothing says which tensors there have to be.
        manifest_sha256: the SHA-256 that ``manifest.json`` must have.
        jobs: threads; one per core, at most 16, if not given.

    Raises:
        EnvironmentFailure: a file cannot be read although it may be sound, or a server does not answer.
    """
    document = _native.verify(
        os.fspath(place),
        mode=mode,
        against=None if against is None else os.fspath(against),
        values=values,
        restorable=restorable,
        allow_unaudited=allow_unaudited,
        manifest_sha256=manifest_sha256,
        jobs=jobs,
    )
    return VerifyReport(document)
