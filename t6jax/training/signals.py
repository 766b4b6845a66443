"""The signals that ask a run to save and stop."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

ASK_TO_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def caught_signals() -> Iterator[list[signal.Signals]]:
    """The signals of ASK_TO_STOP that are received inside the block, a list that grows; a second
    one has its usual effect.
    """
    caught: list[signal.Signals] = []
    previous = {}

    def note(number, frame):
        caught.append(signal.Signals(number))
        signal.signal(number, previous[number])
        # not print, which may be what was interrupted
        with contextlib.suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), f"{caught[-1].name}: saving after this step\n".encode())

    for number in ASK_TO_STOP:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # nohup
        previous[number] = signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
