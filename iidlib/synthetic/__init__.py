"""The learned images (``sets``) and their file. ``door`` and ``foreign``, which reject bad input, may be skipped."""

from iidlib.synthetic.beginnings import check_real
from iidlib.synthetic.mosaics import expand
from iidlib.synthetic.sets import SyntheticSet

__all__ = ["SyntheticSet", "check_real", "expand"]
