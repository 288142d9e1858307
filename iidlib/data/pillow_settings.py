"""Pillow as it is to be while image files are read: without warnings of its own, and strict about what is truncated."""

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
    """A block in which Pillow reads files whole or not at all, and says so by exceptions alone.

    Its warnings, its log and the complaints of its TIFF library would reach the terminal in words that are not for
    users, and scripts like to switch its refusal of truncated files off. These are settings of the process: other
    threads have them too, and the last of several blocks that overlap restores what was before the first.
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
    """The blocks of `quiet` that threads are in now."""

    blocks: int = 0
    settings: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    lock: threading.Lock = field(default_factory=threading.Lock)


_quiet = _Quiet()


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    log, whole, handler = logging.getLogger("PIL"), ImageFile.LOAD_TRUNCATED_IMAGES, _tiff_error_handler()
    level, complain = log.level, handler(None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.CRITICAL)
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            handler(complain)
            log.setLevel(level)
            ImageFile.LOAD_TRUNCATED_IMAGES = whole


@functools.cache
def _tiff_error_handler() -> Callable[[int | None], int | None]:
    """Sets what the TIFF library of Pillow calls to print an error, and returns what it called before.

    Does nothing where that library has been built into Pillow.
    """
    try:
        setter = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler
    except (OSError, AttributeError, TypeError):
        return lambda handler: None
    setter.argtypes, setter.restype = (ctypes.c_void_p,), ctypes.c_void_p
    return setter
