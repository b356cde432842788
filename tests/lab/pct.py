"""The lab's ``pct``: what Proxmox VE's own does with real containers, in its words. The folder of the lab is the first argument.

It imports nothing of the lab and is started afresh by each use, so it has to be small.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t

Facts = dict[str, t.Any]


def fail(words: str) -> t.NoReturn:
    """End as a Perl program that dies."""
    sys.stderr.write(f"{words}\n")
    sys.exit(255)


def find(facts: Facts, vmid: str) -> Facts:
    """A container of this node."""
    if not (vmid.isdigit() and int(vmid) >= 100):
        sys.stderr.write("400 Parameter verification failed.\nvmid: invalid format - value does not look like a valid VM ID\n\n")
        sys.exit(255)
    guest: Facts = facts["guests"].get(vmid, {})
    if guest.get("node") != facts["here"]:
        fail(f"Configuration file 'nodes/{facts['here']}/lxc/{vmid}.conf' does not exist")
    return guest


def lxc(folder: str, guest: Facts, program: str, *arguments: str) -> list[str]:
    return [program, "-P", f"{folder}/lxc", "-n", guest["name"], *arguments]


def running(folder: str, guest: Facts) -> bool:
    told = subprocess.run(lxc(folder, guest, "lxc-info", "-p", "-H"), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return told.stdout.strip().isdigit()


def enter(folder: str, facts: Facts, words: list[str]) -> t.NoReturn:
    """Become a command in a container; a frozen one keeps it waiting."""
    vmid, rest = words[0], words[1:]
    keep = True
    while rest and rest[0].startswith("-"):
        option, _, value = rest.pop(0).partition("=")
        if option == "--":
            break
        if option.lstrip("-") != "keep-env":
            fail(f"Unknown option: {option.lstrip('-')}\n400 unable to parse option\npct exec <vmid> [<extra-args>] [OPTIONS]")
        keep = (value or rest.pop(0)) == "1"
    guest = find(facts, vmid)
    if not rest:
        fail("missing command")
    if not running(folder, guest):
        fail(f"container '{vmid}' not running!")
    with open(f"{folder}/execs.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps(sys.argv[2:]) + "\n")
    command = lxc(folder, guest, "lxc-attach", "--keep-env" if keep else "--clear-env", "--", *rest)
    os.execvp(command[0], command)


def main() -> None:
    folder, words = sys.argv[1], sys.argv[2:]
    with open(f"{folder}/facts.json", encoding="utf-8") as file:
        facts: Facts = json.load(file)
    verb = words[0] if words else ""
    if verb == "list":
        lines = [
            f"{vmid:<10} {'running' if running(folder, guest) else 'stopped':<10} {'':<12} {guest['hostname']:<20}"
            for vmid, guest in sorted(facts["guests"].items())
            if guest["node"] == facts["here"]
        ]
        if lines:
            print("\n".join([f"{'VMID':<10} {'Status':<10} {'Lock':<12} {'Name':<20}", *lines]))
        return
    if verb not in {"exec", "status", "config"}:
        fail(f"ERROR: unknown command 'pct {verb}'")
    if len(words) < 2:
        fail(f"400 not enough arguments\npct {verb} <vmid> [OPTIONS]")
    if verb == "exec":
        enter(folder, facts, words[1:])
    guest = find(facts, words[1])
    if verb == "status":
        print(f"status: {'running' if running(folder, guest) else 'stopped'}")
        return
    limits = guest["limits"]
    values = {"hostname": guest["hostname"], "memory": limits["memory"], "swap": limits["swap"], "cores": limits["cores"], "cpulimit": limits["cpulimit"]}
    print("\n".join(f"{name}: {value}" for name, value in sorted(values.items()) if value or name in {"memory", "swap"}))


main()
