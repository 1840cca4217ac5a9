"""A process gives up what it does not need, before it opens an untrusted file.

Limits hold everywhere; the rest is taken where the platform lets an unprivileged process do so, and what holds is
reported: ``network`` (own empty network namespace, or TCP closed by Landlock), ``files`` (only the work folder and the
installed code can be read), ``privileges`` (none can be gained), ``parent`` (dies with its parent, which dies with the
supervisor).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pruning_core
from worker import landlock
from worker.limits import Limits

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_CAPABILITY_VERSION_3 = 0x20080522
_OPEN_FILES = 1024
#: Grace between SIGXCPU and SIGKILL for a process that ignores the first.
_CPU_GRACE_SECONDS = 2
#: Address space beyond the memory limit: libraries and files that are mapped, stacks that are reserved.
_ADDRESS_MARGIN = 8 * 2**30

_SYSTEM = (
    *("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/opt", "/nix/store", "/sys", "/proc"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/nsswitch.conf"),
    *("/etc/passwd", "/etc/group", "/etc/os-release", "/etc/alternatives"),
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/dri", "/dev/kfd")


def confine(folder: Path, limits: Limits, *, parent: int, use_gpu: bool) -> dict[str, bool]:
    """Limit this process, for good.

    Args:
        folder: The only place that it can write to afterwards (where ``files`` holds).
        limits: Memory, CPU and file size; the wall clock is the supervisor's.
        parent: Process id of the parent. If it is gone already, this process ends at once.
        use_gpu: A CUDA driver reserves address space far beyond the memory it uses, so memory is then left to the
            supervisor, which watches what is resident.

    Returns:
        Protection -> whether it holds.
    """
    _set_limit(resource.RLIMIT_CORE, 0)
    _set_limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _set_limit(resource.RLIMIT_FSIZE, limits.file_bytes)
    _set_limit(resource.RLIMIT_CPU, limits.cpu_seconds, grace=_CPU_GRACE_SECONDS)
    if sys.platform != "linux":
        return dict.fromkeys(("privileges", "parent", "network", "files"), False)
    if not use_gpu:
        _set_limit(resource.RLIMIT_DATA, limits.memory_bytes)
        _set_limit(resource.RLIMIT_AS, limits.memory_bytes + _ADDRESS_MARGIN)
    library = ctypes.CDLL(None, use_errno=True)
    privileges = library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    network = _drop_network(library)
    # After the user namespace: a change of credentials clears the parent-death signal.
    dies = die_with(parent)
    version = 0
    with contextlib.suppress(OSError):
        version = landlock.restrict(_rules(folder))
    _drop_capabilities(library)
    return {"privileges": privileges, "parent": dies, "network": network or version >= 4, "files": version > 0}


def die_with(parent: int) -> bool:
    """Have the kernel kill this process when its parent (the thread that started it) ends; return whether it will."""
    if sys.platform != "linux":
        return False
    dies = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    if os.getppid() != parent:  # it died before the kernel was asked to tell
        os._exit(0)
    return bool(dies)


def gpu_present() -> bool:
    """Return whether a GPU's device file is there; cheap, and imports nothing."""
    return Path("/dev/kfd").exists() or any(Path("/dev").glob("nvidia[0-9]*"))


def _set_limit(kind: int, value: int, grace: int = 0) -> None:
    hard = resource.getrlimit(kind)[1]
    top = value + grace if hard == resource.RLIM_INFINITY else min(value + grace, hard)
    with contextlib.suppress(OSError, ValueError):  # macOS refuses some; the supervisor's clock still holds
        resource.setrlimit(kind, (min(value, top), top))


def _drop_network(library: ctypes.CDLL) -> bool:
    """Move into an empty network namespace, through a user namespace that maps only this user to itself."""
    user, group = os.geteuid(), os.getegid()
    if library.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    with contextlib.suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny", "ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", "ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", "ascii")
    return True


def _drop_capabilities(library: ctypes.CDLL) -> None:
    """Give up all capabilities: those of the new namespace too, which would open rarely used kernel code."""
    library.capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24))


def _rules(folder: Path) -> Iterator[tuple[Path, int]]:
    yield folder, landlock.SCRATCH
    for device in (*map(Path, _DEVICES), *Path("/dev").glob("nvidia*")):
        yield device, landlock.READ_FILE | landlock.READ_DIR | landlock.WRITE_FILE
    packages = [Path(__file__).parent, Path(pruning_core.__file__).parent]
    libraries = [Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry]
    installed = [Path(entry) for entry in sys.path if entry and Path(entry).name in ("site-packages", "dist-packages")]
    prefixes = [Path(p) for p in {sys.prefix, sys.base_prefix} if p != "/"]
    for path in (*map(Path, _SYSTEM), *prefixes, *installed, *libraries, *packages):
        yield path, landlock.READ
    for package in packages:
        # The import system lists the folder that holds a package; files beside it stay closed.
        yield package.parent, landlock.READ_DIR
        for about in package.parent.glob("pruning_service*.*-info"):  # the installed version
            yield about, landlock.READ
