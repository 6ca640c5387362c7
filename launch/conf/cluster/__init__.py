"""Clusters by name: `cluster=NAME` reads NAME.yaml (fields: launch/cluster.py)."""
