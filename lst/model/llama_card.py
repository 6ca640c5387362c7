"""What stands beside the weights of an exported Llama folder: the text tokenizer, where it is at hand, and a README.

transformers reads a SentencePiece `tokenizer.model` as Llama's tokenizer, and a `tokenizer.json` as it is; the speech tokens (arm
`bpe`: pieces of them) and markers are added tokens with names that cannot occur in text. Without the data set there is no
tokenizer, and the README says that ids are raw.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lst.config import RunConfig
from lst.data.shards import open_dataset
from lst.data.speech_bpe import CONTROL_PIECES, FIRST_CHARACTER, MODEL_FILE, run_pieces
from lst.data.text import JSON_FILE, tokenizer_file
from lst.data.tokenizer_json import special_names, with_added
from lst.data.vocab import Vocabulary
from lst.errors import DataError

TOKENIZER_CONFIG = "tokenizer_config.json"
README = "README.md"
TEXT_MARKER, SPEECH_MARKER = "<|text|>", "<|speech|>"

PIECES = f"pieces of speech tokens (SentencePiece, `{MODEL_FILE}`: its id less {CONTROL_PIECES})"
_NUMBERS = """# A plain speech-text decoder (arm `{arm}`) as a LlamaForCausalLM

| ids | what |
|---|---|
| 0 .. {last_text} | text pieces, as the text tokenizer numbers them (BOS 1, EOS 2) |
| {speech} .. {last_speech} | {kind} 0 .. {last_code} |
| {text_marker} | marker: text follows |
| {speech_marker} | marker: speech follows |

A document is BOS and its segments, each led by its marker, the first one too. Logits equal the original network's for one
document a row; in packed rows a Llama would look across documents, which the original does not.

"""
_OF_PIECES = f"""Pieces are no speech tokens: each stands for one or several of them. The table of pieces is
`{MODEL_FILE}` beside this file, a SentencePiece model in which speech token t is the character U+{FIRST_CHARACTER:X} + t
(`lst.data.speech_bpe.SpeechBpe` reads it).

"""
_WITH = """The text tokenizer is `tokenizer.model`. {kind} are the added tokens `{first}` and so on, the markers are
`<|text|>` and `<|speech|>`. Put a space after `<|text|>`, for a first word is encoded with one, as in
`<|text|> Once upon a time<|speech|>{some}{some}`.
transformers encodes text as in training where words are divided by single spaces; SentencePiece itself also folds runs of white
space and line breaks into one space.
"""
_WITH_JSON = """The text tokenizer is `tokenizer.json`. {kind} are the added tokens `{first}` and so on, the markers are
`<|text|>` and `<|speech|>`, as in `<|text|>Once upon a time<|speech|>{some}{some}`. Text behind a marker is encoded as it stands:
with byte-level pieces, a span that goes on a text begins with the space before its first word.
"""
_WITHOUT = "The data set was not at hand, so there is no tokenizer here: ids are raw.\n"


def tokenizer_files(config: RunConfig) -> dict[str, bytes]:
    """Name -> content of the tokenizer's files and the README; the README alone where the run's data set is not at hand."""
    file = _tokenizer_file(config)
    vocabulary, pieces = Vocabulary.of(config.model), run_pieces(config)
    numbers = _NUMBERS.format(
        arm=config.model.arm.value,
        last_text=vocabulary.text - 1,
        speech=vocabulary.text,
        last_speech=vocabulary.text_marker - 1,
        last_code=vocabulary.speech_size - 1,
        kind=PIECES if pieces else "speech tokens",
        text_marker=vocabulary.text_marker,
        speech_marker=vocabulary.speech_marker,
    )
    numbers += _OF_PIECES if pieces else ""
    speech = {MODEL_FILE: pieces.model} if pieces else {}
    if file is None:
        return {README: (numbers + _WITHOUT).encode(), **speech}
    called = "<|speech_piece_{}|>" if pieces else "<|speech_{}|>"
    names = [*(called.format(number) for number in range(vocabulary.speech_size)), TEXT_MARKER, SPEECH_MARKER]
    name, content = file
    told = _WITH_JSON if name == JSON_FILE else _WITH
    text = told.format(kind="Pieces" if pieces else "Speech tokens", first=names[0], some=name.format(17))
    settings = _json_settings(content) if name == JSON_FILE else _sentencepiece_settings(names, vocabulary.text)
    return {
        name: with_added(content, names) if name == JSON_FILE else content,
        TOKENIZER_CONFIG: (json.dumps(settings, indent=1) + "\n").encode(),
        README: (numbers + text).encode(),
        **speech,
    }


def _sentencepiece_settings(names: Sequence[str], first: int) -> dict[str, Any]:
    """For transformers: added tokens `names`, numbered from `first` on."""
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": False}
    return {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
        "added_tokens_decoder": {str(first + place): {"content": name, **plain} for place, name in enumerate(names)},
    }


def _json_settings(content: bytes) -> dict[str, Any]:
    bos, eos = special_names(content)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "clean_up_tokenization_spaces": False,
    }


def _tokenizer_file(config: RunConfig) -> tuple[str, bytes] | None:
    """Name and content of the tokenizer of the run's data set, if that very data set is where the configuration says."""
    try:
        dataset = open_dataset(config.execution.data_path)
        at_hand = dataset.data_id == config.data.data_id and dataset.text_vocab == config.model.text_vocab
        file = tokenizer_file(dataset.path)
        return (file.name, file.read_bytes()) if at_hand else None
    except (DataError, OSError):
        return None
