"""Runs a Python module like ``python -m``, and ends when its parent does: a killed worker leaves nothing running.

python -m iidlib.scale.attended papermill in.ipynb out.ipynb
"""

import os
import runpy
import signal
import sys
import threading
import time

__all__ = ["main"]

_PATIENCE = 10.0
"""Seconds that a command has to write its checkpoint after its parent has ended."""


def _watch() -> None:
    """Waits for the end of stdin, which the parent holds open, and then ends this process and what it has started."""
    while os.read(0, 1):
        pass
    if os.name == "posix":
        group = os.getpgid(0)
        os.killpg(group, signal.SIGTERM)
        time.sleep(_PATIENCE)
        os.killpg(group, signal.SIGKILL)
    os._exit(1)


def main() -> None:
    """Runs the module that is named by the first argument, with the others."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # local workers ignore the signal, and so would this one
    threading.Thread(target=_watch, daemon=True).start()
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
