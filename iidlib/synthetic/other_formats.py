"""Identification of files that are not synthetic sets, by first bytes and names; nothing is unpickled or decoded.

Users have sets made by DatasetCondensation or MTT, or sets as numpy arrays or pictures, which "corrupted" would
misdescribe. A pickle can run code when it is loaded, so only its opcodes are inspected.
"""

import contextlib
import io
import itertools
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from PIL import Image

from iidlib.data.image_tree import ENDINGS

__all__ = ["kind_of_folder", "kind_of_tensors", "refusal"]

HEAD = 1 << 20
"""Number of bytes inspected of a file or of the pickle in it; the names that identify formats come first."""

MADE_SENSE = 3
"""Number of valid opcodes that identify a pickle, if it is truncated or longer than the bytes inspected."""

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""Magic number of torch.save's files before it wrote zip archives."""

_MAGIC = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"7z\xbc\xaf'\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"%PDF": "a PDF document",
    b"MATLAB 5.0": "a MATLAB file",
    b"SQLite format 3\x00": "an SQLite database",
    b"GGUF": "a GGUF file of a language model",
}


def refusal(path: Path) -> str | None:
    """One line that says what a file is and what to do, or None if it looks like nothing but a corrupted set.

    Args:
        path: a file that is not a valid set.

    Raises:
        OSError: if the file cannot be read.
    """
    kind = kind_of_file(path)
    if kind is None:
        return None
    what, remedy = kind
    return f"{path} is {what}, not a synthetic set of this library; {remedy}"


def from_tensors(loaded: str) -> str:
    """Remedy for a file that other libraries can read: build the set from its tensors."""
    return (
        f"that format is not read here, but a set can be built from its tensors in Python: {loaded}; "
        "SyntheticSet(images, labels, load_dataset(NAME).spec).save('set.safetensors')"
    )


def kind_of_file(path: Path) -> tuple[str, str] | None:
    """What a file is, and what to do about it; None for bytes that cannot be identified.

    Raises:
        OSError: if the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer to a file that is not here", "fetch the file itself with: git lfs pull"
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if head.startswith(_LEGACY_TORCH):
        return _torch_pickle(path, set(_strings(io.BytesIO(head), pickles=4)), "in torch's format before 1.6")
    if head.startswith(b"\x93NUMPY"):
        shape = re.search(rb"'shape': \(([^)]*)\)", head[:10_000])
        of_shape = f" of shape ({shape[1].decode('latin-1')})" if shape else ""
        return f"a numpy array{of_shape}", from_tensors("images = torch.from_numpy(numpy.load(FILE)), and its labels")
    if re.match(rb"\x80[\x02-\x05]", head) and _begins_as_pickle(head):
        texts = set(_strings(io.BytesIO(head), pickles=1))
        what = "a pickle" + (" of numpy arrays" if any(text.startswith("numpy") for text in texts) else "")
        return what, f"a pickle can run code when it is loaded, so it is not read here; {from_tensors('load it')}"
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            return what, "give a set that iid distill wrote (synthetic.safetensors)"
    if head[257:262] == b"ustar":
        return "a tar archive", "give a set that iid distill wrote (synthetic.safetensors)"
    return _picture(head) or _text(head)


def kind_of_folder(path: Path) -> str:
    """One line that says what a folder without a set is, and what to do.

    Raises:
        OSError: if the folder cannot be read.
    """
    names = sorted(entry.name for entry in itertools.islice(path.iterdir(), 10_000))
    if "config.yaml" in names:
        what = "a run that is not finished and has no set yet"
        return f"{path} is {what}; resume it with: iid distill METHOD --out {path} --resume, with its own options"
    runs = [name for name in names if (path / name / "synthetic.safetensors").is_file()]
    if runs:
        more = f" ({len(runs)} of them)" if len(runs) > 1 else ""
        return f"{path} contains runs{more}; give one of them, such as {path / runs[0]}"
    pickles = [name for name in names if re.fullmatch(r"res_.*\.pt|(images|labels)_.*\.pt", name)]
    if pickles:
        kind = kind_of_file(path / pickles[0]) if (path / pickles[0]).is_file() else None
        what, remedy = kind or ("a file of another program", from_tensors("load it"))
        return f"no synthetic set at {path / 'synthetic.safetensors'}; {path / pickles[0]} is {what}; {remedy}"
    below = (entry for name in names for entry in (path / name, *_some(path / name)))
    if any(entry.suffix.lower() in ENDINGS for entry in below):
        return (
            f"{path} is a folder of pictures, not a synthetic set; pictures are rounded to 8 bits, a set is not: "
            "give the set itself (synthetic.safetensors), or use the pictures as a dataset: "
            f"iid evaluate whole --dataset folder:{path}"
        )
    where = path / "synthetic.safetensors"
    return f"no synthetic set at {where}; give the file or the folder of a finished run" + (
        f" ({path} is empty)" if not names else ""
    )


def kind_of_tensors(names: Iterable[str], metadata: Mapping[str, str]) -> str:
    """What a safetensors file contains, according to the names of its tensors."""
    tensors, written = sorted(names), str(metadata.get("format", ""))
    if written.startswith("iidlib.synthetic/"):
        return f"one in the format {written}, of a newer version: upgrade iidlib"
    if "images" in tensors and "labels" not in tensors:
        return (
            "a checkpoint of a distillation, which writes its set when it is finished: resume it with iid distill "
            "--resume"
        )
    if any(name.endswith(".weight") or name.endswith("_weight") for name in tensors):
        return f"the weights of a network ({', '.join(tensors[:2])}, ...)"
    first = ", ".join(tensors[:3]) + (", ..." if len(tensors) > 3 else "")
    if {"images", "labels"} <= set(tensors):
        return f"a file of another program with images and labels; {from_tensors('safetensors.torch.load_file(FILE)')}"
    return f"a file of other tensors ({first})" if tensors else "a file without tensors"


def _some(folder: Path) -> list[Path]:
    """The first entries of a folder; empty for anything else."""
    try:
        return list(itertools.islice(folder.iterdir(), 20)) if folder.is_dir() else []
    except OSError:
        return []


def _zip(path: Path) -> tuple[str, str]:
    """What a zip archive is: one of numpy, of torch, or any other."""
    plain = "a zip archive", "unpack it, and give the set in it"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickled = next((name for name in names if name.endswith("data.pkl")), None)
            if pickled is not None:
                with archive.open(pickled) as file:
                    texts = set(_strings(io.BytesIO(file.read(HEAD)), pickles=1))
                return _torch_pickle(path, texts, "of torch.save")
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):  # truncated, encrypted, a bomb
        return "a corrupted zip archive", "copy it again; a set of this library is not a zip archive"
    arrays = [Path(name).stem for name in names if name.endswith(".npy")]
    if arrays:
        first = ", ".join(arrays[:4]) + (", ..." if len(arrays) > 4 else "")
        return f"an archive of numpy arrays ({first})", from_tensors("data = numpy.load(FILE); images = data['...']")
    return plain


def _torch_pickle(path: Path, texts: set[str], written: str) -> tuple[str, str]:
    """What a file of `torch.save` is, given the strings in its pickle and its name."""
    if "data" in texts and ("accs_all_exps" in texts or path.name.startswith("res_")):
        loaded = "images, labels = torch.load(FILE, weights_only=True)['data'][-1]"
        return f"a pickle {written} in DatasetCondensation's layout (data: pairs of images and labels)", from_tensors(
            loaded
        )
    if re.match(r"(images|labels)_\w+\.pt", path.name):
        both = "('images_best.pt', 'labels_best.pt')"
        loaded = f"images, labels = (torch.load(name, weights_only=True) for name in {both})"
        return f"a pickle {written} in MTT's layout (images and labels in two files)", from_tensors(loaded)
    if any(text.endswith(".weight") for text in texts):
        return f"a pickle {written} with the weights of a network", "give a set that iid distill wrote"
    return f"a pickle {written}", from_tensors("torch.load(FILE, weights_only=True)")


def _strings(stream: io.BytesIO, *, pickles: int) -> Iterator[str]:
    """Strings in the opcodes of consecutive pickles, up to their end or the first invalid opcode."""
    for _ in range(pickles):
        try:
            for _, argument, _ in pickletools.genops(stream):
                if isinstance(argument, str):
                    yield argument
        except (ValueError, IndexError, OverflowError, struct.error, EOFError):
            return


def _begins_as_pickle(head: bytes) -> bool:
    """Whether bytes start a pickle: a complete one, or one with more than ``MADE_SENSE`` valid opcodes."""
    valid = 0
    with contextlib.suppress(ValueError, IndexError, OverflowError, struct.error, EOFError):
        for opcode, _, _ in pickletools.genops(io.BytesIO(head)):
            valid += 1
            if opcode.name == "STOP":
                return True
    return valid > MADE_SENSE


def _picture(head: bytes) -> tuple[str, str] | None:
    """What a picture is, according to its header; its pixels are not decoded."""
    try:
        with Image.open(io.BytesIO(head)) as picture:
            what = f"a {picture.format} picture of {picture.width} x {picture.height} pixels"
    except (OSError, ValueError, SyntaxError, OverflowError, Image.DecompressionBombError, struct.error):
        return None
    return what, "the set itself is synthetic.safetensors next to its picture; give that, or the run's folder"


def _text(head: bytes) -> tuple[str, str] | None:
    """What text is: a web page, JSON, or any other."""
    begin = head[:4096]
    try:
        text = begin.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(begin) < 4096 or error.start < 4093:  # otherwise the last character was truncated
            return None
        text = begin[: error.start].decode("utf-8")
    if not text.strip() or "\x00" in text:
        return None
    if re.match(r"\s*(<!doctype html|<html|<\?xml)", text, re.IGNORECASE):
        return "a web page", "download the file itself, not the page that shows it"
    kind = "JSON" if text.lstrip()[:1] in ("{", "[") else "text"
    what = "a text file" if kind == "text" else "a JSON file"
    return what, "give a set that iid distill wrote (synthetic.safetensors), or the folder of a run"
