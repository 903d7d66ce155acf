"""Ctrl-C during training: finish the step and save, instead of stopping in the middle of it."""

import os
import signal
import threading
from types import FrameType, TracebackType

from typing_extensions import Self


class Interrupt:
    """While active, the first SIGINT, SIGTERM or SIGHUP only sets `requested`; a second one raises KeyboardInterrupt.

    Repeated signals are ignored where one is usual: of SIGHUP (a closing terminal sends several), and in the processes of
    torchrun, which passes a Ctrl-C on to processes that have received it themselves.
    """

    def __init__(self) -> None:
        self.requested = False
        self._launched = "TORCHELASTIC_RUN_ID" in os.environ
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers only there
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
            # Windows has no SIGHUP; under nohup it stays ignored.
            hangup = getattr(signal, "SIGHUP", None)
            if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
                self._previous[hangup] = signal.signal(hangup, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        repeated = self.requested and not self._launched and number in (signal.SIGINT, signal.SIGTERM)
        self.requested = True
        if repeated:
            raise KeyboardInterrupt
