"""iidlib.engine.compiled: folders that a compiler's command line breaks, and incomplete libraries."""

import hashlib
import logging
import stat
import tempfile
from pathlib import Path

import pytest

from iidlib.engine import compiled, fused
from tests.factories import compute_in_process


@pytest.mark.slow
@pytest.mark.skipif(not fused.compiler_available(), reason="torch finds no C++ compiler")
def test_a_library_that_is_not_whole_is_built_again(tmp_path: Path) -> None:
    cache, temporary = tmp_path / "cache", tmp_path / "tmp"
    used, expected, _ = compute_in_process(cache, temporary)
    (known,) = cache.rglob("*.so.sha256")
    library, digest = known.with_suffix(""), known.read_text()
    made = library.stat().st_mtime_ns
    assert used and hashlib.sha256(library.read_bytes()).hexdigest() == digest
    assert compute_in_process(cache, temporary) == (True, expected, []) and library.stat().st_mtime_ns == made, (
        "it is built once"
    )
    whole = library.read_bytes()
    library.unlink()
    library.write_bytes(whole[: len(whole) // 2])
    assert compute_in_process(cache, temporary) == (True, expected, [])
    assert len(library.read_bytes()) == len(whole) and library.stat().st_mtime_ns > made
    made = library.stat().st_mtime_ns
    known.unlink()  # as of a process that was killed while it built
    assert compute_in_process(cache, temporary) == (True, expected, [])
    assert known.is_file() and library.stat().st_mtime_ns > made
    assert not list(temporary.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not fused.compiler_available(), reason="torch finds no C++ compiler")
@pytest.mark.parametrize("name", ["o'cache of mine", "ünï"])
def test_a_cache_whose_name_the_compiler_is_not_given_whole_costs_a_build(name: str, tmp_path: Path) -> None:
    used, _, said = compute_in_process(tmp_path / name, tmp_path / "tmp")
    assert used and not list((tmp_path / "tmp").iterdir())
    if name == "ünï":
        assert not said and list((tmp_path / name).rglob("*.so.sha256"))
        return
    assert said == [
        f"each process compiles the kernels again: {tmp_path / name / 'compiled'} contains a space, a quote or a "
        "backslash, which breaks the compiler's command line; set IID_CACHE to another folder"
    ]


def test_another_folder_is_private_and_as_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    removed: list[Path] = []
    monkeypatch.setattr(compiled.atexit, "register", lambda remove, path, **named: removed.append(path))
    caplog.set_level(logging.WARNING, "iidlib")
    assert compiled.compiler_folder(tmp_path, "IID_CACHE") == tmp_path and not removed
    own = compiled.compiler_folder(tmp_path / "a b", "IID_CACHE")
    assert stat.S_IMODE(own.stat().st_mode) == 0o700 and removed == [own] and len(caplog.records) == 1
    own.rmdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a b"))
    with pytest.raises(OSError, match=r"a b contains a space.*, and so does the path of the temporary"):
        compiled.compiler_folder(tmp_path / "a b", "IID_CACHE")
