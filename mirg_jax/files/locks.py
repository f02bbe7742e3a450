"""Locks that keep a folder to one process, on any file system.

A lock is a file that names its holder. No lock of the operating system is used: file systems of
several machines often have none, or one that each machine has for itself. A holder of this machine
is asked for by its process ID. A holder elsewhere shows that it lives by touching the file.
"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import socket
import threading
import time
import uuid

from etils import epath

from mirg_jax.errors import ConfigError
from mirg_jax.files import places
from mirg_jax.files.places import Place
from mirg_jax.files.streams import say

_BEAT = 15.0  # seconds between two signs of life
_SILENCE = 120.0  # seconds without a sign of life after which a holder elsewhere counts as dead
_LOOK = 1.0  # seconds between two looks for a sign of life


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
      host: the name of its machine, for people.
      machine: what only processes have in common that see one another's process IDs.
      pid: its process ID.
      started: when it was started, in the system's ticks: process IDs are used again.
      since: when it took the lock, for people.
      token: of this one lock.
    """

    host: str
    machine: str
    pid: int
    started: str
    since: str
    token: str

    @classmethod
    def this(cls) -> "Holder":
        """Returns a holder of this process."""
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()) or "",
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
            token=uuid.uuid4().hex[:12],
        )


def lock_of(path: Place) -> "Lock":
    """Returns the lock that a file is, on a disk or in a store."""
    return Lock(path) if isinstance(path, pathlib.Path) else _StoredLock(path)


class Lock:
    """A lock, held between `acquire` and `release` or in a `with` block.

    The lock of a process that has ended is taken over. In one process it is held by one `Lock`.
    """

    def __init__(self, path: Place, *, patience: float = 0.0):
        """
        Args:
          path: the lock's file, in the folder that it protects.
          patience: seconds to wait for a process that holds it, before it is refused.
        """
        self._path, self._patience, self._told = path, patience, False
        self._me: Holder | None = None
        self._made_folder = False
        self._released = threading.Event()

    def acquire(self) -> None:
        """Takes the lock; the folder is made if need be.

        Raises:
          ConfigError: if another process holds it, or its file can't be written.
        """
        me, began = Holder.this(), time.monotonic()
        try:
            self._make_folder()
            while not self._create(me):
                try:
                    self._remove_stale(me)
                except ConfigError:
                    if time.monotonic() - began >= self._patience:
                        raise
                    self._tell_waiting(_read(self._path), "its end")
                    time.sleep(_LOOK / 10)
                    self._make_folder()  # which the holder may have removed
        except OSError as error:
            raise ConfigError(
                f"{self._path}: cannot be written ({error.strerror}); give another folder"
            ) from None
        self._me = me
        self._released.clear()
        threading.Thread(target=self._beat, daemon=True).start()

    def release(self) -> None:
        """Gives the lock back; without it, does nothing."""
        if self._me is None:
            return
        self._released.set()
        if _read(self._path) == self._me:
            with contextlib.suppress(OSError):
                self._remove()
        self._me = None

    def __enter__(self) -> "Lock":
        self.acquire()
        return self

    def __exit__(self, *_) -> None:
        self.release()

    def _tell_waiting(self, holder: Holder | None, what: str) -> None:
        """Says, once, whose end or sign of life is waited for."""
        if not self._told:
            self._told = True
            who = f"process {holder.pid} on {holder.host}" if holder else "a process"
            say(f"{self._path.parent}: is held by {who}; waiting for {what}")

    def _make_folder(self) -> None:
        self._made_folder = not self._path.parent.exists()
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def _remove(self) -> None:
        self._path.unlink()
        if self._made_folder:
            self._path.parent.rmdir()  # fails if there is anything in it

    def _create(self, me: Holder) -> bool:
        """Writes the lock's file; returns False if there is one."""
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            if self._path.is_dir():  # never released
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
            return False
        try:
            with open(file, "w") as out:
                json.dump(dataclasses.asdict(me), out)
        except OSError:
            self._path.unlink()
            raise
        return True

    def _remove_stale(self, me: Holder) -> None:
        """Removes the lock's file if its holder has ended.

        Raises:
          ConfigError: if it lives.
        """
        holder = _read(self._path)
        if holder and holder.machine == _machine():
            lives = _started(holder.pid) == holder.started
        else:
            lives = self._hears_from(holder, me)
        if lives:
            raise ConfigError(_refusal(self._path, holder))
        self._discard(holder, me)

    def _discard(self, holder: Holder | None, me: Holder) -> None:
        """Removes the lock's file if it is still that of this holder."""
        # Of several processes that come here, one renames the file. Should it rename the new lock
        # of another, it gives that back.
        aside = self._path.with_name(f"{self._path.name}.{me.token}")
        with contextlib.suppress(FileNotFoundError):
            self._path.rename(aside)
            if _read(aside) != holder:
                aside.rename(self._path)
            else:
                aside.unlink()

    def _hears_from(self, holder: Holder | None, me: Holder) -> bool:
        """Waits for a sign of life of a holder on another machine, or until it counts as dead."""
        try:
            touched, began = self._path.stat().st_mtime, time.monotonic()
            # The file's time may lie ahead, where a clock was wrong.
            while max(self._now(me) - touched, time.monotonic() - began) < _SILENCE:
                self._tell_waiting(holder, "a sign of its life")
                time.sleep(_LOOK)
                if self._path.stat().st_mtime != touched:
                    return True
        except FileNotFoundError:  # released meanwhile
            pass
        return False

    def _now(self, me: Holder) -> float:
        """Returns the time by the clock of the lock's file system."""
        probe = self._path.with_name(f"{self._path.name}.{me.token}")
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()

    def _beat(self) -> None:
        while not self._released.wait(_BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._path)


class _StoredLock(Lock):
    """A lock in a store, where nothing is renamed or touched: signs of life are a file beside it.

    Of two processes that find a dead holder at the same instant, both may take the lock.
    """

    def __init__(self, path: epath.Path, *, patience: float = 0.0):
        super().__init__(path, patience=patience)
        self._sign = path.with_name(f"{path.name}.alive")

    def _make_folder(self) -> None:
        pass

    def _create(self, me: Holder) -> bool:
        try:
            places.create(self._path, json.dumps(dataclasses.asdict(me)).encode())
        except FileExistsError:  # ours, where a request was answered only when it was sent again
            return _read(self._path) == me
        return True

    def _remove(self) -> None:
        for place in (self._sign, self._path):
            places.remove(place)

    def _discard(self, holder: Holder | None, me: Holder) -> None:
        if holder and _read(self._path) == holder:
            self._remove()

    def _hears_from(self, holder: Holder | None, me: Holder) -> bool:
        before, began = self._last_sign(), time.monotonic()
        self._tell_waiting(holder, "a sign of its life")
        while time.monotonic() - began < _SILENCE:
            time.sleep(_LOOK)
            if _read(self._path) != holder:  # released meanwhile
                return False
            if self._last_sign() != before:
                return True
        return False

    def _last_sign(self) -> bytes:
        try:
            return places.read_bytes(self._sign)
        except FileNotFoundError:
            return b""

    def _beat(self) -> None:
        while not self._released.wait(_BEAT):
            with contextlib.suppress(OSError):
                places.write_bytes(self._sign, uuid.uuid4().hex.encode())


def _read(path: Place) -> Holder | None:
    """Returns the holder that a lock's file names; None if it names none, or none yet."""
    try:
        return Holder(**json.loads(places.read_bytes(path)))
    except (OSError, ValueError, TypeError):
        return None


def _refusal(path: Place, holder: Holder | None) -> str:
    who = f" ({holder.pid} on {holder.host}, since {holder.since})" if holder else ""
    return (
        f"{path.parent}: another process writes to it{who}; wait until that has ended, or give "
        "another folder"
    )


def _machine() -> str:
    """Returns what identifies the processes whose IDs this process sees."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """Returns when a process of this machine was started; None if it has ended."""
    try:
        # The name in parentheses may hold anything. Behind it come the state and 19 more fields.
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError, ValueError):
        pass
    if pathlib.Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""
