"""What a run prints."""

import contextlib
import os
import sys

from t6jax.parallel import processes


class Console:
    """Prints lines on the first process, until they cannot be written any more.

    closed: why they cannot, as after `train.py | head`; "" as long as they can.
    """

    def __init__(self):
        self.closed = ""

    def say(self, text: str) -> None:
        """Prints a line at once."""
        if self.closed or not processes.is_first_process():
            return
        try:
            print(text, flush=True)
        except OSError as e:
            self.closed = e.strerror or type(e).__name__
            # what is still in Python's buffer, which is flushed at exit, has to go somewhere
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
