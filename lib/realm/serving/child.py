"""Run a server as a child that cannot outlive its parent: ``python -m realm.serving.child COMMAND ...``.

The parent holds the other end of this process's standard input. When that closes, because the parent is
done or was killed, the command is ended. Imports nothing heavy: it starts in a few hundredths of a second.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 5


def main(command: list[str]) -> int:
    # An interrupt at the terminal is for the notebook, which closes our input when it has saved its work.
    # A closed terminal and a quit key signal us too: dying of that would leave the child alone. From before the child
    # is there; and by a handler, since what is ignored would be ignored by the child too.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def signal_group(number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)  # the child leads a session, so its workers are in its group

    def end_child(*_: object) -> None:
        signal_group(signal.SIGTERM)
        killer = threading.Timer(GRACE_SECONDS, signal_group, [signal.SIGKILL])
        killer.daemon = True
        killer.start()

    def wait_for_parent() -> None:
        # Not through sys.stdin, whose lock this thread would still hold when the interpreter ends.
        while os.read(0, 4096):
            pass
        end_child()

    signal.signal(signal.SIGTERM, end_child)
    threading.Thread(target=wait_for_parent, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
