"""Secrets in the addresses of channels, kept out of what another library logs."""

from __future__ import annotations

import logging
import re
from typing import Final

_TOKEN: Final = re.compile(r"/t/[^/\s]+/")
"""How Conda servers take tokens: ``https://host/t/TOKEN/channel``."""


class _Redaction(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Pass every record, without the tokens in it."""
        if isinstance(record.args, tuple):
            record.args = tuple(
                _TOKEN.sub("/t/*****/", each) if isinstance(each, str) else each for each in record.args
            )
        return True


_REDACTION: Final = _Redaction()


def redact_logs() -> None:
    """Have urllib3 log addresses, as it does for each request at the level DEBUG, without tokens."""
    logging.getLogger("urllib3.connectionpool").addFilter(_REDACTION)
