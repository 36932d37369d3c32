"""Run a command while standard input is open, so that a server ends even if the tests are killed."""

import subprocess
import sys
import threading


def end(server: subprocess.Popen[bytes], patience: float = 15.0) -> None:
    """When the pipe closes, let the server end its kernels, or kill it."""
    sys.stdin.buffer.read()
    server.terminate()
    try:
        server.wait(patience)
    except subprocess.TimeoutExpired:
        server.kill()  # a kernel ends when its server is gone


if __name__ == "__main__":
    server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=end, args=(server,), daemon=True).start()
    sys.exit(server.wait())
