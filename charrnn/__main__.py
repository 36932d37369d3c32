"""The command `charrnn`, which is also `python -m charrnn`."""

import os
import signal
import sys


def main() -> int:
    """Run the command line. Ctrl-C while its modules load ends the process silently with exit code 130."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # a shell script starts background jobs with SIGINT ignored: keep that
        # not a KeyboardInterrupt: an extension module that is loading can turn it into an ImportError or swallow it
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from charrnn.cli.main import main

    signal.signal(signal.SIGINT, before)
    return main()


if __name__ == "__main__":
    sys.exit(main())
