"""Messages with open files between the proxy and the process beside it, over a pair of sockets."""

from __future__ import annotations

import marshal
import os
import socket
from array import array
from dataclasses import dataclass
from typing import Any

HELLO, READY, CONNECTION, BACK, DONE, FLUSH, ASK, ANSWER, BORED, END = (bytes((letter,)) for letter in b"HRCBDFQAIE")
"""Kinds of messages. From the proxy: HELLO (settings), CONNECTION (with its file, and what it has brought), FLUSH and
ASK (a number, and logs), END. To it: READY, BACK (a connection, as CONNECTION), DONE (batch, ids committed, facts),
FLUSH and ANSWER (to the number that asked), BORED (wants to END)."""
INLINE = 60_000
"""Bytes that a message carries itself; more go in a memory file that is sent along."""
MAX_FILES = 2


@dataclass(frozen=True, slots=True)
class Message:
    """One message. Whoever receives it owns the `files`, which are open descriptors."""

    kind: bytes
    """One letter."""
    body: bytes = b""
    files: tuple[int, ...] = ()

    @property
    def values(self) -> tuple[Any, ...]:
        """What `packed` was given."""
        found: tuple[Any, ...] = marshal.loads(self.body)  # noqa: S302 - both ends are ours, nobody else has one
        return found


def packed(kind: bytes, *values: Any) -> Message:
    """A message of plain values. Both ends run the same Python."""
    return Message(kind, marshal.dumps(values))


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends that keep messages apart. Raises OSError."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(end: socket.socket, message: Message, *, wait: bool = True) -> bool:
    """Send; False when that would have to wait and must not. The files stay the caller's too.

    Raises:
        OSError: the other end is closed.
    """
    spilled = None
    body = message.body
    files = list(message.files)
    try:
        if len(body) > INLINE:
            spilled = os.memfd_create("heliproxy-message")
            view = memoryview(body)
            while view:
                view = view[os.write(spilled, view) :]
            files.append(spilled)
            body = b""
        head = message.kind + (b"+" if spilled is not None else b"-")
        try:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", files))] if files else []
            end.sendmsg([head, body], rights, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
    finally:
        if spilled is not None:
            os.close(spilled)
    return True


def receive(end: socket.socket, *, wait: bool = True) -> Message | None:
    """The next message; None when the other end is closed.

    Raises:
        BlockingIOError: there is none now, and `wait` is false.
        OSError: the other end is gone.
    """
    flags = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
    rights = array("i")
    # Not socket.recv_fds, which forgets its flags.
    data, extra, _, _ = end.recvmsg(INLINE + 2, socket.CMSG_LEN(MAX_FILES * rights.itemsize), flags)
    for level, kind, value in extra:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            rights.frombytes(value[: len(value) - len(value) % rights.itemsize])
    files = list(rights)
    if not data:
        return None
    body = data[2:]
    if data[1:2] == b"+":
        with os.fdopen(files.pop(), "rb") as spilled:
            spilled.seek(0)
            body = spilled.read()
    return Message(data[:1], body, tuple(files))
