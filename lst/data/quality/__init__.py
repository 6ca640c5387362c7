"""What a prepared data set holds and whether it looks sound: `prepare-data statistics` and `prepare-data report`."""
