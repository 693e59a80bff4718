"""API keys: the file, secrets and their hashes, and quotas."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from framegrove.errors import UserError
from framegrove.serving import keys as module
from framegrove.serving.api import ApiError
from framegrove.serving.keys import KeyRing, KeysUnreadable, Limits, add_key, list_keys, remove_key
from framegrove.serving.quotas import Quotas

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "serve" / "keys.json"


def test_a_secret_is_shown_once_and_only_its_hashes_are_kept(path: Path) -> None:
    os.umask(before := os.umask(0))
    try:
        os.umask(0)
        secret = add_key(path, "alice")
    finally:
        os.umask(before)
    assert re.fullmatch(r"fg_[A-Za-z0-9_-]{43}", secret)
    text = path.read_text()
    assert secret not in text
    assert secret.removeprefix("fg_") not in text
    assert path.stat().st_mode & 0o777 == 0o600
    (key,) = list_keys(path)
    assert key.hash.startswith("$argon2id$")
    ring = KeyRing(path)
    assert ring.recall(secret) is None, "nothing is taken on trust before it has been checked"
    assert ring.check(secret) == key == ring.recall(secret)
    for wrong in ("", "fg_", secret[:-1], secret + "x", secret.swapcase(), "ä" * 40):
        assert ring.check(wrong) is None


def test_only_the_first_check_of_a_secret_is_slow(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = add_key(path, "alice")
    hashed = []
    monkeypatch.setattr(module, "_matches", lambda key, secret: hashed.append(key.name) or True)
    ring = KeyRing(path)
    for _ in range(5):
        assert ring.check(secret)
        ring.check("fg_unknown")
    assert hashed == ["alice"]
    began = time.perf_counter()
    for _ in range(100):
        assert ring.recall(secret)
    assert time.perf_counter() - began < 1


def test_an_id_without_its_hash_is_refused(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever can only guess the fast hash, or has swapped the slow one in the file, is not let in."""
    secret, other = add_key(path, "alice"), add_key(path, "bob")
    held = json.loads(path.read_text())
    held["keys"][0]["hash"], held["keys"][1]["hash"] = held["keys"][1]["hash"], "nonsense"
    path.write_text(json.dumps(held))
    assert KeyRing(path).check(secret) is None
    assert KeyRing(path).check(other) is None
    assert "see who has changed the keys file" in caplog.text


def test_the_file_is_read_again_when_it_changes(path: Path) -> None:
    alice = add_key(path, "alice")
    ring = KeyRing(path)
    assert ring.check(alice)
    bob = add_key(path, "bob", Limits(requests_per_minute=5))
    found = ring.check(bob)
    assert found is not None
    assert found.limits.requests_per_minute == 5
    assert ring.recall(alice), "other keys stay checked"
    remove_key(path, "alice")
    assert ring.recall(alice) is None
    assert ring.check(alice) is None
    again = add_key(path, "alice")
    assert ring.check(alice) is None, "a new key of the same name has another secret"
    assert ring.check(again)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"salt": "x", "keys": [{"name": "alice"}]}', '{"keys": []}'])
def test_nobody_gets_in_while_the_file_cannot_be_read(path: Path, text: str | None) -> None:
    secret = add_key(path, "alice")
    ring = KeyRing(path)
    assert ring.check(secret)
    good = path.read_text()
    path.unlink()
    if text is not None:
        path.write_text(text)
    for _ in range(2):
        with pytest.raises(KeysUnreadable, match=r"keys\.json"):
            ring.recall(secret)
    path.write_text(good)
    assert ring.check(secret)


def test_two_that_add_keys_at_once_lose_none(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from framegrove.serving.keys import add_key\n"
        "for number in range(6): add_key(Path(sys.argv[1]), f'{sys.argv[2]}{number}')"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(path), name], cwd=ROOT, env=_environment())
        for name in ("a", "b", "c")
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    assert sorted(key.name for key in list_keys(path)) == sorted(f"{n}{i}" for n in "abc" for i in range(6))


def test_a_failed_write_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_key(path, "alice")
    before = path.read_text()

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module.os, "write", full)
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
            add_key(path, "bob")
    assert path.read_text() == before
    add_key(path, "bob")


def test_a_disk_that_takes_half_of_what_it_is_given_costs_no_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_key(path, "alice")
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda descriptor, data: write(descriptor, data[: max(1, len(data) // 2)]))
        add_key(path, "bob")
    assert [key.name for key in list_keys(path)] == ["alice", "bob"]


def test_mistakes_are_told_in_a_sentence(path: Path) -> None:
    with pytest.raises(UserError, match=r"no keys file at .*keys add NAME"):
        list_keys(path)
    add_key(path, "alice")
    with pytest.raises(UserError, match="there is a key 'alice' already"):
        add_key(path, "alice")
    with pytest.raises(UserError, match=r"there is no key 'bob' in .*: the names there are alice"):
        remove_key(path, "bob")
    for name in ("", "-x", "a b", "a\nb", "x" * 65):
        with pytest.raises(UserError, match="a name has up to 64 letters"):
            add_key(path, name)


def test_a_file_that_others_may_read_is_warned_of(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_key(path, "alice")
    path.chmod(0o644)
    list_keys(path)
    assert f"chmod 600 {path}" in caplog.text


class TestQuotas:
    """FLOPs in 24 hours, and stored bytes."""

    @pytest.fixture
    def clock(self) -> list[float]:
        return [1_000_000.0]

    @pytest.fixture
    def quotas(self, path: Path, tmp_path: Path, clock: list[float]) -> Quotas:
        add_key(path, "alice", Limits(flops_per_day=100.0, bytes=1000))
        add_key(path, "bob")
        return Quotas(tmp_path / "usage.db", KeyRing(path), now=lambda: clock[0])

    def test_flops_are_counted_over_24_hours(self, quotas: Quotas, clock: list[float]) -> None:
        assert quotas.allowed("alice", 100)
        assert not quotas.allowed("alice", 101)
        quotas.used("alice", {"video_1": 60})
        clock[0] += 3600
        quotas.used("alice", {"video_2": 30})
        assert quotas.flops_of("alice") == 90
        assert quotas.allowed("alice", 10)
        assert not quotas.allowed("alice", 11)
        refusal = quotas.refusal("alice", 11)
        assert (refusal.status, refusal.code) == (429, "quota_exceeded")
        assert "has used 90 of its 100 in 24 hours" in str(refusal)
        clock[0] += 23 * 3600
        assert quotas.flops_of("alice") == 30, "the first video is a day old"

    def test_a_video_is_counted_once_and_can_be_corrected(self, quotas: Quotas) -> None:
        quotas.used("alice", {"video_1": 60})
        quotas.used("alice", {"video_1": 60})
        assert quotas.flops_of("alice") == 60
        quotas.used("alice", {"video_1": 25})
        assert quotas.flops_of("alice") == 25
        assert quotas.flops_of("bob") == 0

    def test_counts_outlive_the_process(self, quotas: Quotas, path: Path, tmp_path: Path, clock: list[float]) -> None:
        quotas.used("alice", {"video_1": 60})
        assert not Quotas(tmp_path / "usage.db", KeyRing(path), now=lambda: clock[0]).allowed("alice", 41)

    def test_stored_bytes_are_limited(self, quotas: Quotas) -> None:
        assert quotas.allowed("alice", 1, stored=999)
        assert not quotas.allowed("alice", 1, stored=1000)
        assert "take 1,000 bytes of the 1,000 allowed: delete some" in str(quotas.refusal("alice", 1, stored=1000))

    def test_without_limits_everything_is_allowed(self, quotas: Quotas) -> None:
        quotas.used("bob", {"video_1": 1e30})
        assert quotas.allowed("bob", 1e30, stored=10**15)

    def test_an_owner_whose_key_is_gone_may_use_nothing(self, quotas: Quotas) -> None:
        with pytest.raises(ApiError, match="the API key nobody is no longer valid"):
            quotas.allowed("nobody", 1.0)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT)])}
