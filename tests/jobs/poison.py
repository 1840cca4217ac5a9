"""A sandboxed process that dies of whatever it is given, as one killed for its memory does."""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":
    os.kill(os.getpid(), signal.SIGKILL)
