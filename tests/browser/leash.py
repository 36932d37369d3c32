"""Runs a command for as long as standard input is open: a server that ends even if the tests that use it are killed."""

import subprocess
import sys
import threading


def end(server: subprocess.Popen[bytes], patience: float = 15.0) -> None:
    """When nobody holds the other end of the pipe any more, let the server end its kernels, or end it."""
    sys.stdin.buffer.read()
    server.terminate()
    try:
        server.wait(patience)
    except subprocess.TimeoutExpired:
        server.kill()  # a kernel ends by itself when its server is gone


if __name__ == "__main__":
    server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=end, args=(server,), daemon=True).start()
    sys.exit(server.wait())
