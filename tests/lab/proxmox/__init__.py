"""A Proxmox VE that is simulated."""

from __future__ import annotations
