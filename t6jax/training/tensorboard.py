"""TensorBoard events, written by the thread that has them: an error is raised where they are
written. (tensorboardX's own writer has a thread, and when that dies its callers wait for ever.)
"""

import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from t6jax.extras import needs

FLUSH_SECONDS = 30  # after which what was written can be seen


class TensorBoard:
    """Appends scalars to a new file of events.

    Args:
        path: the folder of events.
        step: where the run resumes, 0 if it begins: TensorBoard drops what it read of later steps.
    """

    def __init__(self, path: pathlib.Path, step: int):
        with needs("train"):
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2
            from tensorboardX.summary import scalar
        made: Any = event_pb2  # its classes are made when it is imported
        self._event, self._scalar, self.path = made.Event, scalar, path
        begun_before = path.is_dir() and any(path.iterdir())
        path.mkdir(parents=True, exist_ok=True)
        # the name has the second of its making: a run that is killed and begins again within it
        # must not write over the file
        self._file = EventsWriter(str(path / "events"), f".{os.getpid()}.{time.time_ns()}")
        if begun_before:
            restart = made.SessionLog(status=made.SessionLog.START)
            self._file.write_event(
                self._event(wall_time=time.time(), step=step + 1, session_log=restart)
            )
        self.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes values under a step."""
        for name, value in values.items():
            summary = self._scalar(name, value)
            self._file.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hands all that was written to the operating system."""
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()
