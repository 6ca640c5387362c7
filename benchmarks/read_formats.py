"""How fast each format of speech tokens is read: documents and tokens a second on one core, from the same documents.

    python -m benchmarks.read_formats [--documents 2000] [--repeats 5]

Documents are of 500 to 1,000 tokens with a word each 8 tokens, as a minute of speech has. What is timed is a whole read of all
blocks, checks and all, in seconds of the processor; the best of the repeats counts, and formats take turns. `ratio` is tokens a
second against JSON lines.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from lst.data.sources.base import Record, Source
from tests.data.sources.written_formats import FORMATS, SPEECH_VOCAB


def documents(count: int) -> list[dict[str, object]]:
    generator = np.random.default_rng(0)
    found = []
    for number in range(count):
        runs = generator.integers(0, SPEECH_VOCAB, generator.integers(400, 800))
        tokens = np.repeat(runs, 1 + (generator.random(len(runs)) < 0.25)).tolist()
        words = [{"word": f"word{i % 97}", "start": i, "end": i + 5} for i in range(0, len(tokens) - 8, 8)]
        text = " ".join(w["word"] for w in words)
        record = {"id": f"s{number % 50}/b{number % 9}/d{number}", "speech_tokens": tokens, "text": text, "words": words}
        found.append(record | {"speaker": f"s{number % 50}", "book": f"b{number % 9}", "split": ""})
    return found


def read(source: Source) -> tuple[int, int]:
    """(documents, tokens) of a source; raises RuntimeError where one is refused."""
    kept = tokens = 0
    for block in source.blocks():
        for record in source.read(block):
            if not isinstance(record, Record):
                raise RuntimeError(str(record))
            kept += 1
            tokens += len(record.row["speech_tokens"])
    return kept, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    records = documents(options.documents)
    with tempfile.TemporaryDirectory() as given:
        sources, best, counts = {}, dict.fromkeys(FORMATS, float("inf")), {}
        for name, write in FORMATS.items():
            (Path(given) / name).mkdir()
            sources[name] = write(Path(given) / name, records)
        for _ in range(options.repeats):
            for name, source in sources.items():
                start = time.process_time()
                counts[name] = read(source)
                best[name] = min(best[name], time.process_time() - start)
    print(f"{'format':<12} {'documents/s':>12} {'tokens/s':>12} {'ratio':>6}")
    for name, (kept, tokens) in counts.items():
        ratio = best["own"] / best[name]
        print(f"{name:<12} {kept / best[name]:>12,.0f} {tokens / best[name]:>12,.0f} {ratio:>6.2f}")


if __name__ == "__main__":
    main()
