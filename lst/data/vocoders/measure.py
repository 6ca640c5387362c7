"""How much of the tokens survives the vocoder: its audio goes back through the corpus' own encoder and quantizer.

For held-out documents of a corpus: the share of tokens that come back equal, the mean distance between the centres of what went
in and what came back (beside that of a token drawn at random), and the phone accuracy of what came back beside that of what went
in (as in lst/data/corpus/measure.py, espeak's voices only). Phones hold up where token numbers do not: neighbouring centres mean
the same sound.
The quantizer's encoder is the judge and was also the teacher: these figures tell what the vocoder lost, not how it sounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lst.data.audio.embedded_quantizer import Quantizer
from lst.data.audio.whisper_encoder import WhisperEncoder
from lst.data.corpus import measure as corpus_measure
from lst.data.corpus import synthesis
from lst.data.corpus.plan import Document
from lst.data.shards import Dataset
from lst.data.vocoders.embedded import EmbeddedVocoder

_MAP_DOCUMENTS = 40  # training documents a voice, for the token -> phoneme map


def measure(vocoder: EmbeddedVocoder, dataset: Dataset, *, documents: int = 5) -> dict[str, float]:
    """Figures for the card, rounded, of the first `documents` held-out ones of each espeak voice. Needs the extra `speech`."""
    import torch

    encoder, quantizer = WhisperEncoder.load(), Quantizer.load(dataset.path / "quantizer.safetensors")
    centres_KC = quantizer.centres_KC.astype(np.float64)
    given: list[tuple[Document, Mapping[str, Any]]] = []
    back: list[tuple[Document, Mapping[str, Any]]] = []
    pairs: list[tuple[int, int]] = []
    for document, record in _spoken(dataset, documents):
        given.append((document, record))
        if document.split == "train":
            back.append((document, record))
            continue
        audio = vocoder.synthesize(torch.tensor(record["tokens"])).clamp(-1, 1).numpy()
        heard = quantizer.tokens(encoder.features(audio)).tolist()
        back.append((document, {**record, "tokens": heard}))
        pairs += zip(record["tokens"], heard, strict=True)
    wanted, heard_all = np.array(pairs).T
    drawn = np.random.default_rng(0).permutation(wanted)
    distance, by_chance = (
        float(np.linalg.norm(centres_KC[wanted] - centres_KC[other], axis=1).mean()) for other in (heard_all, drawn)
    )
    return {
        "tokens": len(pairs),
        "equal_tokens": round(float((wanted == heard_all).mean()), 3),
        "centre_distance": round(distance, 2),
        "centre_distance_chance": round(by_chance, 2),
        "phone_accuracy_given": round(corpus_measure.phone_accuracies(given)[0], 3),
        "phone_accuracy_back": round(corpus_measure.phone_accuracies(back)[0], 3),
    }


def _spoken(dataset: Dataset, documents: int) -> list[tuple[Document, Mapping[str, Any]]]:
    """The first documents of each espeak voice and split, with their tokens and their phonemes' times, which are spoken anew."""
    found: list[tuple[Document, Mapping[str, Any]]] = []
    for split, limit in (("train", _MAP_DOCUMENTS), ("heldout", documents)):
        left = dict.fromkeys((f"espeak:{voice}" for voice in synthesis.ESPEAK_VOICES), limit)
        for row in dataset.speech.take(dataset.rows("speech", split)).to_pylist():
            if left.get(row["speaker"], 0) > 0:
                left[row["speaker"]] -= 1
                phones = synthesis.speak(row["words"], row["speaker"]).phones
                document = Document(row["id"], row["speaker"], row["book"], split, row["text"])
                found.append((document, {"tokens": row["speech_tokens"], "phones": phones}))
    return found
