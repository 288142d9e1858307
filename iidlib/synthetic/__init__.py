"""The learned images (``sets``) and their file. Skip ``validation`` and ``other_formats``, which reject bad input."""

from iidlib.synthetic.validation import check_real
from iidlib.synthetic.mosaics import expand
from iidlib.synthetic.sets import SyntheticSet

__all__ = ["SyntheticSet", "check_real", "expand"]
