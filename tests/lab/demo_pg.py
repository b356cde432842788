"""The mission's second story: a table in PostgreSQL is bloated, on a real server."""

from __future__ import annotations

import contextlib
import time
import typing as t
from pathlib import Path

from ansible_collections.homelab.healer.plugins.modules import pg_bloat_info
from tests.lab.modules import read
from tests.lab.playbooks import Controller, Run
from tests.lab.postgres import Postgres, bloat
from tests.lab.telling import Story, expect, paint

PROD = {"database": "prod", "table": "events"}


class PostgresStory(Story):
    """The story on a server."""

    def __init__(self, server: Postgres, controller: Controller) -> None:
        super().__init__()
        self.server, self.controller = server, controller

    def tables(self) -> None:
        """Show what of each table is dead."""
        print("   table            live rows   dead rows    dead   without rows, estimated      size")
        for facts in read(pg_bloat_info, **self.server.options(), login_db="prod")["tables"]:
            share = paint(f"{100 * facts['dead_ratio']:5.1f} %", "bad" if facts["dead_ratio"] >= 0.1 else "good")
            print(
                f"   {facts['name']:<15} {facts['live_tuples']:10d} {facts['dead_tuples']:11d} {share} {100 * facts['bloat_ratio']:23.1f} %"
                f" {facts['size'] >> 20:6d} MiB"
            )
        self.took()

    def counted(self) -> None:
        """Wait until the server has counted what was done to its tables."""
        with contextlib.closing(self.server.connect("prod")) as client, client.cursor() as cursor:
            cursor.execute("SELECT pg_stat_force_next_flush()")
        while not self.server.sql("SELECT 1 FROM pg_stat_user_tables WHERE n_dead_tup > 10000", database="prod"):
            time.sleep(0.1)

    def play(self, playbook: str, *arguments: str, **variables: t.Any) -> Run:
        """Run a playbook, showing the command that anybody can type."""
        given = [word for name, value in variables.items() for word in ("-e", f"{name}={value}")]
        self.command("ansible-playbook", f"homelab.healer.{playbook}", *given, *arguments)
        return self.controller.play(f"homelab.healer.{playbook}", *arguments, remediate_pause=0, **variables)

    def heal(self, playbook: str, **variables: t.Any) -> None:
        """Run one that heals, and show how it ended."""
        run = self.play(playbook, **variables)
        expect(run.record["outcome"] == "healed", run)
        self.outcome(run)


def tell(server: Postgres, folder: Path) -> None:
    """The whole story. Raises ``LabError`` where it does not end as it should."""
    server.role("app")
    server.role("healer", grants=["pg_monitor", "pg_signal_backend", "app"])
    server.database("prod", owner="app")
    bloat(server)
    story = PostgresStory(server, Controller(folder, postgresql=server.options()))

    story.chapter("What is wrong: 40 % of the rows of events in prod are dead")
    story.tables()

    story.chapter("The plan: what would be done, and nothing is")
    run = story.play("heal_pg_bloat", "--check", "--diff", **PROD)
    expect(run.record["outcome"] == "planned", run)
    story.plan(run)

    story.chapter("The vacuum, and the same measured again")
    run = story.play("heal_pg_bloat", **PROD)
    expect(run.record["outcome"] == "healed", run)
    (result,) = run.record["results"][0]["results"]
    print(f"   removed: {result['removed']} dead rows")
    story.outcome(run)
    story.tables()

    story.chapter("A report was forgotten in its transaction: its snapshot keeps dead rows alive, and a vacuum that helps nothing is no success")
    with contextlib.closing(server.connect("prod", "app", application_name="report")) as client:
        client.set_session(isolation_level="REPEATABLE READ", autocommit=False)
        with client.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM events")
        server.sql("DELETE FROM events WHERE mod(id, 3) = 0", database="prod")
        story.counted()
        run = story.play("heal_pg_bloat", **PROD)
        expect(run.record["outcome"] == "needs_human" and "idle in transaction" in run.record["why"], run)
        print(f"   {run.record['why']}")
        print(f"   outcome: {paint(run.record['outcome'], 'bad')}")
        story.took()

        story.chapter("What the application left open is ended, exactly the sessions that were listed; a human says so, and the table can be healed")
        story.heal("clear_connections", database="prod", user="app")
        run = story.play("heal_pg_bloat", **PROD)
        expect(run.record["outcome"] == "denied", run)
        print(f"   {run.record['why']}")
        target = run.record["target"]
        run = story.play("resume", target=f"db/{target['kind']}/{target['id']}")
        expect(run.returncode == 0, run)
        story.heal("heal_pg_bloat", **PROD)
        story.tables()

        story.chapter("The room is there for new rows; a rewrite gives it back, after proof that the disk has room for the new table")
        run = story.play("heal_pg_bloat", **PROD, full=True, pg_bloat_min_bloat="1MiB")
        expect(run.record["outcome"] == "healed", run)
        (result,) = run.record["results"][0]["results"]
        print(f"   freed: {result['freed'] >> 20} MiB")
        story.outcome(run)
        story.tables()
