"""The farfeed command: `python -m farfeed`, or `farfeed` where the package's scripts are on the path."""

from __future__ import annotations

import signal
import sys

from . import _farfeed


def main() -> int:
    """Does what the process's arguments say, and returns the exit code: 0 done, 1 failed, 2 wrong use."""
    # Ctrl-C ends a command. Python's own handler would take a note that nobody reads while the extension is at work.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _farfeed.main(sys.argv[1:], sys.executable)


if __name__ == "__main__":
    sys.exit(main())
