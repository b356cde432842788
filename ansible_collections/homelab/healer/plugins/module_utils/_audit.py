# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a ledger is as it was written: what was edited, deleted, moved, inserted, cut off or hashed anew is found and named. And what may be forgotten.

The journal proves itself by its hashes, and the other tables follow from it. Who can write all of it can hash all of it anew; that is found by a head, the
number and hash of the last entry, which was seen before.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import json
import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.homelab.healer.plugins.module_utils._errors import Conflict
from ansible_collections.homelab.healer.plugins.module_utils._ledger import COLUMNS, GENESIS, OPEN, Event, Ledger, Remediation, canonical, project

Row = t.Sequence[t.Any]
Since = t.Tuple[t.Any, t.Any]
Switches = t.Dict[str, Since]
"""What is set, by name: since when, and the value as it is written down."""
Head = t.Tuple[int, str]
BATCH = 500
"""Entries of the journal that are read at once."""
REMEDIATIONS = 100
"""Remediations that are compared at once."""
MOST = 100
"""Findings that are told one by one; of the rest only the number is."""
ATTEMPTS = 5
"""How often it is begun anew since somebody pruned meanwhile."""
ENTRY = "seq, at, remediation, kind, body, prev"
HIDDEN = ("nonce",)
"""Columns whose values are told to nobody."""
UNREADABLE = (ValueError, KeyError, TypeError)
"""What comes of an entry that somebody edited, where it is read."""
KEYS = {"journal": "seq", "remediations": "id", "switches": "name", "notes": "name"}


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was written.

    ``table`` is where, ``fault`` edited, missing, inserted, moved, rehashed, cut or unproven, ``seq`` the entry's number (0 where it is about none).
    ``column``, ``stored`` and ``expected`` are for a row that does not follow from the journal.
    """

    table: str
    fault: str
    what: str
    seq: int = 0
    remediation: str = ""
    column: str = ""
    stored: str = ""
    expected: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """What the entry of a pruning says of those that are gone: the number and hash of the last, and what was set then. The default is a journal of all."""

    through: int = 0
    hash: str = GENESIS
    switches: t.Mapping[str, Since] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What came of a look at all of it. ``found`` is how many findings there are, of which the first are in ``findings``; ``head`` is the last entry."""

    findings: t.Sequence[Finding]
    found: int
    entries: int
    remediations: int
    head: str
    through: int


class Findings:
    """The first of them, and how many there are."""

    def __init__(self) -> None:
        self.first: list[Finding] = []
        self.number = 0

    def add(self, *found: Finding) -> None:
        self.number += len(found)
        self.first += found[: MOST - len(self.first)]


def parse_head(text: str) -> Head:
    """Read a head, ``number:hash``. Raises ``ValueError``."""
    number, _colon, digest = text.strip().partition(":")
    if not (number.isdecimal() and len(digest) == len(GENESIS) and set(digest) <= set("0123456789abcdef")):
        raise ValueError("a head is a number, a colon and 64 hexadecimal digits, as results and messages have it")
    return int(number), digest


def _shown(value: t.Any) -> str:
    """A value that somebody may have put there, in plain characters."""
    return value if isinstance(value, str) and value.isprintable() else ascii(value)


def _event(row: Row) -> Event | None:
    """The entry, if its columns hold what they are for: a file of SQLite holds whatever is put there."""
    seq, at, *texts = row[:6]
    good = isinstance(seq, int) and isinstance(at, float) and all(isinstance(text, str) for text in texts)
    return Event(*row[:6]) if good else None


def set_by(event: Event, switches: Switches) -> None:
    """Note what an entry switches. Raises ``UNREADABLE``."""
    facts = event.facts
    if facts["value"] is None:
        switches.pop(facts["name"], None)
    else:
        switches[facts["name"]] = (event.at, canonical(facts["value"]))


class Chain:
    """The journal's entries, taken one after the other, and what is wrong with them. ``seen`` is a head seen earlier."""

    def __init__(self, checkpoint: Checkpoint, seen: Head | None) -> None:
        self.checkpoint, self.seen = checkpoint, seen
        self.entries = 0
        self.found = Findings()
        self.switches: Switches = dict(checkpoint.switches)
        self._last: Head = (checkpoint.through, checkpoint.hash)
        self._doubtful = False
        """Whether the last entry is known to be edited."""
        self._strange: list[tuple[Event, str]] = []
        self._places: list[int] = []
        """Numbers of which entries are missing."""
        self._was = checkpoint.hash if seen and seen[0] == checkpoint.through else ""
        """The hash that the entry has of which a head was seen."""

    @property
    def head(self) -> str:
        return f"{self._last[0]}:{_shown(self._last[1])}"

    def take(self, row: Row) -> None:
        """Look at the next entry, in the order of their numbers."""
        self.entries += 1
        seq, stored = row[0], row[6]
        if not isinstance(seq, int) or seq <= self._last[0]:
            whose = f" of remediation {_shown(row[2])}" if row[2] else ""
            self._find("inserted", f"there is an entry{whose} with the number {_shown(seq)}, which none has", remediation=_shown(row[2]))
            return
        event = _event(row)
        follows = self._follows(seq, row[5])
        good = event is not None and event.hash == stored
        if event is None:
            self._find("edited", f"entry {seq} holds what no entry does", seq, _shown(row[2]))
        elif not good and len(self._strange) < MOST:
            self._strange.append((event, stored))
        elif not good:
            self.found.number += 1
        elif not follows:
            self._find_rehashed(event)
        if event is not None and event.kind == "switch":
            self._switch(event)
        if self.seen and self.seen[0] == seq:
            self._was = stored
        self._last, self._doubtful = (seq, stored), not good

    def _follows(self, seq: int, prev: t.Any) -> bool:
        """Whether an entry names the one before it, as far as that can be said."""
        before, digest = self._last
        if seq > before + 1:
            which = f"entry {before + 1} is" if seq == before + 2 else f"entries {before + 1} to {seq - 1} are"
            self._find("missing", f"{which} missing", before + 1)
            self._places += range(before + 1, min(seq, before + 1 + MOST))
            return True
        return bool(self._doubtful or prev == digest)

    def _find_rehashed(self, event: Event) -> None:
        """The hash that an entry has of the one before is not the one before's, and neither was edited without hashing it anew."""
        before = event.seq - 1
        if before == self.checkpoint.through:
            self._find(
                "rehashed", f"entry {event.seq} was put in the place of the one that was written after {before or 'nothing'}", event.seq, event.remediation
            )
        else:
            self._find("rehashed", f"entry {before} is not the one after which {event.seq} was written: one of the two was changed, and hashed anew", before)

    def _switch(self, event: Event) -> None:
        try:
            set_by(event, self.switches)
        except UNREADABLE:
            self._find("edited", f"entry {event.seq} switches nothing that can be read", event.seq)

    def _find(self, fault: str, what: str, seq: int = 0, remediation: str = "") -> None:
        self.found.add(Finding("journal", fault, what, seq, remediation))

    def end(self, noted: str) -> None:
        """There are no more. ``noted`` is the head that the ledger remembers, empty where there is none."""
        places = [*self._places[:MOST], *(event.seq for event, _stored in self._strange[:MOST])]
        for event, stored in self._strange:
            self._find(*_strange(event, stored, places))
        self._compare_noted(noted)
        if self.seen:
            self._compare_seen(*self.seen)

    def _compare_noted(self, noted: str) -> None:
        number, digest = self._last
        try:
            last = parse_head(noted) if noted else (0, GENESIS)
            if noted and noted != f"{last[0]}:{last[1]}":
                raise ValueError("it is written otherwise")
        except ValueError:
            self.found.add(Finding("notes", "edited", "what the ledger remembers of its last entry cannot be read"))
            return
        if last[0] > number:
            self._find("cut", f"entries {number + 1} to {last[0]} are missing at the end", number + 1)
        elif last[0] < number:
            self._find("inserted", f"the ledger remembers {last[0]} as its last entry; those from {last[0] + 1} to {number} are not its own", last[0] + 1)
        elif last[1] != digest and not self._doubtful:
            self._find("rehashed", f"entry {number}, the last, is not the one that the ledger remembers", number)

    def _compare_seen(self, number: int, digest: str) -> None:
        if number > self._last[0]:
            self._find(
                "cut", f"entries {self._last[0] + 1} to {number} are missing at the end: {number} was the last when the head was seen", self._last[0] + 1
            )
        elif number < self.checkpoint.through:
            through = self.checkpoint.through
            self._find("unproven", f"the entries up to {through} were pruned since the head was seen, so it proves nothing: take one seen since", number)
        elif self._was and self._was != digest:
            self._find(
                "rehashed", f"entry {number} is not the one that it was when the head was seen: it, or one before it, was changed and hashed anew", number
            )
        elif not self._was:
            self._find("missing", f"entry {number}, of which the head was seen, is missing", number)


def _strange(event: Event, stored: str, places: t.Sequence[int]) -> tuple[str, str, int, str]:
    """What happened to an entry that is not what its hash says."""
    whose = f"{_shown(event.kind)} of remediation {_shown(event.remediation)}" if event.remediation else _shown(event.kind)
    was = next((place for place in places if replace(event, seq=place).hash == stored), None)
    if was is not None:
        return "moved", f"entry {event.seq} ({whose}) was written as {was}", event.seq, _shown(event.remediation)
    return "edited", f"entry {event.seq} ({whose}) is not what was written: it, or its hash, was edited", event.seq, _shown(event.remediation)


def follow(events: t.Iterable[Event]) -> Remediation | None:
    """What a remediation is after all its entries. Raises ``UNREADABLE``."""
    row: Remediation | None = None
    for event in events:
        if event.kind != "switch":
            row = project(row, event)
    return row


def differences(name: str, row: Remediation | None, events: t.Sequence[Event]) -> list[Finding]:
    """In what a row differs from what its entries say."""
    try:
        expected = follow(events)
    except UNREADABLE:
        what = f"the entries of remediation {name} do not say what it is: the first was deleted, or one was edited"
        return [Finding("remediations", "unproven", what, events[0].seq, name)]
    if expected is None:
        return [Finding("remediations", "inserted", f"the journal knows no remediation {name}", 0, name)] if row else []
    if row is None:
        return [Finding("remediations", "missing", f"remediation {name} is missing", events[0].seq, name)]
    if row == expected:
        return []
    pairs = [(column, getattr(row, column), getattr(expected, column)) for column in COLUMNS]
    return [_difference("remediations", name, column, stored, should) for column, stored, should in pairs if not _same(stored, should)]


def _same(one: t.Any, other: t.Any) -> bool:
    """Equal, and of one kind: a file of SQLite may hold text where a number should be."""
    numbers = isinstance(one, (int, float)) and isinstance(other, (int, float))
    return bool(one == other) and (numbers or type(one) is type(other))


def _difference(table: str, name: str, column: str, stored: t.Any, expected: t.Any) -> Finding:
    told = ("hidden", "hidden") if column in HIDDEN else (_shown(stored), _shown(expected))
    what = f"{column} of {'remediation' if table == 'remediations' else 'switch'} {name} is {told[0]}, and should be {told[1]}"
    return Finding(table, "edited", what, 0, name if table == "remediations" else "", column, *told)


def switched(rows: t.Iterable[Row], switches: Switches) -> list[Finding]:
    """In what the switches differ from what the journal says. ``rows`` are their name, time and value."""
    found: list[Finding] = []
    left = dict(switches)
    for name, at, value in rows:
        if name not in left:
            found.append(Finding("switches", "inserted", f"switch {_shown(name)} is set, and the journal does not say so"))
            continue
        for column, stored, expected in zip(("at", "value"), (at, value), left.pop(name)):
            if not _same(stored, expected):
                found.append(_difference("switches", _shown(name), column, stored, expected))
    return found + [Finding("switches", "missing", f"switch {_shown(name)} is not set, and the journal says that it is") for name in left]


def verify(ledger: Ledger, seen: Head | None) -> Report:
    """Look at all of it, in parts, so that nobody has to wait who writes."""
    for _attempt in range(ATTEMPTS):
        report = _verify(ledger, seen)
        if report is not None:
            return report
    raise Conflict("cannot verify the ledger", why="others are pruning it again and again", fix="Run this again when they have finished.")


def _verify(ledger: Ledger, seen: Head | None) -> Report | None:
    with ledger.turn(writing=False):
        checkpoint = checkpoint_of(ledger)
    chain = Chain(checkpoint, seen)
    last: tuple[t.Any, ...] = ()
    more = True
    while more:
        with ledger.turn(writing=False):
            after = " AND seq > ?" if last else ""
            rows = ledger.rows(f"SELECT {ENTRY}, hash FROM journal WHERE seq IS NOT NULL{after} ORDER BY seq LIMIT {BATCH}", *last)
            for row in rows:
                chain.take(row)
            last, more = (rows[-1][0],) if rows else (), len(rows) == BATCH
            if not more:
                if checkpoint_of(ledger) != checkpoint:
                    return None
                chain.end(ledger.note("head"))
                chain.found.add(*_without_key(ledger))
                chain.found.add(*switched(ledger.rows("SELECT name, at, value FROM switches WHERE name IS NOT NULL"), chain.switches))
    known = 0
    for number, differing in _remediations(ledger):
        known += number
        chain.found.add(*differing)
    with ledger.turn(writing=False):
        if checkpoint_of(ledger) != checkpoint:
            return None
    findings = sorted(chain.found.first, key=lambda finding: (list(KEYS).index(finding.table), finding.seq))
    return Report(findings, chain.found.number, chain.entries, known, chain.head, checkpoint.through)


def _without_key(ledger: Ledger) -> list[Finding]:
    """Rows that nothing can be asked for by, which only a file of SQLite can have."""
    counts = [(table, key, ledger.rows(f"SELECT count(*) FROM {table} WHERE {key} IS NULL")[0][0]) for table, key in KEYS.items()]
    return [Finding(table, "inserted", f"there are rows in {table} without {key}: {number}", column=key) for table, key, number in counts if number]


def _remediations(ledger: Ledger) -> t.Iterator[tuple[int, list[Finding]]]:
    """Compare the remediations with the journal, some at a time: how many rows there are, and in what they differ."""
    lower: tuple[t.Any, ...] = ()
    more = True
    while more:
        with ledger.turn(writing=False):
            after = " AND id > ?" if lower else ""
            rows = [
                Remediation(*row)
                for row in ledger.rows(f"SELECT {', '.join(COLUMNS)} FROM remediations WHERE id IS NOT NULL{after} ORDER BY id LIMIT {REMEDIATIONS}", *lower)
            ]
            more = len(rows) == REMEDIATIONS
            upper: tuple[t.Any, ...] = (rows[-1].id,) if more else ()
            between = f"remediation <> ''{' AND remediation > ?' if lower else ''}{' AND remediation <= ?' if upper else ''}"
            entries = ledger.rows(f"SELECT {ENTRY} FROM journal WHERE {between} ORDER BY remediation, seq", *lower, *upper)
            lower = upper
        events: dict[t.Any, list[Event]] = {row.id: [] for row in rows}
        for event in filter(None, map(_event, entries)):
            events.setdefault(event.remediation, []).append(event)
        known = {row.id: row for row in rows}
        yield len(rows), [finding for name, each in events.items() for finding in differences(_shown(name), known.get(name), each)]


def checkpoint_of(ledger: Ledger) -> Checkpoint:
    """What the last pruning says, where there was one."""
    for seq, body in ledger.rows("SELECT seq, body FROM journal WHERE kind = 'pruned' ORDER BY seq DESC"):
        try:
            facts = json.loads(body)
            switches = {name: (at, value) for name, at, value in facts["switches"]}
            if int(facts["through"]) < seq:
                return Checkpoint(int(facts["through"]), str(facts["hash"]), switches)
        except UNREADABLE:
            continue  # somebody edited it, which its hash tells
    return Checkpoint()


def last_to_forget(spans: t.Iterable[tuple[int, int]], limit: int) -> int:
    """The last entry, up to ``limit``, after which nothing of what ends before it is told; ``spans`` are the first and last entry of each remediation."""
    for first, last in sorted(spans, key=lambda span: -span[1]):
        if last <= limit:
            break
        limit = min(limit, first - 1)
    return limit


@dataclass(frozen=True)
class Pruned:
    """What a pruning removed, or would remove: so many entries and remediations, up to the entry ``through``. Nothing where ``entries`` is 0."""

    entries: int
    remediations: int
    through: int


def prune(ledger: Ledger, before: float) -> Pruned:
    """Forget the entries that are only about remediations of which nothing was written since ``before``. The journal goes on from a checkpoint.

    Belongs into a turn.
    """
    checkpoint = checkpoint_of(ledger)
    newer = ledger.rows("SELECT min(seq) FROM journal WHERE at >= ?", before)[0][0]
    limit = newer - 1 if newer is not None else int(ledger.head.partition(":")[0])
    spans = ledger.rows("SELECT remediation, min(seq), max(seq) FROM journal WHERE remediation <> '' GROUP BY remediation")
    still = {row.id for row in ledger.find(f"state IN ({', '.join(repr(state) for state in OPEN)})")}
    for remediation, first, _last in spans:
        if remediation in still:
            limit = min(limit, first - 1)
    through = last_to_forget([(first, last) for _remediation, first, last in spans], limit)
    entries = through - checkpoint.through
    if entries <= 0:
        return Pruned(0, 0, checkpoint.through)
    switches: Switches = dict(checkpoint.switches)
    for row in ledger.rows(f"SELECT {ENTRY} FROM journal WHERE kind = 'switch' AND seq <= ? ORDER BY seq", through):
        set_by(Event(*row), switches)
    ((digest,),) = ledger.rows("SELECT hash FROM journal WHERE seq = ?", through)
    gone = sum(last <= through for _remediation, _first, last in spans)
    told = dict(entries=entries, remediations=gone, before=before, switches=[[name, *value] for name, value in sorted(switches.items())])
    ledger.append("pruned", through=through, hash=digest, **told)
    ledger.forget(through)
    return Pruned(entries, gone, through)
