"""Real images: datasets by name, verified and on a device. The method itself uses only ``spec`` and ``realset``."""

from iidlib.data.drawn_shapes import shapes
from iidlib.data.folder import read_folder
from iidlib.data.inspection import FolderReport, inspect_folder
from iidlib.data.realset import Dataset, RealSet, Sample
from iidlib.data.registry import CheckReport, DatasetRow, check, datasets, load_dataset
from iidlib.data.source import data_dir
from iidlib.data.spec import DatasetSpec, denormalize, normalize

__all__ = [
    "CheckReport", "Dataset", "DatasetRow", "DatasetSpec", "FolderReport", "RealSet", "Sample", "check", "data_dir",
    "datasets", "denormalize", "inspect_folder", "load_dataset", "normalize", "read_folder", "shapes",
]  # fmt: skip
