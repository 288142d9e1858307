"""The learned images (``sets``) and their file; ``validation`` and ``other_formats`` reject bad input, and may wait."""

from iidlib.synthetic.validation import check_real
from iidlib.synthetic.mosaics import expand
from iidlib.synthetic.sets import SyntheticSet

__all__ = ["SyntheticSet", "check_real", "expand"]
