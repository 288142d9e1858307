"""A run on disk. A reader of the method may skip it: nothing here touches a number."""

from iidlib.runs.checkpoints import Checkpoints
from iidlib.runs.folder import RunFolder
from iidlib.runs.frame import runs_frame

__all__ = ["Checkpoints", "RunFolder", "runs_frame"]
