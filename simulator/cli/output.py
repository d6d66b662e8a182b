"""What commands write, where they may, and their progress bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulator.studies.simulate import Progress


def dump(content: Any) -> str:
    """JSON text of figures."""
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def refuse_existing(output: Path | None) -> None:
    """Refuse to overwrite a file or to write where there is no folder: ScenarioError."""
    from simulator.errors import ScenarioError

    if output is None:
        return
    if output.exists():
        raise ScenarioError("exists already and is not overwritten; remove it or choose another name", file=str(output))
    if not output.absolute().parent.is_dir():
        raise ScenarioError("its folder does not exist; create it or choose another place", file=str(output))


def refuse_no_picture(path: Path | None) -> None:
    """Refuse a file that is no picture by its suffix: ScenarioError."""
    from simulator.errors import ScenarioError

    if path is not None and path.suffix not in (".png", ".svg", ".pdf"):
        raise ScenarioError(f"{path.suffix or 'no suffix'} is not a picture; use .png, .svg or .pdf", file=str(path))


def write(text: str, output: Path | None) -> None:
    """Write to the new file, or to the terminal."""
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text, encoding="utf-8")


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar on a terminal, nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda _what, _fraction: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, fraction: float) -> None:
            for name, task in tasks.items():
                if name != what:
                    bar.update(task, visible=False)
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=1.0)
            bar.update(tasks[what], completed=fraction, visible=True)

        yield tell
