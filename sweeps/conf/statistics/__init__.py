"""Stated sequence statistics that come with the package; `data=NAME` of a study plans from them."""
