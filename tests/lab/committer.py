"""A client that counts: it commits one row after the other over one connection, and writes down each that the server said it committed.

``python -m tests.lab.committer SOCKET LOG`` goes on until it is told to end. It ends with 1 as soon as its connection is lost.
"""

from __future__ import annotations

import signal
import sys
import time

import psycopg2

PAUSE = 0.005
"""Seconds from one commit to the next, so that others get a turn."""


def main() -> None:
    folder, log = sys.argv[1:]
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    client = psycopg2.connect(host=folder, user="postgres", dbname="postgres", application_name="committer")
    number = 0
    try:
        with client.cursor() as cursor, open(log, "w", encoding="utf-8") as written:
            cursor.execute("CREATE TABLE IF NOT EXISTS committed (run integer, number integer)")
            client.commit()
            written.write(f"{client.info.backend_pid}\n")
            while not ended:
                number += 1
                cursor.execute("INSERT INTO committed VALUES (pg_backend_pid(), %s)", (number,))
                client.commit()
                written.write(f"{number}\n")
                written.flush()
                time.sleep(PAUSE)
    except psycopg2.Error as error:
        sys.exit(f"lost after {number - 1} commits: {error}")


if __name__ == "__main__":
    main()
