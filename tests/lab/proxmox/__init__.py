"""A Proxmox VE that is simulated: ``python -m tests.lab.proxmox`` serves it, ``tests.lab.proxmox.client.proxmox`` does so for a test.

It answers from rules, not from stored answers: who may do what, which parameters are wrong, what a lock, a digest or a storage allows, what a
change does to the kernel at once and what waits for a start, and how far the cluster's view lags. Time is simulated: ``--speed`` makes it run
faster than the real one, and the control port moves it forward. Nothing is stored per second; usage follows from the workload.

The modules: ``clock`` (time), ``access`` (rights), ``schema`` (parameters), ``config`` (the file of a container), ``usage`` (workload and series),
``model`` (the cluster), ``tasks`` (workers), ``calls`` (a request's way through the rules), ``cluster``, ``lxc``, ``hotplug``, ``storing``, ``power``,
``snapshots``, ``backups``, ``workers`` and ``accounts`` (what is answered), ``faults``, ``server`` (HTTP), ``control`` and ``client`` (for tests),
``state`` and ``fixtures`` (to begin from), ``replay`` (compares it with a recording of a real server).

The state that ``--state FILE`` holds, ``proxmox(state)`` and ``reset(state)`` take. Everything is optional but the nodes; sizes of memory are MiB,
of disks and storages GiB, times are seconds:

    {"cluster": NAME or null,
     "resolver": what the resolver says of a node that is not there,
     "nodes": {NAME: {"memory", "used" (by the host itself), "arc", "swap", "cpus", "cpu" (fraction), "disk", "online", "uptime", "ip"}},
         the first one is the node that answers
     "storages": {NAME: {"type" (btrfs, zfspool, lvmthin and rbd can take snapshots), "content", "nodes" or null, "shared", "active", "total",
         "used", "contents": [{"volid", "content", "format", "size", "vmid", "ctime" or "age"}], "delay" (longer snapshots),
         "fail": {"snapshot" | "rollback" | "delete": words}}},
     "templates": {VOLID: WORKLOAD of the containers made from it}, "default_workload": WORKLOAD,
     "guests": {VMID: {"kind": "lxc" | "qemu", "node", "status": "running" | "stopped", "uptime", "age", "config": {KEY: VALUE}, "pending",
         "delete": [KEY], "snapshots": {NAME: {"age" or "snaptime", "description", "parent", "snapstate", KEY: VALUE}}, "template", "lock",
         "raw": [[KEY, VALUE]], "workload": WORKLOAD, "kernel": {"cores", "cpulimit", "cpuunits", "memory", "swap"} where it differs,
         "ha": {"state"}, "pool", "oom_kills", "foreign_snapshots": {VOLUME: [NAME]} (taken by others)}},
     "users": {USER@REALM: {"password", "groups", "enable", "expire"}}, "groups": {NAME: COMMENT},
     "tokens": {USER@REALM!ID: {"secret", "privsep"}}, "roles": {NAME: [PRIVILEGE]}, "pools": {NAME: [VMID or STORAGE]},
     "acl": [{"path", "role", "user" or "group" or "token", "propagate"}],
     "lingering": {VMID: what the cluster still shows of a guest that was removed}}

A WORKLOAD is ``{"memory" (MiB wanted), "growth" (MiB per minute), "main" (MiB without which the main process dies), "cpu" (CPUs wanted), "disk"
(MiB), "start", "shutdown", "ignores_term", "fails_to_start", "netin", "netout", "diskread", "diskwrite" (bytes per second)}``: see ``usage``.
"""
