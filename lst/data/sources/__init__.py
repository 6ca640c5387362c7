"""Readers of the formats that people have, each a `lst.data.sources.base.Source`."""
