"""Where a user's files lie that can be made again."""

import os
from pathlib import Path


def user_cache():
    """The folder ir2net in the user's cache, which need not exist; None for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ir2net"
    except RuntimeError:  # HOME is not set, and the user has no entry in passwd
        return None
