"""Volumes: names that storages give them, and what becomes of one that is taken out of a configuration."""

from __future__ import annotations

import re

from tests.lab.proxmox.config import VOLUME, Config, Values, parse_size, print_size, read_volume
from tests.lab.proxmox.errors import die
from tests.lab.proxmox.model import World

_NEW_DISK = re.compile(r"([a-zA-Z][a-zA-Z0-9\-_.]*[a-zA-Z0-9]):(\d+(?:\.\d+)?)")


def wants_new_disk(value: str) -> str | None:
    """The storage on which a value like ``local-lvm:8`` wants a new volume."""
    match = _NEW_DISK.fullmatch(read_volume("", value).name)
    return match[1] if match else None


def allocate(world: World, vmid: int, key: str, value: str) -> str:
    """The value with a volume where it asked for a new one."""
    volume = read_volume(key, value)
    match = _NEW_DISK.fullmatch(volume.name)
    if not match:
        return value
    storage = world.storages.get(match[1])
    if storage is None:
        raise die(f"storage '{match[1]}' does not exist")
    if not {"rootdir", "images"} & set(storage.content.split(",")):
        raise die(f"storage '{storage.name}' does not support container directories")
    gib = float(match[2])
    plain = gib == 0
    name = _volume_name(storage.type, vmid, _free_number(world, storage.name, vmid), plain=plain)
    size = "0T" if plain else print_size(int(parse_size(f"{match[2]}G")))
    options = {key: text for key, text in volume.options.items() if key != "size"} | {"size": size}
    return ",".join([f"{storage.name}:{name}", *(f"{key}={options[key]}" for key in sorted(options))])


def _volume_name(kind: str, vmid: int, number: int, *, plain: bool) -> str:
    if kind == "zfspool":
        return f"subvol-{vmid}-disk-{number}"
    if kind in {"lvmthin", "lvm", "rbd"}:
        return f"vm-{vmid}-disk-{number}"
    return f"{vmid}/subvol-{vmid}-disk-{number}.subvol" if plain else f"{vmid}/vm-{vmid}-disk-{number}.raw"


def _free_number(world: World, storage: str, vmid: int) -> int:
    guest = world.guests.get(vmid)
    config = guest.config if guest else Config()
    texts = [*config.current.values(), *(value for values in config.snapshots.values() for value in values.values())]
    used = {int(match[1]) for text in texts if text.startswith(f"{storage}:") and (match := re.search(r"-disk-(\d+)", text))}
    return next(number for number in range(1000) if number not in used)


def take_out(config: Config, key: str) -> None:
    """Remove a key; a volume that nothing else mentions stays as ``unusedN``."""
    value = config.current.pop(key, None)
    config.deleted = [name for name in config.deleted if name != key]
    if value and VOLUME.fullmatch(key):
        keep_unused(config.current, read_volume(key, value).name)


def keep_unused(values: Values, volume: str) -> None:
    """A bind mount just vanishes; a volume is kept."""
    if volume.startswith("/") or any(value.partition(",")[0] == volume for value in values.values()):
        return
    number = next(number for number in range(256) if f"unused{number}" not in values)
    values[f"unused{number}"] = volume
