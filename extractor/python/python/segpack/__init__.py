"""Packs of Mixture-of-Experts checkpoints: read, verified and run.

>>> import segpack
>>> pack = segpack.Pack("omni.segpack")
>>> pack["thinker.model.embed_tokens.weight"].shape  # numpy, without a copy where the pack is raw
(152064, 2048)
>>> pack.verify().ok
True
>>> with segpack.Session(pack, memory=8_000_000_000) as session:
...     session.generate("Name three rivers.", chat=True).text

Importing the package imports neither numpy nor torch; what needs them imports them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._errors import (
        DamagedError as DamagedError,
        EnvironmentFailure as EnvironmentFailure,
        NoSuchTensorError as NoSuchTensorError,
        SegpackError as SegpackError,
        UsageError as UsageError,
    )
    from ._native import TensorInfo as TensorInfo, __version__ as __version__
    from ._pack import Expert as Expert, Pack as Pack
    from ._report import VerifyReport as VerifyReport, verify as verify
    from ._session import (
        Candidate as Candidate,
        Generation as Generation,
        Session as Session,
        Stream as Stream,
        Token as Token,
    )

#: Public names, and the modules that define them. Recorders and the Ray helper work where the native half is
#: not built, and the command starts without what it does not need.
_HOMES = {
    "_errors": ["DamagedError", "EnvironmentFailure", "NoSuchTensorError", "SegpackError", "UsageError"],
    "_native": ["TensorInfo", "__version__"],
    "_pack": ["Expert", "Pack"],
    "_report": ["VerifyReport", "verify"],
    "_session": ["Candidate", "Generation", "Session", "Stream", "Token"],
}

__all__ = sorted(name for names in _HOMES.values() for name in names)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
