"""What must hold whatever the bytes: only a problem of status < 500 comes out, soon, in little memory; nothing runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pruning_core.errors import PruningError

#: CPU seconds and resident bytes that one input (of at most 256 KiB here) may cost.
SLOW_SECONDS = 4.0
GROWTH_BYTES = 768 * 2**20
#: A problem is for people: it is stored, listed and sent again with every look at an upload.
PROBLEM_BYTES = 64 * 2**10

_HERE = Path(__file__).parent
_INSTALLED = (sys.prefix, sys.base_prefix, "<frozen", "<__array_function__")
#: PyTorch, Pillow and pydantic import parts of themselves when they are first used.
_MAY_IMPORT = ("torch", "numpy", "encodings", "pydantic", "pydantic_core", "jsonschema", "PIL")
_ROOMS = ("pruning_core", "api", "jobs")
_NEVER = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.__new__", "urllib.Request", "ctypes.dlopen"),
    *("pickle.find_class", "code.__new__", "webbrowser.open", "os.kill", "os.putenv", "os.chdir"),
)
_WRITES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")


class Forbidden(BaseException):
    """The input made the process do something that no input may."""


class TooMuch(Exception):  # noqa: N818
    """A tiny input made one operation ask for more memory than there is.

    Args:
        operation: Its name; each is another finding.
    """

    def __init__(self, operation: str) -> None:
        super().__init__(operation)
        self.kind = f"memory-{operation}"


class Watch:
    """While it is entered, what no input may make the process do raises `Forbidden`.

    Args:
        places: The only ones where files may be written.
    """

    def __init__(self, places: tuple[str, ...]) -> None:
        self._places = places
        self._watching = False
        sys.addaudithook(self._hook)

    def __enter__(self) -> None:
        self._watching = True

    def __exit__(self, *_: object) -> None:
        self._watching = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event in _NEVER:
            raise Forbidden(f"{event} {str(arguments)[:200]}")
        if event == "open":
            path, mode, flags = arguments
            writes = flags & 0o103 if isinstance(flags, int) else "r" not in str(mode)
            if writes and not str(path).startswith(self._places):
                raise Forbidden(f"writes {str(path)[:200]}")
        elif event == "import":
            if str(arguments[0]).partition(".")[0] not in _MAY_IMPORT:
                raise Forbidden(f"imports {str(arguments[0])[:200]}")
        elif event in _WRITES:
            if not str(arguments[0]).startswith(self._places):
                raise Forbidden(f"{event} {str(arguments)[:200]}")
        elif event == "exec" or event == "compile":
            name = str(getattr(arguments[0], "co_filename", arguments[1] if len(arguments) > 1 else ""))
            if not name.startswith(_INSTALLED):
                raise Forbidden(f"{event} {name[:200]}")


class Judge:
    """Runs a target on inputs and keeps each new kind of failure, once.

    Args:
        folder: Where inputs that failed are kept, with a text beside each.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = {path.stem for path in folder.glob("*.txt")}
        self._watch = Watch(("/dev/shm/", "/tmp/"))

    def warm_up(self, run: Callable[[bytes], None], data: bytes) -> None:
        """Run once unwatched: whatever is imported or compiled lazily is then there. A seed may only be refused."""
        with contextlib.suppress(PruningError, TooMuch):
            run(data)

    def judge(self, run: Callable[[bytes], None], data: bytes) -> None:
        """Run on one input; failures are kept, not raised."""
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        try:
            with self._watch:
                run(data)
        except PruningError as error:
            if why := wrong_with(error):
                self._keep(data, error, why)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._keep(data, error, str(getattr(error, "kind", type(error).__name__)))
        spent = time.process_time() - began
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        if spent > SLOW_SECONDS:
            self._keep(data, None, f"slow-{spent:.0f}")
        if grown > GROWTH_BYTES:
            self._keep(data, None, f"memory-{grown >> 26}")

    def _keep(self, data: bytes, error: BaseException | None, why: str) -> None:
        where = next(_own_frames(error), "") if error else ""
        key = hashlib.sha256(f"{why}{where}".encode()).hexdigest()[:12]
        if key in self._seen or len(self._seen) > 500:
            return
        self._seen.add(key)
        said = "".join(traceback.format_exception(error))[-6000:] if error else ""
        (self._folder / f"{key}.bin").write_bytes(data)
        (self._folder / f"{key}.txt").write_text(f"{why} {where}\n{said}", "utf-8", errors="replace")


def wrong_with(error: PruningError) -> str | None:
    """Return what is wrong with a refusal: a 5xx, no JSON, text that no answer can carry, or too much of it."""
    if error.status >= 500:
        return f"status-{error.status}"
    try:
        text = json.dumps(error.problem(), allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as wrong:
        return f"problem-{type(wrong).__name__}"
    return "problem-size" if len(text) > PROBLEM_BYTES else None


def storable(document: Any) -> None:
    """Assert that a result can be stored and sent: JSON without NaN, and no half surrogates.

    Raises:
        ValueError: It cannot.
    """
    json.dumps(document, allow_nan=False, ensure_ascii=False).encode()


def _own_frames(error: BaseException) -> Iterator[str]:
    """Yield the frames in our own rooms, innermost first: what tells one failure from another."""
    frames = [
        frame for frame in reversed(traceback.extract_tb(error.__traceback__)) if Path(frame.filename).parent != _HERE
    ]
    for frame in frames:
        parts = Path(frame.filename).parts
        if any(room in parts for room in _ROOMS):
            yield f"{Path(frame.filename).name}:{frame.name}"
    if frames:
        yield f"{Path(frames[0].filename).name}:{frames[0].name}"
