"""Peak memory and speed of `prepare-data`: it does not hold the corpus, so a larger input needs hardly more memory.

    python benchmarks/prepare_memory.py [--documents 200000 800000] [--folder DIR]

Makes JSON lines of made-up spoken documents (a fixed seed, 12 words and about 90 speech tokens each, 40 of them a book),
prepares them in a process of its own and prints its peak resident memory, seconds and sizes as a table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = 5_000
SPEECH_VOCAB = 500
DOCUMENTS_A_BOOK = 40


def write_input(file: Path, documents: int) -> None:
    """Documents with word times, in the project's own format."""
    generator = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(WORDS)]
    with file.open("w", encoding="utf-8") as lines:
        for number in range(documents):
            spoken, spans, frame = generator.choices(words, k=12), [], 0
            for word in spoken:
                end = frame + len(word)
                spans.append({"word": word, "start": frame, "end": end})
                frame = end + 1 + generator.randint(0, 2)
            record = {
                "id": f"document-{number:09}",
                "speech_tokens": generator.choices(range(SPEECH_VOCAB), k=frame),
                "text": " ".join(spoken),
                "words": spans,
                "book": f"book-{number // DOCUMENTS_A_BOOK}",
                "speaker": f"voice-{number // DOCUMENTS_A_BOOK}",
            }
            lines.write(json.dumps(record) + "\n")


def measure(folder: Path, documents: int) -> tuple[float, float, float, float]:
    """(MiB of input, MiB of peak resident memory, seconds, MiB of output)."""
    source, out = folder / f"{documents}.jsonl", folder / f"{documents}"
    write_input(source, documents)
    command = [sys.executable, "-m", "lst.data.prepare", f"input={source}", f"out={out}", f"speech_vocab={SPEECH_VOCAB}"]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        raise SystemExit(f"prepare-data ended with status {status}")
    size = sum(file.stat().st_size for file in out.iterdir())
    found = source.stat().st_size / 2**20, used.ru_maxrss / 2**10, seconds, size / 2**20
    source.unlink()
    shutil.rmtree(out)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[200_000, 800_000])
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: the system's temporary folder")
    arguments = parser.parse_args()
    print(f"this process alone: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB")
    print("| documents | input MiB | peak memory MiB | seconds | output MiB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for documents in arguments.documents:
            inside, peak, seconds, outside = measure(Path(folder), documents)
            print(f"| {documents:,} | {inside:,.0f} | {peak:,.0f} | {seconds:,.0f} | {outside:,.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
