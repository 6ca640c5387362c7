"""Packaged configuration files of the launcher."""
