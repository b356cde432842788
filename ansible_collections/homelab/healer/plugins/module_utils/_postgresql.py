# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""PostgreSQL, seen and spoken to through psycopg2.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import traceback
import typing as t
from dataclasses import dataclass

from ansible.module_utils.basic import env_fallback, missing_required_lib

from ansible_collections.homelab.healer.plugins.module_utils._errors import (
    Conflict,
    Denied,
    HealerError,
    Invalid,
    MissingLibrary,
    NotFound,
    Refused,
    TaskFailed,
    TimedOut,
    Unreachable,
)

try:
    import psycopg2
    import psycopg2.extensions

    IMPORT_ERROR: str | None = None
except ImportError:
    IMPORT_ERROR = traceback.format_exc()

OPTIONS: dict[str, t.Any] = dict(
    login_host=dict(type="str", aliases=["host"], fallback=(env_fallback, ["PGHOST"])),
    login_port=dict(type="int", default=5432, aliases=["port"], fallback=(env_fallback, ["PGPORT"])),
    login_unix_socket=dict(type="path", aliases=["unix_socket"]),
    login_user=dict(type="str", default="postgres", aliases=["login"], fallback=(env_fallback, ["PGUSER"])),
    login_password=dict(type="str", no_log=True, fallback=(env_fallback, ["PGPASSWORD"])),
    ssl_mode=dict(
        type="str",
        default="verify-full",
        choices=["disable", "allow", "prefer", "require", "verify-ca", "verify-full"],
        fallback=(env_fallback, ["PGSSLMODE"]),
    ),
    ca_cert=dict(type="path", aliases=["ssl_rootcert"], fallback=(env_fallback, ["PGSSLROOTCERT"])),
    ssl_cert=dict(type="path"),
    ssl_key=dict(type="path"),
    connect_timeout=dict(type="int", default=10, fallback=(env_fallback, ["PGCONNECT_TIMEOUT"])),
)
CREDENTIALS: dict[str, t.Any] = dict(mutually_exclusive=[("login_host", "login_unix_socket")], required_together=[("ssl_cert", "ssl_key")])
"""What the connection's options need of each other, for ``AnsibleModule``."""
APPLICATION = "homelab.healer"
"""What our own sessions call themselves, so that they and an operator know them."""
OLDEST = 130000
LONGEST = 63
"""Bytes that a name has at most; the server cuts off what is longer, which then is the name of something else."""
READ_SECONDS = 60
"""How long one question may take, so that a server with trouble is not given more."""
LOCK_SECONDS = 2
"""How long a question may wait for somebody's lock."""
GRACE = 15
"""Seconds after which the server cancels by itself what this client should have cancelled."""
ASKING = 3.0
"""Seconds that may be lost over the question how far something has come, before it is cancelled."""
CANCELLING = 10.0
"""Seconds within which a cancelled statement ends, or a server that crashed is there again, as far as we wait for it."""
POLL = 0.2
SESSION = {
    "search_path": "pg_catalog",
    "statement_timeout": f"{READ_SECONDS}s",
    "lock_timeout": f"{LOCK_SECONDS}s",
    "idle_in_transaction_session_timeout": "60s",
}
"""Set with each connection. Names of functions and operators can then mean PostgreSQL's own only, also while an index' expressions are computed."""

REFUSALS: tuple[tuple[str, type[HealerError], str], ...] = (
    ("22021", Invalid, "The name has characters that the database's encoding does not have."),
    ("22P05", Invalid, "The name has characters that the database's encoding does not have."),
    ("25006", Refused, "It is a standby, or read-only: name its primary."),
    ("28", Denied, "Check login_user and login_password, and what pg_hba.conf allows."),
    ("3D000", NotFound, "Check the name of the database, in upper and lower case; psql -l lists them."),
    ("3F000", NotFound, "Look again: it was removed in the meantime."),
    ("40P01", Conflict, "It came into a deadlock with somebody else; run this again."),
    ("42501", Denied, ""),
    ("42P01", NotFound, "Look again: it was removed or renamed in the meantime."),
    ("53100", TaskFailed, "Free space on the server's disk first."),
    ("53200", TaskFailed, "The server lacks memory; lower maintenance_work_mem, or give it more."),
    ("53300", Unreachable, ""),
    ("55P03", Conflict, "Look who holds it with homelab.healer.pg_activity_info; lock_timeout waits longer."),
    ("57014", TimedOut, "Look with homelab.healer.pg_activity_info what holds the server up."),
    ("57P0", Unreachable, "It is starting, stopping or in recovery; look into its log."),
    ("XX000", TaskFailed, "Run this again; if it stays, look into the server's log."),
    ("XX00", TaskFailed, "The data may be damaged: look into the server's log, and check with pg_amcheck before anything else is written."),
)
"""What the server's refusals mean: how the SQLSTATE begins, the failure, and what to do. The first that fits."""
NOT_FOUND_IN_FUNCTIONS = ("42883", "42P01", "42704")
IN_FUNCTION = "A function that an index calls finds it by the search_path: name the schema in its body, or use ALTER FUNCTION ... SET search_path."
"""Maintenance looks nowhere but in pg_catalog, from PostgreSQL 17 on by itself."""
SLOTS = (
    "A superuser has superuser_reserved_connections left; from PostgreSQL 16 on, set reserved_connections (it is 0 by default) and "
    "GRANT pg_use_reserved_connections TO this role, then any role can be let in."
)
UNCONNECTED: tuple[tuple[str, type[HealerError], str], ...] = (
    ("unsupported startup parameter", Invalid, "That is a pooler, such as PgBouncer. Give the address of the server itself."),
    ("remaining connection slots", Unreachable, SLOTS),
    ("too many clients", Unreachable, SLOTS),
    ("too many connections", Unreachable, SLOTS),
    ("password authentication failed", Denied, "Check login_user and login_password."),
    ("no password supplied", Denied, "Give login_password."),
    ("no pg_hba.conf entry", Denied, "Let pg_hba.conf admit this address, user and database, or connect by another way."),
    ("authentication failed", Denied, "Check login_user; over a socket it is often the name of the operating system's user."),
    ("root certificate file", Invalid, "Give the certificate of the authority that signed the server's as ca_cert, or check its path."),
    ("certificate file", Invalid, "Check the path of ssl_cert, and that it can be read."),
    ("private key file", Invalid, "Give the key that belongs to ssl_cert as ssl_key; nobody else may read that file."),
    ("does not exist", NotFound, "Check the names of the database and of login_user, in upper and lower case."),
    ("is not permitted to log in", Denied, "ALTER ROLE ... LOGIN lets it."),
    ("permission denied for database", Denied, "GRANT CONNECT ON DATABASE ... TO that role."),
    ("not currently accepting connections", Denied, "Name another database; this one is a template or closed."),
    ("server does not support SSL", Unreachable, "Turn on TLS on the server (ssl=on), or say with ssl_mode=prefer that all may go unencrypted."),
    ("certificate", Unreachable, "Give the authority's certificate as ca_cert, and as login_host a name that stands in the server's certificate."),
    ("SSL error", Unreachable, "Give the authority's certificate as ca_cert, or look into the server's log."),
    ("invalid port number", Invalid, "Correct login_port."),
    ("invalid value for parameter", Invalid, "Correct that option."),
)
"""The same for what goes wrong while connecting, which comes without a SQLSTATE: a phrase in it instead. What none fits is ``Unreachable``."""


@dataclass(frozen=True)
class Role:
    """Who speaks to the server, and what it may do as a whole."""

    name: str
    superuser: bool
    sees_all: bool
    """Whether it sees what other roles' sessions do."""


@contextlib.contextmanager
def connect(params: t.Mapping[str, t.Any]) -> t.Iterator[Server]:
    """Speak to the server that the connection options name. Closes all its connections."""
    _check_options(params)
    server = Server(params)
    try:
        server.greet()
        yield server
    finally:
        server.close()


def session(params: t.Mapping[str, t.Any], **settings: str) -> t.Any:
    """One connection of psycopg2's to the database that the connection options name, for who writes in transactions of his own, which he begins himself."""
    _check_options(params)
    return Server(params).another(settings)


def _check_options(params: t.Mapping[str, t.Any]) -> None:
    if IMPORT_ERROR:
        why = missing_required_lib("psycopg2")
        raise MissingLibrary("cannot speak to PostgreSQL", why=why, fix="Install it where this module runs: pip install psycopg2-binary.")
    for option in ("login_db", "login_user"):
        if not 0 < len(str(params[option]).encode("utf-8", "replace")) <= LONGEST:  # the server would cut it off, and that may be another's name
            why = f"{option} is {'too long, as' if params[option] else 'empty, and'} a name has 1 to {LONGEST} bytes"
            raise Invalid("cannot connect to PostgreSQL", why=why, fix=f"Correct {option}.")


def _arguments(params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    over_tcp = params["login_host"] and not params["login_host"].startswith("/")
    arguments = dict(
        host=params["login_unix_socket"] or params["login_host"],
        port=params["login_port"],
        dbname=params["login_db"],
        user=params["login_user"],
        password=params["login_password"],
        sslmode=params["ssl_mode"] if over_tcp else None,
        sslrootcert=(params["ca_cert"] or _authorities(params["ssl_mode"])) if over_tcp else None,
        sslcert=params["ssl_cert"],
        sslkey=params["ssl_key"],
        connect_timeout=params["connect_timeout"],
        application_name=APPLICATION,
        client_encoding="utf8",
        options=" ".join(f"-c {name}={value}" for name, value in SESSION.items()),
        keepalives_idle=30,
        keepalives_interval=10,
        keepalives_count=3,
        tcp_user_timeout=60000 if psycopg2.extensions.libpq_version() >= 120000 else None,
    )
    return {name: value for name, value in arguments.items() if value is not None}


def _authorities(mode: str) -> str | None:
    """The system's authorities, where libpq knows them and the user has no file of her own."""
    own = os.path.exists(os.path.expanduser("~/.postgresql/root.crt"))
    return "system" if mode == "verify-full" and not own and psycopg2.extensions.libpq_version() >= 160000 else None


@contextlib.contextmanager
def translated(what: str, writing: bool = False) -> t.Iterator[None]:
    """Tell the library's errors as ours. ``writing``: a lost connection leaves open whether the write happened."""
    try:
        yield
    except psycopg2.Error as error:
        raise refusal(what, error, writing) from error
    except ValueError as error:
        why = f"there is text that is not in the database's encoding: {error}"
        raise Invalid(what, why=why, fix="Name objects in plain letters, or look into the database's encoding (SQL_ASCII checks nothing).") from error


def refusal(what: str, error: t.Any, writing: bool = False) -> HealerError:
    """The failure that an error of psycopg2 means."""
    code, said = error.pgcode, _said(error)
    if code is None:
        fix = "Look whether the server runs, and login_host and login_port name it."
        return Unreachable(what, why=said, fix=fix, uncertain=writing)
    if code == "42883" or (code in NOT_FOUND_IN_FUNCTIONS and error.diag.context):
        return TaskFailed(what, why=said, fix=IN_FUNCTION)
    for begin, failure, advice in REFUSALS:
        if code.startswith(begin):
            fix = advice or (SLOTS if code == "53300" else "Let the object's owner or a superuser grant what the server's words ask for.")
            return failure(what, why=said, fix=fix, uncertain=writing and code.startswith("57P0"))
    return TaskFailed(what, why=f"{said} (SQLSTATE {code})", fix="Look into the server's log.")


def _said(error: t.Any) -> str:
    """The server's own words: its message, and its detail where there is one."""
    diagnosis = getattr(error, "diag", None)
    primary, detail = getattr(diagnosis, "message_primary", None), getattr(diagnosis, "message_detail", None)
    return " ".join(filter(None, [primary, f"({detail})" if detail else None])) or " ".join(str(error).split()) or type(error).__name__


def _unconnected(what: str, error: t.Any) -> HealerError:
    said = " ".join(str(error).split())
    for phrase, failure, fix in UNCONNECTED:
        if phrase in said:
            return failure(what, why=said, fix=fix)
    return Unreachable(what, why=said, fix="Look whether the server runs and listens there, and login_host and login_port, or login_unix_socket, name it.")


def _set(connection: t.Any, settings: t.Mapping[str, str | None]) -> None:
    """Change settings of a session, in one question; what is set to nothing is put back to the server's own."""
    if settings:
        with connection.cursor() as cursor:
            each = ", ".join(["pg_catalog.set_config(%s, %s, false)"] * len(settings))
            cursor.execute(f"SELECT {each}", [part for setting in settings.items() for part in setting])


class Server:
    """A server, seen from one of its databases. ``rows`` reads; ``maintain`` and ``signal`` are the two ways to write.

    Has one connection for questions, which several threads may ask at a time, and more for maintenance as they are needed. ``alone`` is for what must not
    be done to two tables at once.
    """

    def __init__(self, params: t.Mapping[str, t.Any]) -> None:
        self.database = str(params["login_db"])
        self._arguments = _arguments(params)
        self._where = params["login_unix_socket"] or params["login_host"] or "the local socket"
        self._lock = threading.RLock()
        self.alone = threading.Lock()
        self._since = time.monotonic()
        self.limit = math.inf
        """After how many seconds no more time is given to what is patient."""
        self._questions: t.Any = None
        self._free: list[t.Any] = []
        self.version, self.block_size, self.standby = 0, 0, False
        self.role = Role("", False, False)

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for connection in [self._questions, *self._free]:
                if connection is not None:
                    connection.close()
            self._questions, self._free = None, []

    @property
    def version_name(self) -> str:
        """Its version as it calls it itself, such as ``15.18``."""
        return f"{self.version // 10000}.{self.version % 10000}"

    def seconds(self) -> float:
        """For how many seconds we have been at it."""
        return time.monotonic() - self._since

    def left(self) -> float:
        """How many seconds are left of its limit."""
        return self.limit - self.seconds()

    def greet(self) -> None:
        """Connect, and find out what server it is and who is speaking."""
        self._questions = self._connected()
        self.version = int(self._questions.server_version)
        what = f"cannot use the PostgreSQL at {self._where}"
        if self.version < OLDEST:
            raise Invalid(what, why=f"it is version {self.version // 10000}", fix=f"PostgreSQL {OLDEST // 10000} is the oldest that this collection knows.")
        (facts,) = self.rows(
            what,
            "SELECT current_user AS name, r.rolsuper AS superuser, pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_all,"
            " current_setting('block_size')::int AS block_size, pg_is_in_recovery() AS standby"
            " FROM pg_roles r WHERE r.rolname = current_user",
        )
        self.block_size, self.standby = facts.pop("block_size"), facts.pop("standby")
        self.role = Role(**facts)

    def _connected(self) -> t.Any:
        what = f"cannot connect to the database {self.database} at {self._where}"
        try:
            connection = psycopg2.connect(**self._arguments)
        except psycopg2.Error as error:
            raise _unconnected(what, error) from error
        except (UnicodeError, ValueError) as error:
            raise Invalid(what, why=str(error), fix="Correct the options of the connection.") from error
        connection.autocommit = True  # VACUUM refuses a transaction, and a transaction would see the activity of its first moment only
        gates = [("idle_session_timeout", 140000), ("transaction_timeout", 170000)]
        try:
            with translated(what):
                self._check_direct(connection)  # before anything is set, which a pooler would hand on to others
                _set(connection, {name: "0" for name, since in gates if connection.server_version >= since})
        except HealerError:
            connection.close()
            raise
        return connection

    def another(self, settings: t.Mapping[str, str]) -> t.Any:
        """One more connection, which is the caller's to close."""
        connection = self._connected()
        try:
            with translated(f"cannot use the PostgreSQL at {self._where}"):
                _set(connection, settings)
        except HealerError:
            connection.close()
            raise
        return connection

    def _check_direct(self, connection: t.Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_catalog.current_setting('search_path')")
            if cursor.fetchone()[0] != SESSION["search_path"]:
                why = "something between here and it, such as PgBouncer, takes away what a session sets"
                raise Invalid(f"cannot use the PostgreSQL at {self._where}", why=why, fix="Give the address of the server itself.")

    def rows(self, what: str, question: str, params: t.Any = None, writing: bool = False) -> list[dict[str, t.Any]]:
        """Ask; ``what`` is what its failure could not do. Returns a dict for each row. If the connection was lost before, this opens another."""
        with self._lock:
            if self._questions.closed:
                self._questions = self._connected()
            with translated(what, writing), self._questions.cursor() as cursor:
                cursor.execute(question, params)
                names = [column.name for column in cursor.description]
                return [dict(zip(names, row)) for row in cursor.fetchall()]

    @contextlib.contextmanager
    def patient(self, what: str, seconds: int) -> t.Iterator[None]:
        """Within this, a question may take so many seconds, or what is left of the limit, for those that read whole tables."""
        with self._lock:
            with translated(what):
                _set(self._questions, {"statement_timeout": f"{max(1, min(seconds, self.left())):.0f}s"})
            try:
                yield
            finally:
                if not self._questions.closed:
                    with translated(what):
                        _set(self._questions, {"statement_timeout": SESSION["statement_timeout"]})

    def maintain(self, what: str, statement: str, settings: t.Mapping[str, str | None], seconds: float, progress: t.Callable[[int], str]) -> None:
        """Run one statement of maintenance on a connection of its own; it is cancelled after so many seconds.

        ``progress`` tells how far the process with this pid has come, and nothing if it has not begun; it is asked just before that. If this client
        dies, the server ends the statement by itself: at once from PostgreSQL 14 on, before that when its time is up. A failure of the statement itself
        is ``begun``; where the connection was lost, what is left of the statement is cancelled on another, or the failure is ``underway``.
        """
        with self._for_maintenance() as connection:
            with translated(what):
                _set(connection, {**settings, "statement_timeout": f"{seconds + GRACE:.0f}s"})
                backend = _backend(connection)
            watch, began = _Watch(seconds, connection, lambda: progress(backend[0])), time.monotonic()
            try:
                with watch, translated(what, writing=True), connection.cursor() as cursor:
                    cursor.execute(statement)
            except TimedOut as error:
                raise _cancelled(what, error, watch, seconds, time.monotonic() - began) from error
            except HealerError as error:
                error.begun = True
                if error.uncertain:
                    raise self._lost(what, error, backend) from error
                raise

    def _lost(self, what: str, error: HealerError, backend: tuple[int, t.Any]) -> HealerError:
        """The failure of a statement whose reply was lost, now that nothing is left of it on the server, or somebody has to look."""
        if self._ended(what, backend):
            return error
        why = f"{error.why}; the server may still be at it, as process {backend[0]}, which could not be cancelled or be looked at"
        return type(error)(what, why=why, fix="Look with homelab.healer.pg_activity_info whether it still runs, then run this again.", underway=True)

    def _ended(self, what: str, backend: tuple[int, t.Any]) -> bool:
        """Cancel what a session of ours still runs, and wait until it has ended. Returns whether it has."""
        question = "SELECT pg_cancel_backend(pid) AS cancelled FROM pg_stat_activity WHERE pid = %s AND backend_start = %s AND state IS DISTINCT FROM 'idle'"
        until = time.monotonic() + CANCELLING
        while time.monotonic() < until:
            with contextlib.suppress(HealerError):  # a server that crashed is there again soon
                if not self.rows(what, question, backend):
                    return True
            time.sleep(POLL)
        return False

    @contextlib.contextmanager
    def _for_maintenance(self) -> t.Iterator[t.Any]:
        with self._lock:
            connection = self._free.pop() if self._free else None
        if connection is None:
            connection = self._connected()
            if self.version >= 140000:
                with contextlib.suppress(psycopg2.Error):  # some systems that a server runs on cannot tell
                    _set(connection, {"client_connection_check_interval": "10s"})
        try:
            yield connection
        finally:
            with self._lock:
                if not connection.closed:
                    self._free.append(connection)

    def signal(self, what: str, function: str, pid: int, unchanged: t.Mapping[str, t.Any]) -> bool:
        """Send a session the signal of ``pg_cancel_backend`` or ``pg_terminate_backend``, if these columns of its activity are what they were.

        Returns whether it was sent. Looking and sending are one statement, so that no other session can be hit that has the pid by now.
        """
        same = " AND ".join(f"{column} IS NOT DISTINCT FROM %s" for column in unchanged)
        question = f"SELECT {function}(pid) AS sent FROM pg_stat_activity WHERE pid = %s AND {same}"
        return any(row["sent"] for row in self.rows(what, question, (pid, *unchanged.values()), writing=True))


def _backend(connection: t.Any) -> tuple[int, t.Any]:
    """The pid of a connection's process, and when it began: a pid alone may be another's later."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
        pid, began = cursor.fetchone()
        return int(pid), began


def _cancelled(what: str, error: TimedOut, watch: _Watch, seconds: float, took: float) -> TimedOut:
    """The failure of a statement that was cancelled: by us, by the server in our place, or by somebody else."""
    if not watch.cancelled and took < seconds + GRACE - 1:
        why = f"it was cancelled by somebody else after {took:.0f} s, not by this module ({error.why})"
        late = TimedOut(what, why=why, fix="Find out who did, such as by pg_cancel_backend, or when it may run, then run it again.")
    else:
        far = watch.told if watch.told is not None else "how far it had come could not be asked"
        why = f"it was not done after {seconds:g} s, and was cancelled; {far or 'it had not begun'}"
        late = TimedOut(what, why=why, fix="Run it again: what is done stays done. A longer max_duration lets it come to its end.")
    late.begun, late.partly = True, watch.told != ""
    return late


class _Watch:
    """Cancels what runs on a connection after so many seconds, unless it has ended by then.

    ``progress`` is asked just before that, but not waited for if the server does not answer. Where cancelling itself is not answered, the connection is
    closed, so that it cannot hit what runs there next.
    """

    def __init__(self, seconds: float, connection: t.Any, progress: t.Callable[[], str]) -> None:
        self._seconds, self._connection, self._progress = seconds, connection, progress
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self.cancelled = False
        self.told: str | None = None

    def _wait(self) -> None:
        if self._over.wait(self._seconds):
            return
        self.cancelled = True
        asking = threading.Thread(target=self._ask, daemon=True)
        asking.start()
        asking.join(ASKING)
        if self._over.is_set():
            return
        with contextlib.suppress(psycopg2.Error):  # the connection is lost, which the statement tells
            self._connection.cancel()

    def _ask(self) -> None:
        with contextlib.suppress(HealerError):
            self.told = self._progress()

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(ASKING + CANCELLING)
        if self._thread.is_alive():
            self._connection.close()
