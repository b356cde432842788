# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How a module reaches Proxmox VE, and which containers it means."""

    DOCUMENTATION = r"""
requirements:
  - proxmoxer 2.2.0 or newer, where the module runs
  - requests, where the module runs
options:
  api_host:
    description:
      - The name or address of a node of the cluster.
      - If not given, the environment variable E(PROXMOX_HOST) is used.
    type: str
    required: true
  api_port:
    description:
      - The port of its API.
      - If not given, the environment variable E(PROXMOX_PORT) is used.
    type: int
    default: 8006
  api_user:
    description:
      - The user with its realm, such as V(healer@pve).
      - If not given, the environment variable E(PROXMOX_USER) is used.
    type: str
    required: true
  api_password:
    description:
      - The user's password. One of this and O(api_token_id) is needed.
      - If not given, the environment variable E(PROXMOX_PASSWORD) is used.
    type: str
  api_token_id:
    description:
      - The token's id, V(healer) or V(healer@pve!healer). It has at least two characters. Needs O(api_token_secret).
      - If not given, the environment variable E(PROXMOX_TOKEN_ID) is used.
    type: str
  api_token_secret:
    description:
      - The token's secret. Needs O(api_token_id).
      - If not given, the environment variable E(PROXMOX_TOKEN_SECRET) is used.
    type: str
  validate_certs:
    description:
      - Whether the node must show a certificate for O(api_host), signed by an authority that is trusted here.
      - If not given, the environment variable E(PROXMOX_VALIDATE_CERTS) is used.
    type: bool
    default: true
  ca_path:
    description:
      - The certificate of the authority that signed the node's. A cluster's own is F(/etc/pve/pve-root-ca.pem) on each of its nodes.
      - If not given, the environment variable E(PROXMOX_CA_PATH), or else the system's authorities are used.
    type: path
  api_timeout:
    description:
      - How many seconds one answer may take. A node may wait 10 seconds for a lock before it answers, so give it at least 30.
      - If not given, the environment variable E(PROXMOX_API_TIMEOUT) is used.
    type: int
    default: 60
"""

    WAIT = r"""
options:
  wait_lock:
    description:
      - How many seconds to wait for a container that is locked, as by a backup or a snapshot.
      - A lock that a failed task left behind is never taken away by this collection; the error says what to do.
    type: float
    default: 30
"""
