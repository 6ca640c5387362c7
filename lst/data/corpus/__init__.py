"""Making the embedded corpus: its texts, voices, tokens and card."""
