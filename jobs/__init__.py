"""Drivers: one thin file per job, and the `g2is` command."""
