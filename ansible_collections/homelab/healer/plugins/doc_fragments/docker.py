# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How a module reaches a Docker Engine, and which containers it means."""

    DOCUMENTATION = r"""
requirements:
  - docker (Python SDK) 7.0.0 or newer, where the module runs
options:
  docker_host:
    description:
      - The engine's address, V(unix:///path/to/docker.sock), V(tcp://host:2376) or V(ssh://user@host).
      - If not given, the environment variable E(DOCKER_HOST) is used.
    type: str
    default: unix:///var/run/docker.sock
  tls:
    description:
      - Whether to speak TLS.
      - If neither this nor the environment variable E(DOCKER_TLS) is given, addresses that begin with V(tcp://) or V(https://) are spoken to
        with TLS, others without. Set it to V(false) for an engine that listens in the clear, which gives anyone in the network root on its host.
    type: bool
  validate_certs:
    description: Whether the engine must show a certificate for its own name, signed by an authority that is trusted here.
    type: bool
    default: true
  ca_path:
    description:
      - The certificate of the authority that signed the engine's.
      - If not given, V(ca.pem) in the folder that the environment variable E(DOCKER_CERT_PATH) names, or else the system's authorities.
    type: path
    aliases: [tls_ca_cert, cacert_path]
  client_cert:
    description:
      - The client's certificate. Needs O(client_key).
      - If not given, V(cert.pem) in the folder that the environment variable E(DOCKER_CERT_PATH) names.
    type: path
    aliases: [tls_client_cert, cert_path]
  client_key:
    description:
      - The client's private key. Needs O(client_cert).
      - If not given, V(key.pem) in the folder that the environment variable E(DOCKER_CERT_PATH) names.
    type: path
    aliases: [tls_client_key, key_path]
  timeout:
    description:
      - How many seconds one answer of the engine may take.
      - If not given, the environment variable E(DOCKER_TIMEOUT) is used.
    type: int
    default: 60
  containers:
    description:
      - The containers, each by its name or by at least 12 characters of its id.
      - Mutually exclusive with O(labels).
    type: list
    elements: str
    aliases: [container, name]
  labels:
    description:
      - Labels as V(key) or V(key=value); the containers that have all of them are meant, stopped ones included.
      - Mutually exclusive with O(containers).
    type: list
    elements: str
"""
