# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How a module reaches PostgreSQL."""

    DOCUMENTATION = r"""
requirements:
  - psycopg2 2.9 or newer, where the module runs
  - PostgreSQL 13 or newer
options:
  login_host:
    description:
      - The server's name or address. Without it and O(login_unix_socket), the local socket.
      - It must be the server itself, not a pooler such as PgBouncer.
      - If not given, the environment variable E(PGHOST) is used.
    type: str
    aliases: [host]
  login_port:
    description:
      - The server's port, also for a socket.
      - If not given, the environment variable E(PGPORT) is used.
    type: int
    default: 5432
    aliases: [port]
  login_unix_socket:
    description: The folder of the server's socket. Mutually exclusive with O(login_host).
    type: path
    aliases: [unix_socket]
  login_user:
    description:
      - The role to log in as.
      - If not given, the environment variable E(PGUSER) is used.
    type: str
    default: postgres
    aliases: [login]
  login_password:
    description:
      - Its password.
      - If not given, the environment variable E(PGPASSWORD), or else libpq's password file is used.
    type: str
  ssl_mode:
    description:
      - How far the server must prove who it is, in libpq's words. A socket needs no such proof.
      - Only V(verify-full) proves that it is the server named by O(login_host); V(disable), V(allow) and V(prefer) may send all in the clear.
      - If not given, the environment variable E(PGSSLMODE) is used.
    type: str
    choices: [disable, allow, prefer, require, verify-ca, verify-full]
    default: verify-full
  ca_cert:
    description:
      - The certificate of the authority that signed the server's.
      - If not given, the environment variable E(PGSSLROOTCERT), the file F(~/.postgresql/root.crt), or else the system's authorities are used.
    type: path
    aliases: [ssl_rootcert]
  ssl_cert:
    description: The client's certificate. Needs O(ssl_key).
    type: path
  ssl_key:
    description: The client's private key. Needs O(ssl_cert).
    type: path
  connect_timeout:
    description:
      - How many seconds a connection may take to come about.
      - If not given, the environment variable E(PGCONNECT_TIMEOUT) is used.
    type: int
    default: 10
"""
