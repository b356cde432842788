# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Where the ledger is, and what is true of every module that uses it."""

    DOCUMENTATION = r"""
options:
  ledger:
    description:
      - Where the ledger is. Without O(ledger.login_db) it is a file of SQLite, with it a database of PostgreSQL that several controllers share, in its
        schema C(healer).
      - If not given, the inventory's variable C(healer_ledger) is used.
    type: dict
    default: {}
    suboptions:
      path:
        description: The file, mode 0600, V(~/.local/state/homelab.healer/ledger.db) by default. Mutually exclusive with O(ledger.login_db).
        type: path
      login_db:
        description: The database. Its role needs C(CREATE) on it the first time, and nothing but the tables that it made from then on.
        type: str
        aliases: [database]
      login_host:
        description: The server's name or address. Without it and O(ledger.login_unix_socket), the local socket.
        type: str
        aliases: [host]
      login_port:
        description: The server's port, also for a socket.
        type: int
        default: 5432
        aliases: [port]
      login_unix_socket:
        description: The folder of the server's socket.
        type: path
        aliases: [unix_socket]
      login_user:
        description: The role to log in as.
        type: str
        default: postgres
        aliases: [login]
      login_password:
        description: Its password.
        type: str
      ssl_mode:
        description: How far the server must prove who it is, in libpq's words. A socket needs no such proof.
        type: str
        choices: [disable, allow, prefer, require, verify-ca, verify-full]
        default: verify-full
      ca_cert:
        description: The certificate of the authority that signed the server's.
        type: path
        aliases: [ssl_rootcert]
      ssl_cert:
        description: The client's certificate. Needs O(ledger.ssl_key).
        type: path
      ssl_key:
        description: The client's private key. Needs O(ledger.ssl_cert).
        type: path
      connect_timeout:
        description: How many seconds a connection may take to come about.
        type: int
        default: 10
attributes:
  check_mode:
    details: The ledger is only read. What would be written down is answered as if it had been.
  action:
    description: Indicates this has a corresponding action plugin so some parts of the options can be executed on the controller.
    support: full
    details:
      - Adds the inventory's C(healer_ledger), C(healer_policy), C(healer_approval) and C(healer_notify), and refuses these and the chain's own variables
        from extra variables (C(-e)).
      - Where the task's host is the controller, the module's code runs in the controller's process.
notes:
  - PostgreSQL needs the Python package psycopg2, 2.9 or newer, where the module runs.
"""

    POLICY = r"""
options:
  policy:
    description:
      - The policy, a YAML file on the ledger's host, V(~/.config/homelab.healer/policy.yml) by default. Where there is none, the built-in policy holds.
      - If not given, the inventory's variable C(healer_policy) is used.
    type: path
"""
