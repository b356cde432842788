"""The ledger: what is told as written is there, also after a crash; and whoever edits it is found out."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
import typing as t
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ansible_collections.homelab.healer.plugins.module_utils import _audit, _gate
from ansible_collections.homelab.healer.plugins.module_utils._audit import Finding, Report, parse_head, verify
from ansible_collections.homelab.healer.plugins.module_utils._errors import Refused
from ansible_collections.homelab.healer.plugins.module_utils._ledger import GENESIS, Event, Ledger
from ansible_collections.homelab.healer.plugins.modules import ledger_prune, ledger_verify
from tests.lab.ledger import ANYTHING, TABLES, Database, Facts, File, Store, one_remediation, written_policy
from tests.lab.playbooks import Controller
from tests.lab.postgres import Postgres, prepared

HOWS = ("healed", "rolled_back", "needs_human", "denied", "shadow", "healed", "open")
DAY = 86400.0


def write_history(store: Store) -> None:
    """Some remediations of each kind, a switch that is set, one that is not any more, and one that was set anew."""
    for number, how in enumerate(HOWS):
        with store.turn() as ledger:
            one_remediation(ledger, number, how)
    with store.turn() as ledger:
        ledger.turn_switch("pause", {"who": "ann", "why": "film night"})
        ledger.turn_switch("storm", {"targets": ["a"], "cause": ""})
        ledger.turn_switch("storm", None)
        ledger.turn_switch("pause", {"who": "bob", "why": "ünd"})
        ledger.keep_note("telegram", "17")


def report(store: Store, seen: str = "") -> Report:
    with store.open() as ledger:
        return verify(ledger, parse_head(seen) if seen else None)


def findings(store: Store, seen: str = "") -> list[Finding]:
    found = report(store, seen)
    assert found.found >= len(found.findings)
    return list(found.findings)


def head(store: Store) -> str:
    with store.open() as ledger:
        return ledger.head


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> File:
    store = File(tmp_path_factory.mktemp("ledger") / "ledger.db")
    write_history(store)
    return store


@pytest.fixture
def file(written: File, tmp_path: Path) -> t.Iterator[File]:
    """A ledger in a file, with a history."""
    shutil.copy(written.path, tmp_path / "ledger.db")
    with contextlib.closing(File(tmp_path / "ledger.db")) as store:
        yield store


@pytest.fixture(scope="module", params=["sqlite", "debian", "embedded"])
def place(request: pytest.FixtureRequest) -> t.Iterator[Postgres | None]:
    """Where the ledger is: in a file, or on a server."""
    server = None if request.param == "sqlite" else prepared(request.getfixturevalue(f"{request.param}_postgres"))
    yield server
    if server:
        server.reset()


@pytest.fixture
def store(place: Postgres | None, request: pytest.FixtureRequest) -> t.Iterator[Store]:
    """A ledger of each kind, with a history."""
    if place is None:
        yield request.getfixturevalue("file")
        return
    with contextlib.closing(Database(place)) as database:
        write_history(database)
        yield database


# What was done to it is found and named


def rehash(store: Store, first: int, note: bool = True) -> None:
    """Hash all entries anew from this one on, as somebody would who knows how."""
    ((before,),) = store.sql("SELECT hash FROM journal WHERE seq = ?", first - 1) or [(GENESIS,)]
    number = first - 1
    for seq, at, remediation, kind, body in store.sql("SELECT seq, at, remediation, kind, body FROM journal WHERE seq >= ? ORDER BY seq", first):
        event = Event(seq, at, remediation, kind, body, before)
        store.sql("UPDATE journal SET prev = ?, hash = ? WHERE seq = ?", before, event.hash, seq)
        number, before = seq, event.hash
    if note:
        store.sql("UPDATE notes SET value = ? WHERE name = 'head'", f"{number}:{before}")


def renumber(store: Store, first: int) -> None:
    """Close the gap before this entry."""
    for (seq,) in store.sql("SELECT seq FROM journal WHERE seq >= ? ORDER BY seq", first):
        store.sql("UPDATE journal SET seq = seq - 1 WHERE seq = ?", seq)


def edit(store: Store) -> None:
    store.sql("UPDATE journal SET body = replace(body, 'so it ended', 'so it ever was') WHERE seq = 5")


def edit_and_hash(store: Store) -> None:
    edit(store)
    seq, at, remediation, kind, body, prev = store.sql("SELECT seq, at, remediation, kind, body, prev FROM journal WHERE seq = 5")[0]
    store.sql("UPDATE journal SET hash = ? WHERE seq = 5", Event(seq, at, remediation, kind, body, prev).hash)


def edit_and_hash_all(store: Store) -> None:
    edit(store)
    rehash(store, 5)


def edit_all(store: Store) -> None:
    """The one that nothing but a head finds that was seen before."""
    store.sql("UPDATE journal SET body = replace(body, 'so it ended', 'so it ever was') WHERE seq = 5")
    store.sql("UPDATE remediations SET why = 'so it ever was' WHERE id = 'r00000'")
    rehash(store, 5)


def swap(store: Store) -> None:
    for old, new in ((5, -1), (6, 5), (-1, 6)):
        store.sql("UPDATE journal SET seq = ? WHERE seq = ?", new, old)


def cut(store: Store) -> None:
    store.sql("DELETE FROM journal WHERE seq > (SELECT max(seq) - 2 FROM journal)")


def cut_all(store: Store) -> None:
    cut(store)
    ((seq, last),) = store.sql("SELECT seq, hash FROM journal ORDER BY seq DESC LIMIT 1")
    store.sql("UPDATE notes SET value = ? WHERE name = 'head'", f"{seq}:{last}")
    store.sql("DELETE FROM switches")


def insert(store: Store) -> None:
    ((seq, last),) = store.sql("SELECT seq, hash FROM journal ORDER BY seq DESC LIMIT 1")
    event = Event(seq + 1, 1.5, "r00000", "closed", '{"outcome":"healed","why":"I say so"}', last)
    values = (event.seq, event.at, event.remediation, event.kind, event.body, event.prev, event.hash)
    store.sql("INSERT INTO journal (seq, at, remediation, kind, body, prev, hash) VALUES (?, ?, ?, ?, ?, ?, ?)", *values)


def delete_and_close_the_gap(store: Store) -> None:
    store.sql("DELETE FROM journal WHERE seq = 5")
    renumber(store, 6)
    rehash(store, 5)


def sqls(*statements: str) -> t.Callable[[Store], None]:
    def run(store: Store) -> None:
        for statement in statements:
            store.sql(statement)

    return run


@dataclass(frozen=True)
class Tampering:
    """What is done, and the finding that must be among those that are told: its table, fault, number (negative from the end) and words.

    ``seen``: it takes a head to find it.
    """

    do: t.Callable[[Store], None]
    table: str
    fault: str
    seq: int
    words: str
    seen: bool = False


TAMPERINGS: dict[str, Tampering] = {
    "an entry is edited": Tampering(edit, "journal", "edited", 5, "entry 5 (closed of remediation r00000) is not what was written"),
    "its time is edited": Tampering(sqls("UPDATE journal SET at = at + 0.000001 WHERE seq = 5"), "journal", "edited", 5, "entry 5 (closed"),
    "its hash is edited": Tampering(sqls(f"UPDATE journal SET hash = '{GENESIS}' WHERE seq = 5"), "journal", "edited", 5, "it, or its hash, was edited"),
    "its hash before is edited": Tampering(sqls(f"UPDATE journal SET prev = '{GENESIS}' WHERE seq = 5"), "journal", "edited", 5, "entry 5"),
    "whose it is is edited": Tampering(sqls("UPDATE journal SET remediation = 'r00001' WHERE seq = 5"), "journal", "edited", 5, "of remediation r00001"),
    "one is edited and hashed": Tampering(edit_and_hash, "journal", "rehashed", 5, "entry 5 is not the one after which 6 was written"),
    "all after it are hashed": Tampering(
        edit_and_hash_all, "remediations", "edited", 0, "why of remediation r00000 is so it ended, and should be so it ever was"
    ),
    "all is hashed, and its row": Tampering(edit_all, "journal", "rehashed", -1, "it, or one before it, was changed and hashed anew", seen=True),
    "one is deleted": Tampering(sqls("DELETE FROM journal WHERE seq = 5"), "journal", "missing", 5, "entry 5 is missing"),
    "the first is deleted": Tampering(sqls("DELETE FROM journal WHERE seq = 1"), "journal", "missing", 1, "entry 1 is missing"),
    "many are deleted": Tampering(sqls("DELETE FROM journal WHERE seq BETWEEN 5 AND 9"), "journal", "missing", 5, "entries 5 to 9 are missing"),
    "one is deleted and the gap closed": Tampering(delete_and_close_the_gap, "remediations", "edited", 0, "of remediation r00000"),
    "all are deleted": Tampering(sqls("DELETE FROM journal"), "journal", "cut", 1, "entries 1 to {last} are missing at the end"),
    "two are exchanged": Tampering(swap, "journal", "moved", 6, "entry 6 (closed of remediation r00000) was written as 5"),
    "the end is cut": Tampering(cut, "journal", "cut", -2, "entries {cut} to {last} are missing at the end"),
    "the end is cut, and it is forgotten": Tampering(cut_all, "journal", "cut", -2, "{last} was the last when the head was seen", seen=True),
    "one is appended": Tampering(
        insert, "journal", "inserted", 0, "the ledger remembers {last} as its last entry; those from {next} to {next} are not its own"
    ),
    "a row is edited": Tampering(
        sqls("UPDATE remediations SET state = 'healed' WHERE id = 'r00002'"),
        "remediations",
        "edited",
        0,
        "state of remediation r00002 is healed, and should be needs",
    ),
    "a time is set": Tampering(
        sqls("UPDATE remediations SET applied = NULL WHERE id = 'r00000'"), "remediations", "edited", 0, "applied of remediation r00000"
    ),
    "a row is deleted": Tampering(sqls("DELETE FROM remediations WHERE id = 'r00001'"), "remediations", "missing", 6, "remediation r00001 is missing"),
    "a row is renamed": Tampering(
        sqls("UPDATE remediations SET id = 'x' WHERE id = 'r00001'"), "remediations", "inserted", 0, "the journal knows no remediation x"
    ),
    "a switch is edited": Tampering(sqls("UPDATE switches SET value = '{}'"), "switches", "edited", 0, "value of switch pause is {}, and should be"),
    "a switch is turned off": Tampering(sqls("DELETE FROM switches"), "switches", "missing", 0, "switch pause is not set"),
    "a switch is turned on": Tampering(sqls("INSERT INTO switches VALUES ('clock', 1.5, '{}')"), "switches", "inserted", 0, "switch clock is set"),
    "the head is forgotten": Tampering(sqls("DELETE FROM notes"), "journal", "inserted", 1, "remembers 0"),
    "the head is edited": Tampering(sqls("UPDATE notes SET value = 'x' WHERE name = 'head'"), "notes", "edited", 0, "cannot be read"),
}


def test_what_was_done_to_it_is_found_and_named(store: Store) -> None:
    """All of them on copies of one history, each put back by what the tables held."""
    held = {table: store.rows(table) for table in TABLES}
    seen = head(store)
    last = int(seen.partition(":")[0])
    assert (findings(store), findings(store, seen)) == ([], [])
    for name, tampering in TAMPERINGS.items():
        tampering.do(store)
        found = findings(store, seen if tampering.seen else "")
        seq = tampering.seq if tampering.seq >= 0 else last + 1 + tampering.seq
        words = tampering.words.replace("{last}", str(last)).replace("{cut}", str(last - 1)).replace("{next}", str(last + 1))
        told = [one for one in found if (one.table, one.fault) == (tampering.table, tampering.fault) and words in one.what]
        assert any(seq in (0, one.seq) for one in told), (name, found)
        assert not tampering.seen or findings(store) == [] or name == "the end is cut, and it is forgotten"
        assert findings(store, seen), name
        for table, rows in held.items():
            store.fill(table, rows)
    assert findings(store, seen) == []


def test_what_only_a_file_can_hold_is_found(file: File) -> None:
    """A column of SQLite takes values of any kind, and a key that is no whole number may be nothing at all."""
    held = {table: file.rows(table) for table in TABLES}
    for statement, words in (
        ("UPDATE journal SET seq = NULL WHERE seq = 5", "there are rows in journal without seq: 1"),
        ("UPDATE journal SET seq = 5.5 WHERE seq = 6", "there is an entry of remediation r00001 with the number 5.5, which none has"),
        ("UPDATE journal SET seq = 'six' WHERE seq = 6", "with the number six, which none has"),
        ("UPDATE journal SET seq = x'06' WHERE seq = 6", "with the number b'\\x06', which none has"),
        ("UPDATE journal SET seq = -6 WHERE seq = 6", "with the number -6, which none has"),
        ("UPDATE journal SET at = 'yesterday' WHERE seq = 6", "entry 6 holds what no entry does"),
        ("UPDATE journal SET body = CAST(body AS BLOB) WHERE seq = 6", "entry 6 holds what no entry does"),
        ("UPDATE journal SET body = CAST(x'ff' AS TEXT) WHERE seq = 6", "entry 6 (opened of remediation r00001) is not what was written"),
        ("UPDATE remediations SET id = NULL WHERE id = 'r00001'", "there are rows in remediations without id: 1"),
        ("UPDATE remediations SET applied = 'soon' WHERE id = 'r00000'", "applied of remediation r00000 is soon, and should be 1"),
        ("UPDATE remediations SET why = CAST(why AS BLOB) WHERE id = 'r00000'", "why of remediation r00000 is b'so it ended', and should be so it ended"),
        ("UPDATE remediations SET nonce = 'mine' WHERE id = 'r00000'", "nonce of remediation r00000 is hidden, and should be hidden"),
        ("UPDATE switches SET name = NULL", "there are rows in switches without name: "),
        ("INSERT INTO notes VALUES (NULL, 'x')", "there are rows in notes without name: 1"),
        ("INSERT INTO remediations SELECT '', remedy, host, target, name, node, state, why, rule, plan_id, opened, decided, asked, answered, applied, changed,"
         " closed, fence, until, nonce, expires, approver, recurred, recovered FROM remediations WHERE id = 'r00000'", "the journal knows no remediation"),
    ):  # fmt: skip
        file.sql(statement)
        assert any(words in one.what for one in findings(file)), (statement, findings(file))
        for table, rows in held.items():
            file.fill(table, rows)


def test_nothing_is_written_behind_an_end_that_was_cut(store: Store) -> None:
    """A new entry would hide it."""
    cut(store)
    with pytest.raises(Refused, match=r"will not write .*homelab.healer.ledger_verify tells what is wrong"), store.turn() as ledger:
        ledger.turn_switch("pause", None)
    store.sql("DELETE FROM journal")
    with pytest.raises(Refused), store.turn() as ledger:
        one_remediation(ledger, 100)
    assert any(one.fault == "cut" for one in findings(store))


def test_the_module_tells_what_it_found_and_fails(store: Store) -> None:
    before = store.ask(ledger_verify)
    assert before == {
        "changed": False,
        "sound": True,
        "findings": [],
        "found": 0,
        "entries": before["entries"],
        "remediations": 7,
        "pruned_through": 0,
        "head": head(store),
    }
    edit(store)
    answer = store.ask(ledger_verify, head=before["head"])
    assert (answer["failed"], answer["sound"], answer["found"], answer["error"]["code"]) == (True, False, 2, "refused")
    assert answer["msg"].startswith("the ledger is not as it was written: entry 5 (closed of remediation r00000) is not what was written")
    (entry, row) = answer["findings"]
    assert (entry["table"], entry["fault"], entry["seq"], entry["remediation"]) == ("journal", "edited", 5, "r00000")
    assert (row["table"], row["column"], row["stored"], row["expected"]) == ("remediations", "why", "so it ended", "so it ever was")
    answer = store.ask(ledger_verify, fail_on_findings=False)
    assert ("failed" in answer, answer["sound"], answer["found"]) == (False, False, 2)
    answer = store.ask(ledger_verify, head="17")
    assert answer["error"]["code"] == "invalid"


def test_of_many_findings_the_first_are_told_and_all_counted(tmp_path: Path) -> None:
    with contextlib.closing(File(tmp_path / "ledger.db")) as file:
        with file.turn() as ledger:
            for number in range(60):
                one_remediation(ledger, number)
        file.sql("UPDATE journal SET body = body || ' '")
        found = report(file)
        assert (len(found.findings), found.found) == (_audit.MOST, found.entries)
        assert [one.seq for one in found.findings] == list(range(1, _audit.MOST + 1))


ROWS = st.randoms(use_true_random=False)


def sampled(whole: bool, few: int, many: int) -> t.Callable[[t.Any], t.Any]:
    return settings(
        max_examples=many if whole else few,
        deadline=None,
        derandomize=not whole,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


def other(value: t.Any, draw: random.Random) -> t.Any:
    """Another value, of the same kind or of any."""
    choices: list[t.Any] = [value + draw.choice("x 0"), value[:-1], value.upper(), "", value[::-1]] if isinstance(value, str) else []
    choices += [value + 1, -value, value * 2, value + 1e-6] if isinstance(value, float) else []
    choices += [value + 1, value - 1, -value, value + 10**6] if isinstance(value, int) else []
    choices += [None, 1.5, "healed", b"x"]
    return draw.choice([choice for choice in choices if choice != value or type(choice) is not type(value)])


def stored(file: File) -> dict[str, list[tuple[t.Any, ...]]]:
    return {table: [row for row in file.rows(table) if table != "notes" or row[0] == "head"] for table in TABLES}


def test_any_change_of_any_column_of_any_row_is_found(file: File, whole: bool) -> None:
    held, notes, seen = stored(file), [row for row in file.rows("notes") if row[0] != "head"], 0
    columns = {table: file.columns(table) for table in TABLES}

    @sampled(whole, 120, 3000)
    @given(ROWS)
    def holds(draw: random.Random) -> None:
        nonlocal seen
        table = draw.choice(sorted(TABLES))
        row, place = draw.choice(held[table]), draw.randrange(len(columns[table]))
        column, key = columns[table][place], TABLES[table]
        file.sql("BEGIN")
        try:
            file.sql(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", other(row[place], draw), row[0])
        except sqlite3.IntegrityError:
            file.sql("ROLLBACK")
            return
        changed = stored(file) != held
        file.sql("COMMIT")
        found = findings(file)
        assert bool(found) == changed, (table, row[0], column)
        assert not changed or any(names(one, table, row) for one in found), (table, row[0], column, found)
        seen += changed
        file.fill(table, [*held[table], *notes] if table == "notes" else held[table])

    holds()
    assert seen > (1500 if whole else 60)
    assert findings(file) == []


def names(finding: Finding, table: str, row: tuple[t.Any, ...]) -> bool:
    """Whether a finding names a row, or tells that there is one without a key or with another."""
    if table == "notes":
        return "remembers" in finding.what
    whose = {"journal": finding.seq == row[0], "remediations": finding.remediation == row[0], "switches": str(row[0]) in finding.what}[table]
    return whose or (finding.table == table and finding.fault in ("missing", "cut", "inserted"))


def test_whatever_is_deleted_exchanged_or_cut_is_found(file: File, whole: bool) -> None:
    held = file.rows("journal")
    seen, last = head(file), len(held)

    @sampled(whole, 120, 3000)
    @given(ROWS)
    def holds(draw: random.Random) -> None:
        what = draw.choice(["delete", "exchange", "cut", "cut and forget"])
        rows = list(held)
        if what == "delete":
            gone = set(draw.sample(range(last), draw.randint(1, last)))
            rows = [row for place, row in enumerate(rows) if place not in gone]
        elif what == "exchange":
            one, two = sorted(draw.sample(range(last), 2))
            rows[one], rows[two] = ((held[one][0], *held[two][1:]), (held[two][0], *held[one][1:]))
        else:
            rows = rows[: draw.randrange(last)]
        file.sql("BEGIN")
        file.fill("journal", rows)
        if what == "cut and forget":
            file.sql("UPDATE notes SET value = ? WHERE name = 'head'", f"{rows[-1][0]}:{rows[-1][6]}" if rows else f"0:{GENESIS}")
        file.sql("COMMIT")
        found = findings(file, seen if what == "cut and forget" else "")
        if what == "delete":
            missing = {number for one in found if one.fault in ("missing", "cut") and one.table == "journal" for number in named(one.what)}
            assert missing == {place + 1 for place in gone}
        elif what == "exchange":
            assert {one + 1, two + 1} <= {finding.seq for finding in found if finding.fault == "moved"}
        else:
            assert ("cut", len(rows) + 1) in [(finding.fault, finding.seq) for finding in found]
        file.sql("UPDATE notes SET value = ? WHERE name = 'head'", seen)

    holds()


def named(sentence: str) -> range:
    """The entries that a sentence names as missing."""
    words = sentence.split()
    return range(int(words[1]), int(words[3] if words[2] == "to" else words[1]) + 1)


# What is old is forgotten


class Clock:
    """The ledgers' clock, which can be set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        real = Ledger.now
        monkeypatch.setattr(Ledger, "now", lambda ledger: round(real(ledger) + self.ahead, 6))

    def advance(self, days: float) -> None:
        self.ahead += days * DAY


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_pruning_forgets_what_is_old_and_over_and_verifies_on(store: Store, clock: Clock, tmp_path: Path) -> None:
    options: Facts = {"policy": str(written_policy(tmp_path)), "keep": "30d"}
    with store.turn() as ledger:  # what was left open is brought to its end, so that all of it is over
        _gate.close(ledger, ledger.get("r00006"), "needs_human", "nobody knows", {})
    clock.advance(40)
    with store.turn() as ledger:
        for number in range(10, 14):
            one_remediation(ledger, number)
    before = {table: store.rows(table) for table in TABLES}
    planned = store.ask(ledger_prune, check=True, **options)
    assert {table: store.rows(table) for table in TABLES} == before
    answer = store.ask(ledger_prune, **options)
    assert {**planned, "head": ""} == {**answer, "head": ""}
    assert (answer["changed"], answer["remediations"], len(store.rows("remediations"))) == (True, 7, 4)
    assert (answer["entries"], answer["pruned_through"]) == (len(before["journal"]) - len(store.rows("journal")) + 1,) * 2
    assert store.rows("switches") == before["switches"]
    assert findings(store, answer["head"]) == []
    assert store.ask(ledger_verify)["pruned_through"] == answer["pruned_through"]
    again = store.ask(ledger_prune, **options)
    assert (again["changed"], again["entries"], again["head"]) == (False, 0, answer["head"])
    # A head from before proves nothing any more, unless it is of what was kept.
    seq, digest = before["journal"][-1][0], before["journal"][-1][6]
    assert findings(store, f"{seq}:{digest}") == []
    assert [one.fault for one in findings(store, f"3:{digest}")] == ["unproven"]
    # Nothing can be taken away behind the checkpoint, nor it.
    for statement in ("DELETE FROM journal WHERE kind = 'pruned'", f"DELETE FROM journal WHERE seq = {answer['pruned_through'] + 1}", "DELETE FROM switches"):
        held = {table: store.rows(table) for table in TABLES}
        store.sql(statement)
        assert findings(store), statement
        for table, rows in held.items():
            store.fill(table, rows)
    # It goes on, and once more.
    clock.advance(40)
    with store.turn() as ledger:
        one_remediation(ledger, 20)
    answer = store.ask(ledger_prune, **options)
    assert (answer["remediations"], findings(store, answer["head"])) == (4, [])
    assert store.ask(ledger_verify)["remediations"] == 1


def test_pruning_stops_before_what_is_open_or_goes_on(file: File, clock: Clock, tmp_path: Path) -> None:
    options: Facts = {"policy": str(written_policy(tmp_path)), "keep": "30d"}
    clock.advance(40)
    first = int(file.sql("SELECT min(seq) FROM journal WHERE remediation = 'r00006'")[0][0])
    with file.turn() as ledger:
        ledger.append("recurred", "r00005", by="r00009")  # of which something was written just now
    fifth = int(file.sql("SELECT min(seq) FROM journal WHERE remediation = 'r00005'")[0][0])
    assert fifth < first
    answer = file.ask(ledger_prune, **options)
    assert (answer["pruned_through"], answer["remediations"]) == (fifth - 1, 5)
    assert (file.ask(ledger_prune, **options)["entries"], findings(file)) == (0, [])


@pytest.mark.parametrize(
    ("sections", "keep", "least"),
    [
        ({}, "47h", "2 d"),
        ({"limits": {"window": "5d"}}, "4d", "5 d"),
        ({"limits": {"cooldown": "3d"}}, "2d", "3 d"),
        ({"rules": [{**ANYTHING["rules"][0], "cooldown": "9d"}]}, "8d", "9 d"),
        ({"breaker": {"failures": 3, "window": "4d"}}, "3d", "4 d"),
    ],
)
def test_pruning_keeps_what_the_gate_looks_back_at(file: File, tmp_path: Path, sections: Facts, keep: str, least: str) -> None:
    answer = file.ask(ledger_prune, policy=str(written_policy(tmp_path, **sections)), keep=keep)
    assert (answer["error"]["code"], f"the gate looks back {least}" in answer["msg"]) == ("refused", True), answer


def test_pruning_leaves_alone_what_was_tampered_with(file: File, tmp_path: Path) -> None:
    edit(file)
    answer = file.ask(ledger_prune, policy=str(written_policy(tmp_path)), keep="30d")
    assert answer["msg"].startswith("will not prune the ledger: it is not as it was written: entry 5")


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 12)), max_size=12), st.integers(0, 40))
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_the_last_to_forget_cuts_nothing_in_two_and_is_the_last_that_does_not(lengths: list[tuple[int, int]], limit: int) -> None:
    spans = [(first, first + more) for first, more in lengths]
    whole = [place for place in range(limit + 1) if not any(first <= place < last for first, last in spans)]
    assert _audit.last_to_forget(spans, limit) == max(whole)


def test_the_playbook_tells_the_head_and_proves_one_that_was_seen(tmp_path: Path) -> None:
    controller = Controller(tmp_path)
    with contextlib.closing(File(controller.ledger)) as file:
        write_history(file)
        seen = head(file)
        run = controller.play("homelab.healer.ledger_verify", "--check")
        assert (run.returncode, seen in " ".join(run.output.split()), "SOUND: " in run.output) == (0, True, True), run.output
        edit_all(file)
        assert findings(file) == []
        run = controller.play("homelab.healer.ledger_verify", head=seen)
        assert (run.returncode, "it, or one before it, was changed and hashed anew" in " ".join(run.output.split())) == (2, True), run.output
