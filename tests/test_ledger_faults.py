"""The ledger where something goes wrong: crashes, full disks, missing rights, other people's files, lost connections. Nothing is half-written or made up."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import tempfile
import time
import traceback
import typing as t
from functools import partial
from pathlib import Path

import pytest

from ansible_collections.homelab.healer.plugins.module_utils import _ledger
from ansible_collections.homelab.healer.plugins.module_utils._audit import parse_head, verify
from ansible_collections.homelab.healer.plugins.module_utils._errors import Unreachable
from ansible_collections.homelab.healer.plugins.modules import ledger_verify, remediation_gate, remediation_info, remediation_pause, remediation_record
from tests.lab.ledger import Database, Facts, File, Store, chain, one_remediation, target, written_policy
from tests.lab.postgres import Postgres, prepared
from tests.test_pg_terminate import pgbouncer
from tests.test_pg_vacuum import small_tablespace

ROOT = os.geteuid() == 0
NOBODY = 65534


@pytest.fixture
def file(tmp_path: Path) -> t.Iterator[File]:
    """A ledger in a file that is not there yet, in a folder that is not there either."""
    with contextlib.closing(File(tmp_path / "state/homelab.healer/ledger.db")) as store:
        yield store


@pytest.fixture(scope="module")
def server(debian_postgres: Postgres) -> t.Iterator[Postgres]:
    yield prepared(debian_postgres)
    debian_postgres.reset()


@pytest.fixture
def database(server: Postgres) -> t.Iterator[Database]:
    """An empty database of the ledger's role."""
    with contextlib.closing(Database(server)) as store:
        yield store


@pytest.fixture(params=["file", "database"])
def store(request: pytest.FixtureRequest) -> Store:
    return t.cast(Store, request.getfixturevalue(request.param))


@pytest.fixture
def rules(tmp_path: Path) -> str:
    return str(written_policy(tmp_path))


def sound(store: Store, seen: str = "") -> str:
    """Verify it; returns its head."""
    with store.open() as ledger:
        report = verify(ledger, parse_head(seen) if seen else None)
    assert report.findings == []
    return report.head


def gate(store: Store, rules: str, name: str = "r1", vmid: int = 201, check: bool = False, **more: t.Any) -> Facts:
    """The gate's first question, as its module is asked."""
    return store.ask(remediation_gate, check, policy=rules, remediation=name, remedy="lxc_memory", host="pve", target=target(vmid), **more)


class Forked:
    """Something that is done in a process of its own. Called, it waits for the answer."""

    def __init__(self, work: t.Callable[[], t.Any]) -> None:
        self._answer, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.write(write, json.dumps(work()).encode())
                os._exit(0)
            except BaseException:
                os.write(2, traceback.format_exc().encode())
                os._exit(1)
        os.close(write)

    def __call__(self) -> t.Any:
        with os.fdopen(self._answer, "rb") as pipe:
            told = pipe.read()
        assert os.waitpid(self.pid, 0)[1] == 0
        return json.loads(told)


# Crashes


def write_on(store: Store, tell: int) -> None:
    """Write remediations on and on, and tell each head once it is written."""
    number = random.SystemRandom().randrange(10**6) * 1000
    while True:
        number += 1
        with store.turn() as ledger:
            one_remediation(ledger, number, random.choice(["healed", "rolled_back", "denied", "needs_human"]))
            head = ledger.head
        os.write(tell, f"{head}\n".encode())


def test_whatever_was_told_as_written_is_there_after_a_kill(store: Store, whole: bool) -> None:
    """A process that writes is killed at any moment, again and again; then another reads, and one goes on."""
    told: list[str] = []
    for _ in range(150 if whole else 12):
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(read)
            with contextlib.suppress(BaseException):
                write_on(store, write)
            os._exit(1)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            told += [pipe.readline().decode()]  # so that it has begun
            time.sleep(random.uniform(0, 0.15))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            told += [line.decode() for line in pipe if line.endswith(b"\n")]
        head = sound(store, told[-1])
        assert parse_head(head)[0] >= parse_head(told[-1])[0]
    assert len(told) >= 12
    for seen in random.sample(told, 5):
        sound(store, seen)


# Full disks


def test_where_no_byte_fits_nothing_is_half_written(file: File, rules: str) -> None:
    """By the limit of a file's size, which is the same to SQLite as a full disk."""
    with file.turn() as ledger:
        one_remediation(ledger, 1)
    before = file.path.read_bytes()

    def limited() -> Facts:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), len(before)))
        answers = [gate(file, rules, f"x{number}", problem="x" * 3000) for number in range(40)]
        return {"answers": answers, "info": file.ask(remediation_info)}

    told = Forked(limited)()
    failed = [answer for answer in told["answers"] if answer.get("failed")]
    assert failed, told
    assert {(answer["error"]["code"], "word" in answer) for answer in failed} == {("task_failed", False)}
    assert all("Nothing is changed without a ledger." in answer["msg"] for answer in failed)
    written = {row["id"] for row in told["info"]["remediations"]}
    assert written == {"r00001"} | {answer["remediation"] for answer in told["answers"] if not answer.get("failed")}
    sound(file)
    assert gate(file, rules, "later", vmid=205)["word"] == "allowed"


@pytest.mark.skipif(not ROOT, reason="only root can mount a small disk")
def test_a_full_disk_is_told_and_it_goes_on_when_there_is_room(tmp_path: Path, rules: str) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)], check=True)
    try:
        with contextlib.closing(File(place / "new/ledger.db")) as new, contextlib.closing(File(place / "ledger.db")) as old:
            with old.turn() as ledger:
                one_remediation(ledger, 1)
            head = sound(old)
            fill(place / "ballast")
            for file in (old, new):
                answer = gate(file, rules)
                assert (answer["error"]["code"], "word" in answer) == ("task_failed", False), answer
                assert "Make room on its disk. Nothing is changed without a ledger." in answer["msg"]
            (place / "ballast").unlink()
            assert sound(old, head) == head
            for file in (old, new):
                assert gate(file, rules, vmid=206)["word"] == "allowed"
                sound(file)
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(b"x" * 512)


@pytest.mark.skipif(not ROOT, reason="only root can mount a small disk")
def test_a_full_disk_of_the_server_is_told(database: Database, rules: str) -> None:
    server = database.server
    with small_tablespace(server, "24") as place:
        with database.turn() as ledger:
            one_remediation(ledger, 1)
        database.close()
        server.sql("ALTER DATABASE ledger SET TABLESPACE small")
        try:
            head = sound(database)
            fill(place / "ballast")
            failed: list[Facts] = []
            for number in range(200):
                answer = gate(database, rules, f"x{number}", problem="x" * 3000)
                failed += [answer] if answer.get("failed") else []
                if len(failed) == 3:
                    break
            assert {answer["error"]["code"] for answer in failed} == {"task_failed"}, failed
            assert all("Free space on the server's disk first" in answer["msg"] for answer in failed)
            (place / "ballast").unlink()
            sound(database, head)
            assert gate(database, rules, "later", vmid=206)["word"] in ("allowed", "joined")
        finally:
            database.close()
            server.sql("ALTER DATABASE ledger SET TABLESPACE pg_default")


# Rights and files


def test_the_file_is_its_owners_alone(file: File, rules: str) -> None:
    old = os.umask(0)
    try:
        gate(file, rules)
    finally:
        os.umask(old)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file.path, file.path.parent)] == [0o600, 0o700]
    file.path.chmod(0o644)
    gate(file, rules)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_a_link_to_it_is_followed(tmp_path: Path, rules: str) -> None:
    """What SQLite needs beside the file is beside the file, not beside the link; and a file is made where the link points to."""
    (tmp_path / "far").mkdir()
    (tmp_path / "ledger.db").symlink_to(tmp_path / "far/real.db")
    with contextlib.closing(File(tmp_path / "ledger.db")) as linked, contextlib.closing(File(tmp_path / "far/real.db")) as real:
        assert gate(linked, rules, "r1", check=True)["word"] == "allowed"
        assert not real.path.exists()
        assert gate(linked, rules, "r1")["word"] == "allowed"
        assert linked.path.is_symlink()
        assert gate(real, rules, "r2")["word"] == "joined"
        assert sound(linked) == sound(real)


@pytest.mark.parametrize("check", [False, True])
def test_what_is_no_ledger_is_left_alone(tmp_path: Path, rules: str, check: bool) -> None:
    """Also its mode, which a ledger's would be changed."""
    text, others, folder, pipe = (tmp_path / name for name in ("text", "others.db", "folder", "pipe"))
    text.write_text("root:x:0:0:root:/root:/bin/bash\n" * 20)
    with contextlib.closing(sqlite3.connect(others)) as client:
        client.execute("CREATE TABLE journal (seq INTEGER)")
        client.commit()
    folder.mkdir()
    os.mkfifo(pipe)
    for path in (text, others):
        path.chmod(0o644)
        before = path.read_bytes()
        answer = gate(File(path), rules, check=check)
        assert (answer["error"]["code"], path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == ("invalid", before, 0o644), answer
    for path in (folder, pipe, Path("/dev/null"), Path("/dev/full")):
        answer = gate(File(path), rules, check=check)
        assert (answer["error"]["code"], "it is not a file" in answer["msg"]) == ("invalid", True), answer


@pytest.fixture
def common() -> t.Iterator[Path]:
    """A folder that everybody can see, for what has another owner."""
    with tempfile.TemporaryDirectory(prefix="healer-lab-ledger-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def unprivileged(work: t.Callable[[], t.Any]) -> t.Any:
    """Do it as somebody whom rights hold back."""

    def fallen() -> t.Any:
        if ROOT:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return work()

    return Forked(fallen)()


def test_a_folder_that_cannot_be_written_is_told(common: Path) -> None:
    rules, folder = str(written_policy(common)), common / "folder"
    with contextlib.closing(File(folder / "ledger.db")) as file:
        folder.mkdir()
        folder.chmod(0o555)
        answer = unprivileged(lambda: gate(file, rules))
        assert (answer["error"]["code"], "Permission denied" in answer["msg"], list(folder.iterdir())) == ("denied", True, []), answer
        folder.chmod(0o755)
        gate(file, rules)
        if ROOT:
            os.chown(file.path, NOBODY, NOBODY)
        folder.chmod(0o555)
        before = file.path.read_bytes()
        answer = unprivileged(lambda: gate(file, rules, "r2", vmid=202))
        assert (answer["error"]["code"], file.path.read_bytes()) == ("denied", before), answer
        assert unprivileged(lambda: gate(file, rules, "r2", vmid=202, check=True))["word"] == "allowed"
        assert unprivileged(lambda: file.ask(ledger_verify, check=True))["sound"]
        folder.chmod(0o755)


@pytest.mark.skipif(not ROOT, reason="only root has files of others")
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666])
def test_a_file_of_another_owner_is_left_alone(common: Path, mode: int) -> None:
    rules = str(written_policy(common))
    with contextlib.closing(File(common / "ledger.db")) as file:
        gate(file, rules)
        file.path.chmod(mode)
        before = file.path.read_bytes()
        answer = unprivileged(lambda: gate(file, rules, "r2", vmid=202))
        assert (answer["error"]["code"], file.path.read_bytes(), stat.S_IMODE(file.path.stat().st_mode)) == ("denied", before, mode), answer
        answer = unprivileged(lambda: gate(file, rules, "r2", vmid=202, check=True))
        assert answer.get("word") == "allowed" if mode & 0o004 else answer["error"]["code"] == "denied"


def test_a_folder_that_cannot_be_searched_is_not_taken_for_an_empty_ledger(common: Path) -> None:
    rules, folder = str(written_policy(common)), common / "folder"
    with contextlib.closing(File(folder / "ledger.db")) as file:
        gate(file, rules)
        folder.chmod(0o000 if not ROOT else 0o700)
        for check in (False, True):
            answer = unprivileged(partial(gate, file, rules, "r2", check=check))
            assert answer["error"]["code"] == "denied", answer
        folder.chmod(0o700)


def test_a_newer_schema_is_refused(store: Store, rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate(store, rules)
    monkeypatch.setattr(_ledger, "MIGRATIONS", (*_ledger.MIGRATIONS, ("ALTER TABLE remediations ADD COLUMN tomorrow TEXT",)))
    gate(store, rules, "r2", vmid=202)
    monkeypatch.undo()
    for check in (False, True):
        answer = gate(store, rules, "r3", vmid=203, check=check)
        assert (answer["error"]["code"], "Update homelab.healer wherever this ledger is used." in answer["msg"]) == ("refused", True), answer


def test_an_older_schema_is_brought_up_to_date_whole_or_not_at_all(store: Store, rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate(store, rules)
    now = _ledger.MIGRATIONS
    broken = ("ALTER TABLE switches ADD COLUMN who TEXT", "ALTER TABLE nowhere ADD COLUMN who TEXT")
    monkeypatch.setattr(_ledger, "MIGRATIONS", (*now, broken))
    assert "nowhere" in gate(store, rules, "r2", vmid=202)["msg"]
    assert "who" not in store.columns("switches")
    monkeypatch.setattr(_ledger, "MIGRATIONS", (*now, broken[:1], ("CREATE TABLE more (name TEXT)",)))
    answer = gate(store, rules, "r2", vmid=202, check=True)
    assert (answer["error"]["code"], "Run it once without --check" in answer["msg"]) == ("refused", True), answer
    assert "who" not in store.columns("switches")
    assert gate(store, rules, "r2", vmid=202)["word"] == "allowed"
    assert ("who" in store.columns("switches"), store.sql("SELECT count(*) FROM more")) == (True, [(0,)])
    sound(store)


def test_check_mode_makes_nothing_and_changes_no_byte(file: File, rules: str) -> None:
    whose: Facts = {"remediation": "r1", "remedy": "lxc_memory", "host": "pve", "target": target(), "policy": rules}
    for _ in range(2):
        first = file.ask(remediation_gate, True, **whose)
        second = file.ask(remediation_gate, True, **whose, fence=first["fence"], chain=chain())
        assert (first["word"], second["word"]) == ("allowed", "allowed")
        assert file.ask(remediation_info, True)["remediations"] == []
        assert file.ask(ledger_verify)["entries"] == 0  # nor does who only looks
        assert not file.path.parent.parent.exists()
    gate(file, rules)
    before, moment = file.path.read_bytes(), file.path.stat().st_mtime_ns
    assert gate(file, rules, "r2", check=True)["word"] == "joined"
    assert gate(file, rules, "r2", vmid=202, check=True)["word"] == "allowed"
    assert file.ask(remediation_record, True, remediation="r1", state="verifying", fence=1)["state"] == "planned"
    assert len(file.ask(remediation_info, True)["remediations"]) == 1
    assert (file.path.read_bytes(), file.path.stat().st_mtime_ns, len(list(file.path.parent.iterdir()))) == (before, moment, 1)


def test_check_mode_makes_nothing_in_a_database(database: Database, rules: str) -> None:
    assert gate(database, rules, check=True)["word"] == "allowed"
    assert database.ask(ledger_verify)["entries"] == 0
    assert database.server.sql("SELECT count(*) FROM pg_namespace WHERE nspname = 'healer'", database="ledger") == [(0,)]
    gate(database, rules)
    head = sound(database)
    assert gate(database, rules, "r2", check=True)["word"] == "joined"
    assert sound(database) == head


def test_two_may_make_it_at_the_same_moment(store: Store, rules: str) -> None:
    store.close()
    begin = time.time() + 0.5

    def one(number: int) -> Facts:
        time.sleep(begin - time.time())
        return gate(store, rules, f"r{number}", vmid=200 + number)

    answers = [answer() for answer in [Forked(partial(one, number)) for number in range(8)]]
    assert [answer.get("word") for answer in answers] == ["allowed"] * 8, answers
    assert parse_head(sound(store))[0] == 8


# Who may go on


def test_who_lost_the_lease_writes_nothing_more(store: Store, rules: str) -> None:
    whose: Facts = {"remediation": "r1", "remedy": "lxc_memory", "host": "pve", "target": target(), "policy": rules}
    first = store.ask(remediation_gate, **whose, lease=0.3)
    assert store.ask(remediation_gate, **whose, lease=0.3, fence=first["fence"], chain=chain())["word"] == "allowed"
    time.sleep(0.4)
    record: Facts = {"remediation": "r1", "state": "verifying"}
    late = store.ask(remediation_record, **record, fence=first["fence"])
    assert (late["error"]["code"], "its lease ended" in late["msg"], "give 201 1024 MiB" in late["msg"]) == ("conflict", True, True), late
    taken = store.ask(remediation_record, remediation="r1", state="taken")
    assert (taken["taken"], taken["before"], taken["chain"]["undo"]) == (True, "applying", chain()["undo"])
    assert not store.ask(remediation_record, remediation="r1", state="taken")["taken"]  # one is enough
    late = store.ask(remediation_record, **record, fence=first["fence"])
    assert (late["error"]["code"], "another run took it over; what it had begun may still be under way: give 201 1024 MiB" in late["msg"]) == ("conflict", True)
    assert store.ask(remediation_record, **record, fence=taken["fence"])["state"] == "verifying"
    assert store.ask(remediation_record, remediation="r1", state="closed", outcome="healed", fence=taken["fence"])["state"] == "healed"
    late = store.ask(remediation_record, **record, fence=taken["fence"])
    assert (late["error"]["code"], "it has ended: healed" in late["msg"]) == ("conflict", True)
    sound(store)


def test_nothing_new_is_begun_while_the_clock_is_behind(store: Store, rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate(store, rules)
    real = _ledger.Ledger.now
    monkeypatch.setattr(_ledger.Ledger, "now", lambda ledger: real(ledger) - 3600)
    with store.open() as ledger:
        assert 3590 < ledger.behind() <= 3600
    for number in (2, 3):  # the note of the first refusal does not make it right
        answer = gate(store, rules, f"r{number}", vmid=200 + number)
        assert (answer["word"], "clock is 3" in answer["why"], answer["checks"][-1]["check"]) == ("refused", True, "clock")
        store.ask(remediation_pause)
        store.ask(remediation_pause, state="absent")
    store.ask(remediation_pause, state="absent", accept_clock=True)
    assert gate(store, rules, "r4", vmid=204)["word"] == "allowed"
    monkeypatch.setattr(_ledger.Ledger, "now", lambda ledger: real(ledger) - 7200)  # it was accepted once, not for good
    assert gate(store, rules, "r5", vmid=205)["checks"][-1]["check"] == "clock"
    monkeypatch.undo()
    with store.open() as ledger:
        assert ledger.behind() == 0
    sound(store)


# PostgreSQL


def test_a_role_needs_nothing_but_its_tables_once_they_are_there(database: Database, rules: str) -> None:
    server = database.server
    server.role("owner")
    server.sql("ALTER DATABASE ledger OWNER TO owner")
    answer = gate(database, rules)
    assert (answer["error"]["code"], "permission denied for database ledger" in answer["msg"]) == ("denied", True), answer
    server.sql("GRANT CREATE ON DATABASE ledger TO healer")
    assert gate(database, rules)["word"] == "allowed"
    server.sql("REVOKE CREATE ON DATABASE ledger FROM healer")
    assert gate(database, rules, "r2", vmid=202)["word"] == "allowed"
    # Nor need the tables be its own.
    server.role("writer")
    other = server.options("writer", login_db="ledger")
    database.options, healers = other, database.options
    assert gate(database, rules, "r3", vmid=203)["error"]["code"] == "denied"
    database.sql("GRANT USAGE ON SCHEMA healer TO writer")
    assert gate(database, rules, "r3", vmid=203)["error"]["code"] == "denied"
    database.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA healer TO writer")
    assert gate(database, rules, "r3", vmid=203)["word"] == "allowed"
    database.options = healers
    sound(database)


def test_a_lost_connection_leaves_nothing_half_written(database: Database) -> None:
    with database.turn() as ledger:
        one_remediation(ledger, 1)
    head = sound(database)
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'ledger' AND application_name = 'homelab.healer'"

    def lose(ledger: _ledger.Ledger, error: Exception | None = None) -> None:
        one_remediation(ledger, 2)
        database.server.sql(ended)
        if error:
            raise error
        one_remediation(ledger, 3)

    with pytest.raises(Unreachable), database.turn() as ledger:
        lose(ledger)
    assert sound(database) == head
    with pytest.raises(ValueError, match="mine"), database.turn() as ledger:  # the first cause is told
        lose(ledger, ValueError("mine"))
    assert sound(database) == head


def test_a_server_that_is_killed_has_what_was_told(database: Database) -> None:
    with database.turn() as ledger:
        one_remediation(ledger, 1)
    database.close()

    def kill(ledger: _ledger.Ledger) -> None:
        one_remediation(ledger, 2)
        database.server.kill()
        one_remediation(ledger, 3)

    with pytest.raises(Unreachable), database.turn() as ledger:
        kill(ledger)
    with pytest.raises(Unreachable), database.turn():
        pass
    database.server.start()
    sound(database)
    assert [row.id for row in look_at(database)] == ["r00001"]


def look_at(store: Store) -> list[_ledger.Remediation]:
    with store.open() as ledger:
        return ledger.find("id <> ''")


def test_the_server_must_prove_who_it_is(database: Database, rules: str, tmp_path: Path) -> None:
    assert database.options["login_host"] == "localhost"
    assert "ssl_mode" not in database.options
    database.options = {name: value for name, value in database.options.items() if name != "ca_cert"}
    answer = gate(database, rules)
    assert answer["error"]["code"] in ("unreachable", "invalid"), answer
    assert "certificate" in answer["msg"]


def test_a_pooler_is_refused(database: Database, rules: str) -> None:
    gate(database, rules)
    for more in ({}, {"ignore_startup_parameters": "options"}):
        with pgbouncer(database.server, **more) as port:
            options = {"login_host": "127.0.0.1", "login_port": port, "ssl_mode": "disable", "login_user": "healer", "login_password": "healer-password"}
            database.options = {**options, "login_db": "prod"}
            answer = gate(database, rules)
            assert (answer["error"]["code"], "pooler" in answer["msg"] or "PgBouncer" in answer["msg"]) == ("invalid", True), answer


def test_the_databases_clock_counts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with database.turn() as ledger:
        assert abs(ledger.now() - real) < 60
        assert abs(ledger.append("switch", name="pause", value={}).at - real) < 60


def test_what_is_told_is_on_a_disk_whatever_the_database_says(database: Database) -> None:
    for said, holds in (("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")):
        database.server.sql(f"ALTER DATABASE ledger SET synchronous_commit = {said}")
        with database.open() as ledger:
            assert ledger.rows("SELECT current_setting('synchronous_commit')") == [(holds,)]


def test_who_cannot_have_its_turn_says_so(store: Store, rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate(store, rules)
    monkeypatch.setattr(_ledger, "BUSY_SECONDS", 1)
    with store.turn():
        began = time.monotonic()
        answer = gate(store, rules, "r2", vmid=202)
        assert (answer["error"]["code"], answer["error"]["retryable"], 0.9 < time.monotonic() - began < 5) == ("conflict", True, True), answer
        assert len(store.ask(remediation_info, check=True)["remediations"]) == 1  # who only looks need not wait
    assert gate(store, rules, "r2", vmid=202)["word"] == "allowed"
