"""A run on disk. Readers interested in the method may skip it: nothing here affects a result."""

from iidlib.runs.checkpoints import Checkpoints
from iidlib.runs.folder import RunFolder
from iidlib.runs.frame import runs_frame

__all__ = ["Checkpoints", "RunFolder", "runs_frame"]
