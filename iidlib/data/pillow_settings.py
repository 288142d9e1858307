"""Settings of Pillow while image files are read: no warnings, and strict about truncated files."""

import contextlib
import ctypes
import functools
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from PIL import Image, ImageFile

__all__ = ["quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Runs a block in which Pillow rejects incomplete files and reports problems only by exceptions.

    Its warnings, its log and the errors of its TIFF library would reach the terminal in wording that does not help
    users, and scripts often make it accept truncated files. These settings apply to the whole process, including other
    threads; the last of several overlapping blocks restores the settings from before the first.
    """
    with _quiet.lock:
        if not _quiet.blocks:
            _quiet.settings.enter_context(_settings())
        _quiet.blocks += 1
    try:
        yield
    finally:
        with _quiet.lock:
            _quiet.blocks -= 1
            if not _quiet.blocks:
                _quiet.settings.close()


@dataclass
class _Quiet:
    """State shared by all active blocks of `quiet`."""

    blocks: int = 0
    settings: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    lock: threading.Lock = field(default_factory=threading.Lock)


_quiet = _Quiet()


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    log, truncated, set_handler = logging.getLogger("PIL"), ImageFile.LOAD_TRUNCATED_IMAGES, _tiff_error_handler()
    level, handler = log.level, set_handler(None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.CRITICAL)
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            set_handler(handler)
            log.setLevel(level)
            ImageFile.LOAD_TRUNCATED_IMAGES = truncated


@functools.cache
def _tiff_error_handler() -> Callable[[int | None], int | None]:
    """Returns a function that sets the error handler of Pillow's TIFF library and returns the previous one.

    The function does nothing if that library is linked statically into Pillow.
    """
    try:
        setter = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler
    except (OSError, AttributeError, TypeError):
        return lambda handler: None
    setter.argtypes, setter.restype = (ctypes.c_void_p,), ctypes.c_void_p
    return setter
