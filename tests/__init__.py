"""Tests of the whole system, and the homelab that they run in."""
