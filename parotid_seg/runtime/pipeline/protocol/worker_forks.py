"""Messages to and from `worker_server`."""

from __future__ import annotations

import struct

REQUEST = struct.Struct("!Bqq")
"""One of `FORK`, `END` and `STATUS`, the request's number, and the number of the request that forked the worker."""
ANSWER = struct.Struct("!qq")
"""The request's number, and what was asked for."""
FORK = 0
"""A new worker with the descriptor that comes along; the answer is its process number, or minus the system's error."""
END = 1
"""Send SIGKILL to the worker; no answer."""
STATUS = 2
"""The worker's exit status, minus the signal that ended it; `RUNNING` as long as it runs."""
RUNNING = 1 << 32
"""No exit status."""
