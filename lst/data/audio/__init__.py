"""From audio to speech tokens and word times: decoding, encoders, quantizers, alignments, transcripts."""
