"""Documents that show what a command prints: a fenced block each, compared with the command, or written anew from it."""

from __future__ import annotations

import re
from pathlib import Path


def require_shown(document: Path, printed: str, *, fence: str = "text", update: bool) -> None:
    """`document` has one block that begins with ```fence, and it is `printed`; with `update` it is made so first."""
    text = document.read_text()
    if update:
        text = re.sub(rf"```{fence}\n.*?```", lambda _: f"```{fence}\n{printed}```", text, flags=re.DOTALL)
        document.write_text(text)
    assert re.findall(rf"```{fence}\n(.*?)```", text, flags=re.DOTALL) == [printed]
