"""From tables of text and speech tokens to packed batches of ids, units and masks. Numpy and Arrow; never torch."""
