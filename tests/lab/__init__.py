"""A homelab in a box, of real parts. Nothing in the collection imports it."""
