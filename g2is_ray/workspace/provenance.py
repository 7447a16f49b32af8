"""When and where something was made, as pages show it."""

import os
import platform
from datetime import UTC, datetime


def now() -> str:
    """Date and time, as pages show when they were made."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def this_machine() -> str:
    """What the page was made on, in a few words."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
