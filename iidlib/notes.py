"""Messages that a user should see only once per process."""

import functools
import logging

__all__ = ["log_once"]

logger = logging.getLogger("iidlib")


@functools.lru_cache(1000)
def log_once(level: int, text: str) -> None:
    """Logs a line once per process; after a thousand others it may be repeated."""
    logger.log(level, "%s", text)
