"""Run a server as a child that cannot outlive its parent: ``python -m realm.guard COMMAND ...``.

The parent holds the other end of this process's standard input. When that closes, because the parent is
done or was killed, the command is ended. Imports nothing heavy: it starts in a few hundredths of a second.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 5


def main(command: list[str]) -> int:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def end_child(*_: object) -> None:
        child.terminate()
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()

    def wait_for_parent() -> None:
        sys.stdin.buffer.read()
        end_child()

    # An interrupt at the terminal is for the notebook, which closes our input when it has saved its work.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_child)
    threading.Thread(target=wait_for_parent, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
