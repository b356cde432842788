"""Secrets in every option that takes one, and in labels: none of them comes out anywhere, whatever becomes of the run and however much it tells."""

from __future__ import annotations

import base64
import http.server
import json
import threading
import typing as t
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

from tests.lab.engine import BURN, OwnEngine
from tests.lab.playbooks import Controller, Run
from tests.lab.postgres import Postgres, bloat, prepared
from tests.lab.proxmox.client import Proxmox
from tests.lab.telegram import CHAT, TOKEN, USER, Bot, bot

LABEL = "planted-in-a-label-4711"
NAME, WORD, PLACE = "planted-user-4711", "planted-password-4711", "planted-path-4711"
QUICK: dict[str, t.Any] = {
    **{"docker_runaway_cpus": 0.05, "docker_runaway_sample": 1},
    **{"lxc_memory_size": 4096, "lxc_memory_sample": 0.2, "lxc_memory_pause": 0, "lxc_memory_looks": 3, "lxc_memory_needed": 2, "lxc_memory_level": 60},
    **{"remediate_pause": 0, "heal_remedies": ["docker_runaway", "lxc_memory", "pg_bloat"]},
}


class Listener(http.server.BaseHTTPRequestHandler):
    """Takes the messages that are sent to people."""

    heard: t.ClassVar[list[str]] = []

    def do_POST(self) -> None:
        assert self.headers["Authorization"] == "Basic " + base64.b64encode(f"{NAME}:{WORD}".encode()).decode()
        assert self.path == f"/{PLACE}"
        self.heard.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_words: t.Any) -> None:
        """Be quiet."""


class Watch:
    """Looks at all command lines of this machine, as anybody on it may."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    self.seen.add((process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
                except OSError:
                    continue  # it has ended


class Planted:
    """The lab with a secret in everything that takes one."""

    def __init__(self, folder: Path, engine: OwnEngine, pve: Proxmox, pg: Postgres, server: Bot) -> None:
        self.folder, self.server, self.nonces = folder, server, set[str]()
        self.controller = Controller(folder / "play", engine.tls_host, pve.options_for("healer@pve!healer"), pg.options(), **_docker(engine.tls))
        self.ledger = pg.options("keeper", login_db="ledger")
        telegram = {"token": TOKEN, "chats": [CHAT], "users": [USER], "api_url": server.url, "timeout": 5}
        self.controller.inventory(**QUICK, healer_ledger=self.ledger, healer_approval={"telegram": telegram})
        self.controller.policy(
            rules=[
                {"name": "ask about containers", "match": {"kind": ["lxc"]}, "decision": "approve"},
                {"name": "vacuum", "match": {"remedy": ["pg_bloat"]}, "decision": "auto"},
                {"name": "the rest", "match": {}, "decision": "auto", "max_growth": 100000, "max_shrink": 100},
            ],
            approval={"wait": "60s", "channels": ["telegram"]},
        )
        key = [line for line in Path(engine.tls["client_key"]).read_text().splitlines() if "-----" not in line]
        self._secrets = [LABEL, NAME, WORD, PLACE, TOKEN, TOKEN.partition(":")[2], *key]
        self._secrets += [pve.tokens["healer@pve!healer"], pg.options()["login_password"], self.ledger["login_password"]]
        self.watch = Watch()
        self._told: list[str] = []

    @property
    def secrets(self) -> set[str]:
        plain = {*self._secrets, *self.nonces}
        coded = {base64.b64encode(f"{NAME}:{WORD}".encode()).decode(), *(quote(secret, safe="") for secret in plain)}
        return plain | coded

    def play(self, playbook: str, *arguments: str, **variables: t.Any) -> Run:
        """Run it as loud as it can be, and approve what it asks."""
        over = threading.Event()
        answers = threading.Thread(target=self._approve, args=(over,), daemon=True)
        answers.start()
        run = self.controller.play(playbook, "-vvv", "--diff", *arguments, **variables)
        over.set()
        answers.join()
        self._told += [run.output, *((run.folder / name).read_text() for name in ("results.jsonl", "stats.json"))]
        return run

    def _approve(self, over: threading.Event) -> None:
        while not over.wait(0.05):
            for message in self.server.messages():
                if message.buttons and message.id not in {call.params.get("message_id") for call in self.server.calls("editMessageText")}:
                    nonce = message.buttons[0][0]["callback_data"].partition(":")[2]
                    if nonce not in self.nonces:
                        self.nonces.add(nonce)
                        self.server.press(message.id, "Approve", USER)

    def outcomes(self) -> set[str]:
        passed_on = json.loads((self.controller.folder / "stats.json").read_text())
        return {f"{record['remedy'].rpartition('.')[2]}: {record['outcome']}" for record in passed_on["remediations"]}

    def told(self, pg: Postgres) -> dict[str, str]:
        """All that anybody can see afterwards, by where it is."""
        tables = ("journal", "remediations", "switches", "notes")
        rows = {f"table {name}": repr(pg.sql(f"SELECT * FROM healer.{name}", database="ledger")) for name in tables}
        assert "lxc_resources" in rows["table remediations"]
        shown = {f"message {message.id}": message.text for message in self.server.messages()}
        files = {str(path): path.read_bytes().decode("latin-1") for path in self.folder.rglob("*") if path.is_file() and path.name != "inventory.yml"}
        runs = {f"run {number}": told for number, told in enumerate(self._told)}
        return {**rows, **shown, **files, **runs, "heard": "".join(Listener.heard), "processes": "\n".join(self.watch.seen)}


def _docker(tls: t.Mapping[str, str]) -> dict[str, t.Any]:
    return {"healer_docker_tls": True, **{f"healer_docker_{name}": path for name, path in tls.items()}}


@pytest.fixture
def planted(
    own_docker: OwnEngine, pve: Proxmox, embedded_postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> t.Iterator[tuple[Planted, OwnEngine, Proxmox, Postgres]]:
    pg = prepared(embedded_postgres)
    pg.role("healer", grants=["pg_monitor", "pg_signal_backend", "pg_maintain"])
    pg.role("keeper")
    pg.database("ledger", owner="keeper")
    for name in ("play", "home", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    Listener.heard.clear()
    with bot() as server, http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        lab = Planted(tmp_path, own_docker, pve, pg, server)
        lab.controller.inventory(healer_notify=[f"json://{NAME}:{WORD}@127.0.0.1:{listener.server_port}/{PLACE}"])
        with lab.watch:
            yield lab, own_docker, pve, pg
        listener.shutdown()


def test_no_secret_comes_out_anywhere(planted: tuple[Planted, OwnEngine, Proxmox, Postgres], whole: bool) -> None:
    lab, docker, pve, pg = planted
    docker.run("burner", f"({BURN}) & {BURN}", labels={"com.example.token": LABEL, "traefik.http.middlewares.web.basicauth.users": LABEL})
    run = lab.play("homelab.healer.lxc_resources", vmid=201, cores=2)
    assert (lab.outcomes(), len(lab.nonces), len(Listener.heard)) == ({"lxc_resources: healed"}, 1, 1), run.output
    run = lab.play("homelab.healer.docker_limits", container="burner", memory="64m")
    assert (lab.outcomes(), len(Listener.heard)) == ({"docker_limits: healed"}, 2), run.output
    if whole:
        _more(lab, pve, pg)
    _break(lab, pg)
    run = lab.play("homelab.healer.heal")
    assert run.returncode == 2
    for words in ("password authentication failed", "docker", "cannot send to address 0 (json)", "address 1 (nothing)"):
        assert words in run.output, (words, run.output)
    lab.controller.inventory(healer_ledger={**lab.ledger, "login_password": WORD})
    run = lab.play("homelab.healer.pause")
    assert (run.returncode, "password authentication failed" in run.output) == (2, True), run.output
    lab.controller.inventory(healer_ledger=lab.ledger)
    page = lab.folder / "report.html"
    run = lab.play("homelab.healer.report", report_path=str(page), report_metrics_path=str(lab.folder / "healer.prom"))
    assert (run.returncode, page.exists()) == (0, True), run.output
    seen = lab.told(pg)
    assert any("ansible" in line for line in lab.watch.seen)
    for secret in lab.secrets:
        assert [where for where, told in seen.items() if secret in told] == [], secret


def _more(lab: Planted, pve: Proxmox, pg: Postgres) -> None:
    """The whole inventory, healed and healthy, and what is put back."""
    bloat(pg)
    ill = ("docker_runaway", "lxc_memory", "pg_bloat")
    for outcome in ("healed", "healthy"):
        run = lab.play("homelab.healer.heal")
        assert lab.outcomes() == {f"{remedy}: {outcome}" for remedy in ill}, run.output
    pve.fault("PUT", "/lxc/201/config", "error", status=500, reason="it is broken")
    run = lab.play("homelab.healer.lxc_resources", vmid=201, cores=1)
    assert lab.outcomes() <= {"lxc_resources: rolled_back", "lxc_resources: needs_human"}, run.output
    pve.clear_faults()
    lab.play("homelab.healer.recover")


def _break(lab: Planted, pg: Postgres) -> None:
    """Make everything fail that takes a secret, since failures tell most."""
    key = lab.folder / "home/key.pem"
    key.write_text("-----BEGIN PRIVATE KEY-----\nplanted\n-----END PRIVATE KEY-----\n")
    path = lab.controller.folder / "inventory.yml"
    inventory = yaml.safe_load(path.read_text())
    inventory["docker"]["hosts"]["lab"]["healer_docker_client_key"] = str(key)
    inventory["postgresql"]["hosts"]["db"]["healer_postgresql"] = pg.options(login_password=WORD)
    inventory["proxmox"]["hosts"]["pve"]["healer_proxmox"]["api_token_secret"] = WORD
    path.write_text(yaml.safe_dump(inventory))
    lab.controller.inventory(healer_notify=[f"json://{NAME}:{WORD}@127.0.0.1:9/{PLACE}", f"nothing://{NAME}:{WORD}@{PLACE}"])
    lab.server.down()
