"""API keys: the file that holds them, how keys are made, and how a secret is checked.

A secret is 32 random bytes, shown once when its key is added. The file holds two hashes of it: an id, by which the key
is found at once, and an argon2id hash, which is what counts. Whoever reads the file can therefore use no key.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from framegrove.config.base import Config, describe
from framegrove.errors import UserError
from framegrove.files import replacing, write_all

PREFIX = "fg_"  # tells a leaked secret from other text; scanners look for such prefixes
REQUESTS_PER_MINUTE = 600
_SECRET_BYTES = 32
_NAME = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"
_PRIVATE = 0o600

log = logging.getLogger(__name__)


UNREADABLE = "the endpoint cannot read its API keys: tell whoever runs it, or try later"


class KeysUnreadable(UserError):
    """The keys file is missing, cannot be read, or does not hold keys."""


class Limits(Config):
    """What the owner of a key may use: requests and compute, and bytes of stored videos. ``None`` means no limit."""

    requests_per_minute: int = Field(default=REQUESTS_PER_MINUTE, ge=1)
    flops_per_day: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    bytes: int | None = Field(default=None, gt=0)


class Key(Config):
    """One key as the file holds it."""

    name: str
    id: str
    hash: str
    created_at: int
    limits: Limits = Limits()


class _File(BaseModel):
    """What stands in the file. ``salt`` keeps ids of one file from being compared with another's."""

    model_config = ConfigDict(extra="forbid")

    salt: str
    keys: list[Key] = []


def add_key(path: Path, name: str, limits: Limits | None = None) -> str:
    """Add a key to the file at ``path``, which is made if absent. Returns the secret, which is kept nowhere.

    Raises UserError for a name that is taken or not allowed, and KeysUnreadable.
    """
    if not re.fullmatch(_NAME, name):
        raise UserError(
            f"the name {name[:80]!r} cannot be used: a name has up to 64 letters, digits, dots, dashes, underscores or "
            "@ signs, and begins with a letter or a digit"
        )
    secret = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    with _changing(path) as file:
        if any(key.name == name for key in file.keys):
            raise UserError(f"there is a key {name!r} already: choose another name, or remove that key first")
        file.keys.append(
            Key(
                name=name,
                id=_id(file.salt, secret),
                hash=PasswordHasher().hash(secret),
                created_at=int(time.time()),
                limits=limits or Limits(),
            )
        )
    return secret


def remove_key(path: Path, name: str) -> None:
    """Remove a key: an endpoint that runs refuses it from then on. Raises UserError if there is no such key."""
    with _changing(path) as file:
        kept = [key for key in file.keys if key.name != name]
        if len(kept) == len(file.keys):
            names = ", ".join(sorted(key.name for key in kept)) or "none"
            raise UserError(f"there is no key {name[:80]!r} in {path}: the names there are {names}")
        file.keys = kept


def list_keys(path: Path) -> list[Key]:
    """The keys in the file at ``path``, oldest first. Raises KeysUnreadable."""
    return _read(path).keys


class KeyRing:
    """The keys in a file, for an endpoint that checks secrets against them. The file is read again when it changes.

    The first check of a secret takes as long as argon2id takes, some 50 ms. A secret that has passed is remembered by
    its SHA-256 until its key is gone, so that later checks take microseconds. One that matches no id never reaches
    argon2id. Methods may be called from several threads.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()  # held for microseconds, also by the event loop
        self._hashing = threading.Lock()
        self._seen: tuple[int, ...] | None = None  # the version of the file that was read last
        self._salt = ""
        self._keys: tuple[Key, ...] = ()
        self._passed: dict[bytes, str] = {}  # SHA-256 of a secret that has passed: the argon2id hash it has passed

    def find(self, name: str) -> Key | None:
        """The key of this name. Raises KeysUnreadable."""
        with self._lock:
            self._reload()
            return next((key for key in self._keys if key.name == name), None)

    def recall(self, secret: str) -> Key | None:
        """The key of a secret that has passed ``check`` before; at once. Raises KeysUnreadable."""
        with self._lock:
            self._reload()
            key = self._candidate(secret)
            return key if key is not None and self._passed.get(_sha256(secret)) == key.hash else None

    def check(self, secret: str) -> Key | None:
        """The key whose secret this is; None if it is nobody's. May take 50 ms. Raises KeysUnreadable."""
        with self._hashing:  # one slow hash at a time, since each takes 64 MiB
            if (known := self.recall(secret)) is not None:
                return known
            with self._lock:
                key = self._candidate(secret)
            if key is None or not _matches(key, secret):
                return None
            with self._lock:
                self._passed[_sha256(secret)] = key.hash
            return self.recall(secret)  # None if the key has been removed meanwhile

    def _candidate(self, secret: str) -> Key | None:
        """The key with this secret's id. All are compared, in constant time: time tells nothing about their ids."""
        wanted, found = _id(self._salt, secret), None
        for key in self._keys:
            if hmac.compare_digest(key.id, wanted):
                found = key
        return found

    def _reload(self) -> None:
        """Read the file if it is another one than that which was read last. Where it cannot be read, nobody gets in."""
        version = _version(self._path)
        if version is not None and version == self._seen:
            return
        self._keys, self._seen = (), None
        file = _read(self._path)
        self._salt, self._keys, self._seen = file.salt, tuple(file.keys), version
        valid = {key.hash for key in self._keys}
        self._passed = {digest: passed for digest, passed in self._passed.items() if passed in valid}


def _version(path: Path) -> tuple[int, ...] | None:
    """Another one for every change to the file: a change puts another file in its place. None if there is no file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _matches(key: Key, secret: str) -> bool:
    try:
        return PasswordHasher().verify(key.hash, secret)
    except (VerificationError, InvalidHashError):
        log.warning("a secret has the id of the key %s but not its hash: see who has changed the keys file", key.name)
        return False


def _id(salt: str, secret: str) -> str:
    """A fast hash to find a key by. The secret is too long and too random to be guessed from it."""
    return hmac.digest(salt.encode(), secret.encode(), "sha256").hex()[:32]


def _sha256(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _read(path: Path) -> _File:
    try:
        text = path.read_text(encoding="utf-8")
        if path.stat().st_mode & 0o077:
            log.warning("%s can be read by other users of this machine: chmod 600 %s", path, path)
        return _File.model_validate(json.loads(text))
    except FileNotFoundError:
        raise KeysUnreadable(
            f"there is no keys file at {path}: add a first key with `python -m jobs.serve keys add NAME --keys {path}`"
        ) from None
    except OSError as error:
        raise KeysUnreadable(f"the keys file {path} cannot be read ({error.strerror})") from None
    except ValidationError as error:
        raise KeysUnreadable(f"{path} is no keys file: {describe(error, _File)}") from None
    except ValueError:
        raise KeysUnreadable(f"{path} is no keys file: it does not hold valid JSON") from None


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[_File]:
    """What stands in the file, to be changed; it is written once the block ends well. One process at a time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The lock is a file beside it: the keys file itself is replaced, and with it would go its lock.
        with _opened_private(path.with_name(f".{path.name}.lock")) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = _read(path) if path.exists() else _File(salt=secrets.token_hex(16))
            yield file
            _write(path, file)
    except OSError as error:
        raise UserError(
            f"the keys file {path} cannot be written ({error.strerror}): choose another one with --keys"
        ) from None


def _write(path: Path, file: _File) -> None:
    with replacing(path) as partial, _opened_private(partial) as descriptor:
        write_all(descriptor, (file.model_dump_json(indent=2) + "\n").encode())


@contextlib.contextmanager
def _opened_private(path: Path) -> Iterator[int]:
    """The descriptor of a file that nobody else could read at any time, whatever the umask."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
    try:
        os.fchmod(descriptor, _PRIVATE)
        yield descriptor
    finally:
        os.close(descriptor)
