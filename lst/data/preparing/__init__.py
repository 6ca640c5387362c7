"""`prepare-data`: reading inputs in blocks, joining them to a data set, and checking one."""
