"""Corrupted input: a result or one line for each, from every reader; and input made to do harm, which does none."""

from pathlib import Path
from typing import Any

import pytest

from tests.fuzzing import READERS, attack


@pytest.mark.parametrize("name", READERS)
def test_corrupted_input_is_read_or_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    counts = attack(name, tmp_path / "case", 12 if name in ("manifest", "pool list", "pool weights") else 60)
    assert counts["refused"] > 0 or name in ("metrics", "checkpoint", "checkpoint facts", "words"), counts


@pytest.mark.long
@pytest.mark.parametrize("name", READERS)
def test_much_corrupted_input_is_read_or_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    counts = attack(name, tmp_path / "case", 300 if name in ("manifest", "pool list", "pool weights") else 4000, seed=1)
    record_property("inputs", dict(counts))
    assert sum(counts.values()) > 300, counts
