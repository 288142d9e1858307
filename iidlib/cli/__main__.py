"""Entry point of ``python -m iidlib.cli``, which is the same as ``iid``."""

from iidlib.cli import main

main()
