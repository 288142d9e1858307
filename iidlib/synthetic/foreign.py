"""What a file is that is no synthetic set, told by its first bytes and names; nothing is unpickled or decoded.

People have sets of DatasetCondensation, of MTT, as numpy arrays or pictures, and "damaged" would be the wrong word for
them. A pickle can run code when it is read, so that only its opcodes are looked at.
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
"""Bytes that are looked at, of a file or of the pickle in it; the names that tell formats apart come first."""

MADE_SENSE = 3
"""Opcodes by which what is cut, or longer than is looked at, is known as a pickle."""

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The number that torch.save began its files with before it wrote zip archives."""

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
    """One line that says what a file is and what to do, or None where nothing but a damaged set comes to mind.

    Args:
        path: of a file that is not the set that it was taken for.

    Raises:
        OSError: if the file cannot be read.
    """
    kind = kind_of_file(path)
    if kind is None:
        return None
    what, remedy = kind
    return f"{path} is {what}, not a synthetic set of this library; {remedy}"


def from_tensors(loaded: str) -> str:
    """What to do with a file that this library does not read but others do: the set built from its tensors."""
    return (
        f"that format is not read here, but a set can be built from its tensors in Python: {loaded}; "
        "SyntheticSet(images, labels, load_dataset(NAME).spec).save('set.safetensors')"
    )


def kind_of_file(path: Path) -> tuple[str, str] | None:
    """What a file is, and what to do about it; None for bytes that tell nothing.

    Raises:
        OSError: if the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS to a file that is not here", "fetch the file itself with: git lfs pull"
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if head.startswith(_LEGACY_TORCH):
        return _torch_pickle(path, set(_strings(io.BytesIO(head), pickles=4)), "in torch's format before 1.6")
    if head.startswith(b"\x93NUMPY"):
        shape = re.search(rb"'shape': \(([^)]*)\)", head[:10_000])
        told = f" of shape ({shape[1].decode('latin-1')})" if shape else ""
        return f"a numpy array{told}", from_tensors("images = torch.from_numpy(numpy.load(FILE)), and labels beside it")
    if re.match(rb"\x80[\x02-\x05]", head) and _begins_as_pickle(head):
        texts = set(_strings(io.BytesIO(head), pickles=1))
        what = "a pickle" + (" of numpy arrays" if any(text.startswith("numpy") for text in texts) else "")
        return what, f"a pickle can run code when it is read, which is not done here; {from_tensors('load it')}"
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            return what, "give a set that iid distill wrote (synthetic.safetensors)"
    if head[257:262] == b"ustar":
        return "a tar archive", "give a set that iid distill wrote (synthetic.safetensors)"
    return _picture(head) or _text(head)


def kind_of_folder(path: Path) -> str:
    """One line that says what a folder is in which there is no set, and what to do.

    Raises:
        OSError: if the folder cannot be read.
    """
    names = sorted(entry.name for entry in itertools.islice(path.iterdir(), 10_000))
    if "config.yaml" in names:
        begun = "a run that has not left its set yet"
        return f"{path} is {begun}; resume it with: iid distill METHOD --out {path} --resume, with its own options"
    runs = [name for name in names if (path / name / "synthetic.safetensors").is_file()]
    if runs:
        more = f" ({len(runs)} of them)" if len(runs) > 1 else ""
        return f"{path} holds runs{more}; give one of them, such as {path / runs[0]}"
    pickles = [name for name in names if re.fullmatch(r"res_.*\.pt|(images|labels)_.*\.pt", name)]
    if pickles:
        told = kind_of_file(path / pickles[0]) if (path / pickles[0]).is_file() else None
        what, remedy = told or ("a file of another program", from_tensors("load it"))
        return f"no synthetic set at {path / 'synthetic.safetensors'}; {path / pickles[0]} is {what}; {remedy}"
    below = (entry for name in names for entry in (path / name, *_some(path / name)))
    if any(entry.suffix.lower() in ENDINGS for entry in below):
        return (
            f"{path} is a folder of pictures, not a synthetic set; pictures have lost digits, and a set keeps them: "
            "give the set itself (synthetic.safetensors), or take the pictures as a dataset: "
            f"iid evaluate whole --dataset folder:{path}"
        )
    where = path / "synthetic.safetensors"
    return f"no synthetic set at {where}; give the file or the folder of a finished run" + (
        f" ({path} is empty)" if not names else ""
    )


def kind_of_tensors(names: Iterable[str], metadata: Mapping[str, str]) -> str:
    """What a safetensors file holds, by the names of its tensors."""
    found, written = sorted(names), str(metadata.get("format", ""))
    if written.startswith("iidlib.synthetic/"):
        return f"one in the format {written}, of a newer version: upgrade iidlib"
    if "images" in found and "labels" not in found:
        return (
            "a checkpoint of a distillation, whose set comes when it is finished: resume it with iid distill --resume"
        )
    if any(name.endswith(".weight") or name.endswith("_weight") for name in found):
        return f"the weights of a network ({', '.join(found[:2])}, ...)"
    told = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
    if {"images", "labels"} <= set(found):
        return f"a file of other make with images and labels; {from_tensors('safetensors.torch.load_file(FILE)')}"
    return f"a file of other tensors ({told})" if found else "a file without tensors"


def _some(folder: Path) -> list[Path]:
    """The first entries of a folder, of none else."""
    try:
        return list(itertools.islice(folder.iterdir(), 20)) if folder.is_dir() else []
    except OSError:
        return []


def _zip(path: Path) -> tuple[str, str]:
    """A zip archive: of numpy, of torch, or any other."""
    plain = "a zip archive", "unpack it, and give the set that is in it"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickled = next((name for name in names if name.endswith("data.pkl")), None)
            if pickled is not None:
                with archive.open(pickled) as file:
                    texts = set(_strings(io.BytesIO(file.read(HEAD)), pickles=1))
                return _torch_pickle(path, texts, "of torch.save")
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):  # cut, encrypted, or a bomb
        return "a zip archive that is damaged", "copy it again; a set of this library is no zip archive"
    arrays = [Path(name).stem for name in names if name.endswith(".npy")]
    if arrays:
        told = ", ".join(arrays[:4]) + (", ..." if len(arrays) > 4 else "")
        return f"an archive of numpy arrays ({told})", from_tensors("data = numpy.load(FILE); images = data['...']")
    return plain


def _torch_pickle(path: Path, texts: set[str], written: str) -> tuple[str, str]:
    """A file of `torch.save`, by the texts in its pickle and its name."""
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
    """Texts in the opcodes of some pickles, one behind the other, up to where they end or make no sense."""
    for _ in range(pickles):
        try:
            for _, argument, _ in pickletools.genops(stream):
                if isinstance(argument, str):
                    yield argument
        except (ValueError, IndexError, OverflowError, struct.error, EOFError):
            return


def _begins_as_pickle(head: bytes) -> bool:
    """Whether bytes go on as a pickle: at least three opcodes that make sense, as far as they were read."""
    found = 0
    with contextlib.suppress(ValueError, IndexError, OverflowError, struct.error, EOFError):
        for opcode, _, _ in pickletools.genops(io.BytesIO(head)):
            found += 1
            if opcode.name == "STOP":
                return True
    return found > MADE_SENSE


def _picture(head: bytes) -> tuple[str, str] | None:
    """A picture, by its header; its pixels are not decoded."""
    try:
        with Image.open(io.BytesIO(head)) as picture:
            what = f"a {picture.format} picture of {picture.width} x {picture.height} pixels"
    except (OSError, ValueError, SyntaxError, OverflowError, Image.DecompressionBombError, struct.error):
        return None
    return what, "a set is kept as synthetic.safetensors beside its picture; give that, or the run's folder"


def _text(head: bytes) -> tuple[str, str] | None:
    """Text: a web page, settings, scores, or any other."""
    begin = head[:4096]
    try:
        text = begin.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(begin) < 4096 or error.start < 4093:  # otherwise the last letter was cut
            return None
        text = begin[: error.start].decode("utf-8")
    if not text.strip() or "\x00" in text:
        return None
    if re.match(r"\s*(<!doctype html|<html|<\?xml)", text, re.IGNORECASE):
        return "a web page", "download the file itself, not the page that shows it"
    kind = "JSON" if text.lstrip()[:1] in ("{", "[") else "text"
    what = "a file of text" if kind == "text" else "a file of JSON"
    return what, "give a set that iid distill wrote (synthetic.safetensors), or the folder of a run"
