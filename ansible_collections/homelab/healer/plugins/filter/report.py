# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report: what ``remediation_info`` tells as a page, as lines, and as metrics for Prometheus.

Names come from containers and databases, and whoever may name one may try to write into the page: every value is escaped, in a template of its own
environment, and what would turn or hide the text around it is shown as what it is.
"""

from __future__ import annotations

import json
import math
import re
import typing as t
import unicodedata
from pathlib import Path

import jinja2
from markupsafe import Markup

from ansible_collections.homelab.healer.plugins.module_utils._sizes import moment, span

Facts = t.Mapping[str, t.Any]
CLIP = 4000
"""Characters of a single value that the page shows."""
LABELS = {
    "healed": "healed",
    "recurred": "came back within a day",
    "rolled_back": "put back",
    "needs_human": "needed a human",
    "denied": "denied",
    "shadow": "only planned (shadow)",
    "healthy": "nothing was wrong",
    "open": "under way",
}
"""What the page calls each outcome."""
ENDINGS = {
    "healed_alone": "healed, and no human was asked",
    "healed_approved": "healed, after a human approved it",
    "recurred": "healed, but the same came back within a day",
    "rolled_back": "put back as it was",
    "needs_human": "could not be healed, so a human was called",
    "not_approved": "a human said no, or nobody answered",
    "refused": "refused by the gate",
}
LEFT_OUT = {
    "joined": "refused as another one of the same target was under way, which is counted",
    "shadow": "shadow mode, in which nothing is done",
    "healthy": "nothing was wrong after all",
    "open": "still under way",
}
PARTS = {
    "repair": "the whole, where it was healed",
    "noticing": "from the alert to the run that answers it",
    "diagnosing": "diagnosing, before the gate",
    "planning": "planning, and the gate",
    "waiting": "waiting for a human",
    "changing": "changing",
    "verifying": "verifying",
    "putting_back": "putting back",
}
WORDS = {"allowed": "allowed", "ask": "a human has to approve", "refused": "refused", "shadow": "only planned (shadow)"}


def report_page(info: Facts, template: str, tables: t.Sequence[Facts] = ()) -> str:
    """The page of what ``remediation_info`` answered with V(details) and V(figures); ``template`` is the path of its template.

    ``tables`` are shown as they are, each with C(title), C(columns) and C(rows), which are lists of text.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    environment.filters.update(moment=moment, took=took, sides=sides, stamp=stamp, day=day, short=short)
    plain = json.loads(json.dumps(info))
    figures = plain["figures"]
    seconds = sorted(figures["seconds"], key=lambda part: list(PARTS).index(part["part"]))
    longest = max((part["p90"] or 0 for part in seconds), default=0) or 1
    page = environment.from_string(Path(template).read_text(encoding="utf-8"))
    return page.render(
        figures,
        remediations=plain["remediations"],
        left=plain["found"] - len(plain["remediations"]),
        found=plain["found"],
        head=plain["head"],
        lanes=lanes(figures["days"]),
        marks=[dict(at=f"{place:.2f}", anchor=anchor, when=when) for place, anchor, when in axis(figures["days"])],
        parts=[dict(part, width=f"{100 * (part['median'] or 0) / longest:.2f}", reach=f"{100 * (part['p90'] or 0) / longest:.2f}") for part in seconds],
        percent=percent,
        labels=LABELS,
        endings=ENDINGS,
        left_out=LEFT_OUT,
        part_names=PARTS,
        words=WORDS,
        tables=json.loads(json.dumps(list(tables))),
    )


def percent(numerator: int, denominator: int) -> str:
    """A share as people write it, never rounded up to all nor down to none."""
    if not denominator:
        return "none"
    share = 100 * numerator / denominator
    return f"{min(99, max(1, round(share))) if 0 < share < 100 else round(share)} %"


def took(seconds: float | None) -> str:
    """How long something took."""
    if seconds is None:
        return "none"
    return f"{seconds:.1f} s" if seconds < 10 else span(round(seconds))


def stamp(seconds: float) -> str:
    """A moment for machines."""
    return moment(seconds).replace(" UTC", "Z").replace(" ", "T")


def day(seconds: float) -> str:
    return moment(seconds)[:10]


def short(text: str, most: int = 120) -> str:
    """The beginning of a long text."""
    return text if len(text) <= most else f"{text[: most - 2]} …"


def sides(diff: Facts) -> list[tuple[str, str]]:
    """The lines of a diff, each with its sign."""
    before, after = (str(diff[side]).splitlines() for side in ("before", "after"))
    told = [("-", line) for line in before if line not in after] + [("+", line) for line in after if line not in before]
    return told[:200]


def lanes(days: t.Sequence[Facts]) -> list[dict[str, t.Any]]:
    """A lane of the timeline for each outcome that there is: where its marks are, in per cent of the width, and how large, in pixels."""
    most = max((number for one in days for number in one["outcomes"].values()), default=1)
    found = []
    for outcome in LABELS:
        marks = []
        for place, one in enumerate(days):
            number = one["outcomes"].get(outcome, 0)
            if number:
                size = round(7 + 7 * math.sqrt(number / most), 1) if most > 1 else 9
                marks.append(dict(x=f"{100 * (place + 0.5) / len(days):.2f}", size=size, back=-size / 2, top=11 - size / 2, count=number, when=_days(one)))
        if marks:
            found.append(dict(outcome=outcome, count=sum(mark["count"] for mark in marks), marks=marks))
    return found


def _days(one: Facts) -> str:
    last = one["end"] - 86400
    return day(one["start"]) + (f" to {day(last)}" if last > one["start"] else "")


def axis(days: t.Sequence[Facts]) -> list[tuple[float, str, str]]:
    """The days that stand below the timeline: the first, the middle and the last."""
    middle = len(days) // 2
    places = [(0.0, "start", 0)] + ([(100 * (middle + 0.5) / len(days), "middle", middle)] if len(days) > 6 else [])
    return [(place, anchor, day(days[which]["start"])) for place, anchor, which in [*places, *([(100.0, "end", len(days) - 1)] if len(days) > 1 else [])]]


def _shown(value: t.Any) -> t.Any:
    """A value as the page shows it: no character of it moves or hides what stands beside it, and it has an end."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    text = "".join(
        letter if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co") else f"\\u{ord(letter):04x}" for letter in value[:CLIP]
    )
    return f"{text} … ({len(value) - CLIP} characters more)" if len(value) > CLIP else text


def figure_lines(figures: Facts) -> list[str]:
    """The figures as lines to read, what needs a human first."""
    share, again = figures["share"], figures["recurred"]
    told = [f"NEEDS A HUMAN: {need['what']}: {need['why']}. {need['fix']}" for need in figures["waiting"]] or ["Nothing needs a human now."]
    whole = next(part for part in figures["seconds"] if part["part"] == "repair")
    return [
        *told,
        f"Healed without a human: {share['numerator']} of {share['denominator']} that were wrong and have ended",
        f"Came back within a day: {again['count']} of {again['of']} healed; {again['pending']} younger than a day may still",
        f"Time to repair: half within {took(whole['median'])}, nine of ten within {took(whole['p90'])} ({whole['count']} healed)",
    ]


def report_metrics(info: Facts) -> str:
    """Metrics in Prometheus' text format, of what ``remediation_info`` answered with V(totals)."""
    told = info["totals"]
    number, _colon, _hash = str(info["head"]).partition(":")
    lines: list[str] = []

    def metric(name: str, kind: str, text: str, samples: t.Sequence[tuple[str, Facts, t.Any]]) -> None:
        if samples:
            lines.extend([f"# HELP {PREFIX}{name} {text}", f"# TYPE {PREFIX}{name} {kind}"])
            lines.extend(f"{PREFIX}{name}{suffix}{_braces(labels)} {_number(value)}" for suffix, labels, value in samples)

    def gauge(name: str, text: str, value: t.Any) -> None:
        metric(name, "gauge", text, [("", {}, value)] if value is not None else [])

    def by_remedy(name: str, text: str, rows: t.Sequence[t.Sequence[t.Any]]) -> None:
        metric(name, "counter", text, [("", {"remedy": remedy}, value) for remedy, value in rows])

    ended = [("", {"remedy": remedy, "outcome": outcome}, value) for remedy, outcome, value in told["ended"]]
    metric("remediations_total", "counter", "Remediations that ended, by remedy and how. What recurred later is still healed here.", ended)
    by_remedy("remediations_recurred_total", "Successes whose trouble came back within 24 hours.", told["recurred"])
    by_remedy("remediations_unattended_total", "Successes for which no human was asked, also where they recurred later.", told["alone"])
    by_remedy("remediations_joined_total", "Denied, as another one of the same target was under way.", told["joined"])
    metric("alerts_unanswered_total", "counter", "Alerts that no remedy answered.", [("", {}, told["alerts"])])
    metric(
        "time_to_repair_seconds",
        "histogram",
        "How long each part of a remediation took; part repair is the whole of a success.",
        [sample for part in told["seconds"] for sample in _histogram(part)],
    )
    metric("remediations_open", "gauge", "Remediations under way, by state.", [("", {"state": state}, value) for state, value in told["open"].items()])
    gauge("remediations_interrupted", "Remediations that a run left in the middle.", told["interrupted"])
    gauge("questions_open", "Questions that wait for a human.", told["questions"])
    gauge("targets_frozen", "Targets that are left alone until a human says otherwise.", told["frozen"])
    gauge("paused", "Whether all new work is paused.", told["paused"])
    gauge("storm", "Whether too many targets are in trouble at once.", told["storm"])
    gauge("clock_behind_seconds", "By how much the ledger's clock is behind its last entry.", told["behind"])
    gauge("last_success_timestamp_seconds", "When the last remediation succeeded.", told["last_success"])
    gauge("last_remediation_timestamp_seconds", "When the last remediation began.", told["last"])
    gauge("ledger_entries", "Number of the ledger's last entry.", int(number))
    metric("ledger_head_info", "gauge", "The ledger's last entry, by which ledger_verify proves all before it.", [("", {"head": info["head"]}, 1)])
    return "\n".join(lines) + "\n"


PREFIX = "homelab_healer_"


def _histogram(part: Facts) -> list[tuple[str, Facts, t.Any]]:
    whose = {"part": part["part"]}
    buckets = [("_bucket", {**whose, "le": str(float(bound))}, count) for bound, count in part["buckets"]]
    return [*buckets, ("_bucket", {**whose, "le": "+Inf"}, part["count"]), ("_sum", whose, part["sum"]), ("_count", whose, part["count"])]


def _braces(labels: Facts) -> str:
    told = ",".join(f'{name}="{_label(str(value))}"' for name, value in labels.items())
    return f"{{{told}}}" if told else ""


def _label(value: str) -> str:
    return re.sub(r'[\\"]', r"\\\g<0>", value).replace("\n", "\\n").replace("\r", "\\\\r")


def _number(value: t.Any) -> str:
    return repr(float(value)) if isinstance(value, float) else str(int(value))


class FilterModule:
    """The collection's filters."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"report_metrics": report_metrics, "report_page": report_page, "figure_lines": figure_lines}
