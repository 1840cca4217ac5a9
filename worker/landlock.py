"""Landlock (Linux 5.13 and later): a process gives up the file system, TCP and other processes' secrets, for good.

The calls have no wrapper in the C library, so they go by number (the same on every architecture). A process under
Landlock cannot read ``/proc/<pid>/environ`` of one outside: the credentials of the supervisor stay out of reach though
both run as one user. Source: Documentation/userspace-api/landlock.rst of the kernel.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REGULAR, _REFER, _TRUNCATE = (1 << n for n in (4, 5, 7, 8, 13, 14))
READ = EXECUTE | READ_FILE | READ_DIR
#: Everything a scratch folder needs; no links, sockets or devices.
SCRATCH = (
    READ_FILE | READ_DIR | WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REGULAR | _REFER | _TRUNCATE
)
_FOR_FILES = EXECUTE | WRITE_FILE | READ_FILE | _TRUNCATE

#: First ABI version -> the rights it knows: all of the first, then REFER, TRUNCATE. Device ioctls stay free (CUDA).
_RIGHTS = {1: (1 << 13) - 1, 2: _REFER, 3: _TRUNCATE}
_TCP_BIND_AND_CONNECT = 0b11
_SCOPE_SOCKETS_AND_SIGNALS = 0b11


def restrict(rules: Iterable[tuple[Path, int]]) -> int:
    """Allow this process the given access beneath each path, and nothing else; it cannot be undone.

    Needs ``no_new_privs``, and binds the calling thread and all that come from it. Paths that do not exist are skipped.

    Returns:
        The kernel's Landlock version: from 4 on TCP is closed too, from 6 on signals to processes outside.

    Raises:
        OSError: The kernel has no Landlock.
    """
    library = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: object) -> int:
        result: int = library.syscall(number, *arguments)
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result

    version = call(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)
    handled = sum(rights for since, rights in _RIGHTS.items() if version >= since)
    fields = [handled]
    if version >= 4:
        fields.append(_TCP_BIND_AND_CONNECT)
    if version >= 6:
        fields.append(_SCOPE_SOCKETS_AND_SIGNALS)
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    ruleset = call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    try:
        for path, access in rules:
            try:
                beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                allowed = access & handled & (~0 if path.is_dir() else _FOR_FILES)
                call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", allowed, beneath), 0)
            finally:
                os.close(beneath)
        call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return version
