"""The version, in a module without imports so that every module can use it; the same as in ``pyproject.toml``."""

__all__ = ["__version__"]

__version__ = "0.2.0"
