"""What stands beside the weights of an exported Llama folder: the text tokenizer, where it is at hand, and a README.

transformers reads a SentencePiece `tokenizer.model` as Llama's tokenizer; the speech tokens and markers are added tokens with
names that cannot occur in text. Without the data set there is no tokenizer, and the README says that ids are raw.
"""

from __future__ import annotations

import json

from lst.config import RunConfig
from lst.data.shards import TOKENIZER, open_dataset
from lst.data.speech_bpe import CONTROL_PIECES, MODEL_FILE, run_pieces
from lst.data.vocab import Vocabulary
from lst.errors import DataError

TOKENIZER_CONFIG = "tokenizer_config.json"
README = "README.md"
TEXT_MARKER, SPEECH_MARKER = "<|text|>", "<|speech|>"

PIECES = f"pieces of speech tokens (SentencePiece, `{MODEL_FILE}`: its id less {CONTROL_PIECES})"
_NUMBERS = """# A speech-text baseline as a LlamaForCausalLM

| ids | what |
|---|---|
| 0 .. {last_text} | text pieces, as the text tokenizer numbers them (BOS 1, EOS 2) |
| {speech} .. {last_speech} | {kind} 0 .. {last_code} |
| {text_marker} | marker: text follows |
| {speech_marker} | marker: speech follows |

A document is BOS and its segments, each led by its marker, the first one too. Logits equal the original network's for one
document a row; in packed rows a Llama would look across documents, which the original does not.

"""
_WITH = """The text tokenizer is `tokenizer.model`. Speech tokens are the added tokens `<|speech_0|>` and so on, the markers are
`<|text|>` and `<|speech|>`. Put a space after `<|text|>`, for a first word is encoded with one, as in
`<|text|> Once upon a time<|speech|><|speech_17|><|speech_17|>`.
transformers encodes text as in training where words are divided by single spaces; SentencePiece itself also folds runs of white
space and line breaks into one space.
"""
_WITHOUT = "The data set was not at hand, so there is no tokenizer here: ids are raw.\n"


def tokenizer_files(config: RunConfig) -> dict[str, bytes]:
    """Name -> content of the tokenizer's files and the README; the README alone where the run's data set is not at hand."""
    model = _tokenizer_model(config)
    vocabulary, pieces = Vocabulary.of(config.model), run_pieces(config)
    numbers = _NUMBERS.format(
        last_text=vocabulary.text - 1,
        speech=vocabulary.text,
        last_speech=vocabulary.text_marker - 1,
        last_code=vocabulary.speech_size - 1,
        kind=PIECES if pieces else "speech tokens",
        text_marker=vocabulary.text_marker,
        speech_marker=vocabulary.speech_marker,
    )
    speech = {MODEL_FILE: pieces.model} if pieces else {}
    if model is None:
        return {README: (numbers + _WITHOUT).encode(), **speech}
    names = [*(f"<|speech_{code}|>" for code in range(vocabulary.speech_size)), TEXT_MARKER, SPEECH_MARKER]
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": False}
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
        "added_tokens_decoder": {str(vocabulary.text + place): {"content": name, **plain} for place, name in enumerate(names)},
    }
    return {
        TOKENIZER: model,
        TOKENIZER_CONFIG: (json.dumps(settings, indent=1) + "\n").encode(),
        README: (numbers + _WITH).encode(),
        **speech,
    }


def _tokenizer_model(config: RunConfig) -> bytes | None:
    """The SentencePiece model of the run's data set, if that very data set is where the configuration says."""
    try:
        dataset = open_dataset(config.execution.data_path)
        at_hand = dataset.data_id == config.data.data_id and dataset.text_vocab == config.model.text_vocab
        return (dataset.path / TOKENIZER).read_bytes() if at_hand else None
    except (DataError, OSError):
        return None
