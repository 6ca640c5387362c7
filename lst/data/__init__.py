"""From tables of text and speech tokens to packed batches of ids, units and masks.

Here: the reading side (shards, stream, interleave, pack, statistics, ...), which is numpy and Arrow and never torch, and the
command `prepare-data` (prepare). Below:

    sources/    the formats that people have, as records
    preparing/  records to shards: blocks, parts, splits, overlap, checks of files
    audio/      waveforms to speech tokens; transcripts and word times
    quality/    statistics and checks for people, and their page
    vocoders/   speech tokens to waveforms
    corpus/     how the embedded corpus was made; embedded/ is the corpus itself
"""
