"""The command `segpack`: the program that Cargo builds, in Python's process."""

import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Runs the command line of this process and ends it with the command's exit status."""
    _keep_standard_streams_open()
    # Ctrl-C is the program's; one that was ignored from the start stays so
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ._native import main as run

    sys.exit(run(["segpack", *sys.argv[1:]]))


def _keep_standard_streams_open() -> None:
    """Opens what was closed, as the runtime of Rust does: the next file that is opened would take its number, and
    what is printed would go into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


if __name__ == "__main__":
    main()
