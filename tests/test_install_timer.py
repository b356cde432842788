"""The units that run ``heal`` and ``recover``, as systemd reads them, and what is left when they are taken away."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import stat
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from ansible_collections.homelab.healer.plugins.filter.systemd import environment_lines, unit_line, unit_words
from tests.lab.playbooks import ROOT, Controller, Run
from tests.lab.postgres import Postgres, bloat, prepared

INSTALL = "homelab.healer.install_timer"
UNITS = ("homelab-healer-heal.service", "homelab-healer-heal.timer", "homelab-healer-recover.service", "homelab-healer-recover.timer")
SECRET = "hunter2 \"$HOME\" `id` \\n 100% 'x'"
ODD = 'a "folder" with 50%n of it; \\ and so on'
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(not ANALYZE, reason="needs systemd-analyze: apt-get install systemd")


class Installed:
    """A root of its own for the units, with an inventory whose path needs quoting."""

    def __init__(self, folder: Path) -> None:
        self.controller = Controller(folder)
        self.units, self.secrets = folder / "units", folder / "etc/healer/environment"
        self.units.mkdir()
        self.secrets.parent.parent.mkdir()
        self.inventory = folder / ODD
        self.inventory.mkdir()
        shutil.copy(folder / "inventory.yml", self.inventory / "hosts.yml")
        self.variables: dict[str, t.Any] = {
            "install_timer_units_dir": str(self.units),
            "install_timer_environment_file": str(self.secrets),
            "install_timer_inventory": [str(self.inventory)],
            "install_timer_project": str(ROOT),
            "install_timer_user": getpass.getuser(),
        }

    def play(self, *arguments: str, **variables: t.Any) -> Run:
        return self.controller.play(INSTALL, *arguments, **{**self.variables, **variables})

    def files(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.units.iterdir()}

    def setting(self, unit: str, name: str) -> str:
        """The one value of a setting, as it stands in the file."""
        (value,) = [line.partition("=")[2] for line in self.files()[unit].splitlines() if line.startswith(f"{name}=")]
        return value

    def command(self, unit: str) -> list[str]:
        """The words that systemd makes of ExecStart: percent signs are doubled, and the colon keeps dollars as they are."""
        line = self.setting(unit, "ExecStart")
        assert line.startswith(":")
        return [word.replace("%%", "%") for word in shlex.split(line[1:])]


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    return Installed(tmp_path)


def changes(run: Run) -> list[str]:
    return [event["task"] for event in run.events if event["result"].get("changed")]


def said(run: Run) -> str:
    return " ".join(run.output.split())


def test_installed_twice_removed_twice_and_foretold_each_time(installed: Installed) -> None:
    secrets = {"install_timer_environment": {"PGPASSWORD": SECRET, "PROXMOX_TOKEN_SECRET": "two\nlines"}}
    planned = installed.play("--check", "--diff", **secrets)
    assert planned.returncode == 0, planned.output
    assert (installed.files(), installed.secrets.parent.exists()) == ({}, False)
    assert "+ExecStart=:" in planned.output
    run = installed.play("--diff", **secrets)
    assert run.returncode == 0, run.output
    assert set(installed.files()) == set(UNITS)
    assert changes(run) == changes(planned) != []
    for words in ("SHADOW MODE: what would be done is recorded, and nothing is changed", "NOT enabled and NOT started, since systemd"):
        assert words in said(run)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (installed.secrets, installed.secrets.parent)] == [0o600, 0o700]
    for arguments in (("--check", "--diff"), ()):
        again = installed.play(*arguments, **secrets)
        assert (again.returncode, changes(again)) == (0, []), again.output

    before = installed.files()
    gone = installed.play("--check", install_timer_state="absent")
    assert installed.files() == before
    run = installed.play(install_timer_state="absent")
    assert (run.returncode, installed.files(), changes(run)) == (0, {}, changes(gone)), run.output
    assert "Left as they are: the secrets in" in said(run)
    assert installed.secrets.exists()
    run = installed.play(install_timer_state="absent")
    assert (run.returncode, changes(run)) == (0, []), run.output
    assert "Removed: nothing was there" in said(run)


@pytest.mark.parametrize("live", [False, True])
def test_only_what_is_told_to_heal_does(installed: Installed, live: bool) -> None:
    run = installed.play(install_timer_live=live, install_timer_arguments=["--limit", "a:&b"])
    assert run.returncode == 0, run.output
    assert ("LIVE: what policy allows is changed" in said(run), "SHADOW MODE" in said(run)) == (live, not live)
    program = str(Path(sys.executable).parent / "ansible-playbook")
    for unit, playbook in (("homelab-healer-heal.service", "heal"), ("homelab-healer-recover.service", "recover")):
        shadow = [] if live else ["--extra-vars", "remediate_shadow=true"]
        wanted = [program, f"homelab.healer.{playbook}", "--inventory", str(installed.inventory), *shadow, "--limit", "a:&b"]
        assert installed.command(unit) == wanted
        assert ("(live)" in installed.setting(unit, "Description")) == live


@needs_systemd
@pytest.mark.parametrize("become", [False, True])
def test_systemd_finds_nothing_wrong_with_the_units(installed: Installed, become: bool) -> None:
    assert installed.play(install_timer_become=become, install_timer_ssh_auth_sock="/run/user/0/agent 1").returncode == 0
    command = [str(ANALYZE), "verify", "--man=no", *(str(installed.units / unit) for unit in UNITS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    about = [line for line in done.stderr.splitlines() if "homelab-healer" in line or str(installed.units) in line]
    assert (done.returncode, about) == (0, []), done.stderr
    assert ("NoNewPrivileges" in installed.files()["homelab-healer-heal.service"]) != become
    assert installed.setting("homelab-healer-heal.service", "PrivateTmp") == "no"  # the inventory lies in /tmp
    broken = installed.units / UNITS[0]
    broken.write_text(broken.read_text().replace("KillSignal=SIGCONT", "KillSignal=SIGNONE"))
    assert "SIGNONE" in subprocess.run(command, capture_output=True, text=True, check=False).stderr  # it does look


def test_what_the_service_runs_is_the_playbook(embedded_postgres: Postgres, tmp_path: Path) -> None:
    """The line as systemd would start it, with what it would set and nothing else of this environment."""
    pg = prepared(embedded_postgres)
    pg.role("healer", grants=["pg_monitor", "pg_signal_backend", "pg_maintain"])
    bloat(pg)
    installed = Installed(tmp_path)
    hosts = yaml.safe_load((tmp_path / "inventory.yml").read_text())
    hosts["postgresql"] = {"hosts": {"db": {"healer_postgresql": {**pg.options(), "login_password": "{{ lookup('ansible.builtin.env', 'PGPASSWORD') }}"}}}}
    (installed.inventory / "hosts.yml").write_text(yaml.safe_dump(hosts))
    run = installed.play(install_timer_environment={"PGPASSWORD": pg.options()["login_password"]})
    assert run.returncode == 0, run.output
    unit = "homelab-healer-heal.service"
    values = [*shlex.split(installed.setting(unit, "Environment").replace("%%", "%")), *shlex.split(installed.secrets.read_text())]
    environment = {"HOME": str(tmp_path), **dict(value.split("=", 1) for value in values)}
    done = subprocess.run(
        installed.command(unit), cwd=installed.setting(unit, "WorkingDirectory"), env=environment, capture_output=True, text=True, check=False
    )
    for line in ("HEALTHY: pg_blocker: db: ", "PLANNED: pg_bloat: public.events in prod: in shadow mode nothing is done"):
        assert line in " ".join(done.stdout.split()), done.stdout + done.stderr
    ((dead,),) = pg.sql("SELECT pg_stat_get_dead_tuples('public.events'::regclass)", database="prod")
    assert int(dead) > 0, "shadow mode changes nothing"


def test_secrets_are_what_a_shell_reads_and_nobody_sees_them(installed: Installed) -> None:
    run = installed.play("--diff", "-vvv", install_timer_environment={"ONE": SECRET, "TWO": "a\nb\\"})
    assert run.returncode == 0, run.output
    read = ["sh", "-c", '. "$0"; printf "%s|%s" "$ONE" "$TWO"', str(installed.secrets)]
    assert subprocess.run(read, capture_output=True, text=True, check=True).stdout == f"{SECRET}|a\nb\\"
    assert "hunter2" not in run.output
    assert not [event for event in run.events if "hunter2" in str(event)]
    assert not any("hunter2" in text for text in installed.files().values())


def test_a_file_with_secrets_that_was_there_is_kept_and_shut(installed: Installed) -> None:
    installed.secrets.parent.mkdir(mode=0o755)
    installed.secrets.write_text("PGPASSWORD=mine\n")
    installed.secrets.chmod(0o644)
    planned, run = installed.play("--check"), installed.play()
    assert changes(run) == changes(planned)
    assert (installed.secrets.read_text(), stat.S_IMODE(installed.secrets.stat().st_mode)) == ("PGPASSWORD=mine\n", 0o600)
    assert stat.S_IMODE(installed.secrets.parent.stat().st_mode) == 0o755
    assert changes(installed.play()) == []


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"install_timer_inventory": ["/nowhere/hosts.yml"]}, "name what is not there: /nowhere/hosts.yml"),
        ({"install_timer_inventory": ["hosts.yml"]}, "absolute paths (one inventory at least)"),
        ({"install_timer_inventory": []}, "absolute paths (one inventory at least)"),
        ({"install_timer_project": "/nowhere"}, "name what is not there: /nowhere"),
        ({"install_timer_ansible_playbook": "/nowhere/ansible-playbook"}, "name what is not there: /nowhere/ansible-playbook"),
        ({"install_timer_user": "nobody-of-that-name"}, "there is no user nobody-of-that-name here"),
        ({"install_timer_user": "root\nExecStartPre=/bin/true"}, "cannot write units"),
        ({"install_timer_environment_file": "/etc/*"}, "without wildcards"),
        ({"install_timer_arguments": ["-e", "a=1\nExecStartPre=/bin/true"]}, "it has a control character"),
        ({"install_timer_environment": {"A B": "x"}}, "censored"),
        ({"install_timer_state": "gone"}, "value of install_timer_state must be one of"),
        pytest.param({"install_timer_interval": "every now and then"}, "systemd cannot read calendar every now and then", marks=needs_systemd),
        pytest.param({"install_timer_stop_limit": "15 apples"}, "systemd cannot read timespan 15 apples", marks=needs_systemd),
    ],
)
def test_what_no_unit_can_be_made_of_is_refused(installed: Installed, variables: dict[str, t.Any], words: str) -> None:
    run = installed.play(**variables)
    assert run.returncode == 2, run.output
    assert words in said(run), run.output
    assert "homelab-healer-heal.service" not in installed.files() or "censored" in words


def test_words_for_unit_files() -> None:
    assert unit_words(["/a b/c", '50% "x" \\y $z']) == '"/a b/c" "50%% \\"x\\" \\\\y $z"'
    assert unit_line("/a b/100%") == "/a b/100%%"
    assert environment_lines({"B": 1, "A": 'x"$y'}) == 'A="x\\"\\$y"\nB="1"\n'
    with pytest.raises(AnsibleFilterError):
        unit_line("a\nb")
    with pytest.raises(AnsibleFilterError):
        environment_lines({"1A": "x"})


def test_the_folder_of_temporary_files_is_its_own_where_nothing_lies_in_it(installed: Installed) -> None:
    installed.play(install_timer_inventory=["/etc/hosts"], install_timer_project="", install_timer_ansible_playbook=os.path.realpath("/bin/true"))
    unit = "homelab-healer-heal.service"
    assert [installed.setting(unit, name) for name in ("PrivateTmp", "WorkingDirectory", "User")] == ["yes", "~", getpass.getuser()]
