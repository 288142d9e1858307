"""iidlib.notes: what is said only once."""

import logging

import pytest

from iidlib.notes import log_once


def test_a_line_is_said_once_and_nothing_is_remembered_without_end(caplog: pytest.LogCaptureFixture) -> None:
    log_once.cache_clear()
    with caplog.at_level(logging.INFO, "iidlib"):
        for text in ("50 % of it", "50 % of it", "more"):
            log_once(logging.INFO, text)
        log_once(logging.WARNING, "more")
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [("INFO", "50 % of it"), ("INFO", "more"), ("WARNING", "more")]
    assert log_once.cache_info().maxsize, "a notebook may stay open for weeks"
