"""Configuration files of `plan-sweep` (package data): a file a study in `study/`."""
