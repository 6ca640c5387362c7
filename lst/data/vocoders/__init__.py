"""From speech tokens back to audio: the vocoder that ships, and unit vocoders from local folders."""
