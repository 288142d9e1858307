"""``python -m iidlib.cli``, the same as ``iid``."""

from iidlib.cli import main

main()
