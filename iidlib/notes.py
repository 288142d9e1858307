"""What a user should know once, however often the work comes past it."""

import functools
import logging

__all__ = ["say_once"]

logger = logging.getLogger("iidlib")


@functools.lru_cache(1000)
def say_once(level: int, text: str) -> None:
    """Logs a line once in a process, unless so many others have been said since that it is forgotten."""
    logger.log(level, "%s", text)
