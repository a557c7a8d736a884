"""Rewards of other published methods, on the spine of this one; see docs/rivals.md."""
