"""Text tokenizers: text comes back, words alone give the pieces of the whole text, and ids are numbered alike."""

import io
import json

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lst.data.text import TextTokenizer, tokenizer_file
from lst.data.tokenizer_json import renumbered, special_names, with_added
from lst.data.vocab import BOS, EOS
from lst.errors import DataError

tokenizers = pytest.importorskip("tokenizers")

LINES = [
    "The cat sat on the mat, and didn't move for 42 minutes.",
    "Ein Übermut (oder nicht): the quick brown fox jumps over a lazy dog!",
    "東京 and the other places are far away from here.",
] * 20


def byte_level(special=(), first=()):
    """As GPT-2's; with Llama 3's pattern if it has its special tokens."""
    from tokenizers import decoders, models, pre_tokenizers, trainers

    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=400, special_tokens=list(first), initial_alphabet=letters))
    model.add_special_tokens(list(special))
    return json.loads(model.to_str())


def llama2():
    """As Llama 2's tokenizer.json: a mark before each word, pieces of single bytes, no pre-tokenizer."""
    from tokenizers import decoders, models, normalizers, trainers

    model = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [word for line in LINES for word in line.split()]  # so that no merge crosses a space
    model.train_from_iterator(words, trainers.BpeTrainer(vocab_size=500, special_tokens=special, limit_alphabet=40))
    document = json.loads(model.to_str())
    document["added_tokens"] = document["added_tokens"][:3]
    return document


def sentencepiece_model():
    """With the settings of Llama 2's."""
    model = io.BytesIO()
    numbers = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
    spaces = {"add_dummy_prefix": True, "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True}
    kind = {"model_type": "bpe", "byte_fallback": True, "split_digits": True, "normalization_rule_name": "identity"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        vocab_size=400,
        minloglevel=2,
        num_threads=1,
        **numbers,
        **spaces,
        **kind,
    )
    return model.getvalue()


KINDS = {
    "gpt2": lambda: byte_level(["<|endoftext|>"]),
    "llama3": lambda: byte_level(["<|begin_of_text|>", "<|end_of_text|>", "<|reserved|>"]),
    "no special tokens": byte_level,
    "numbered from 0": lambda: byte_level(first=["<s>", "</s>"]),
    "llama2": llama2,
    "sentencepiece": sentencepiece_model,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tmp_path_factory):
    content = KINDS[request.param]()
    path = tmp_path_factory.mktemp("tokenizer") / "given"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return TextTokenizer(path)


WORDS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=8), min_size=1, max_size=6
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(words=WORDS)
def test_words_alone_give_the_pieces_of_the_whole_text_and_the_text_comes_back(tokenizer, words):
    words = [word.replace("▁", "_") for word in words]  # the mark of a space is no letter in a model that marks spaces
    text = " ".join(words)
    pieces = tokenizer.encode_words(words)
    assert len(pieces) == len(words)
    assert [p for word in pieces for p in word] == tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert not {BOS, EOS} & set(tokenizer.encode(text))


@pytest.mark.parametrize("text", ["two  spaces", "a\nb\n\nc", "tab\there", "ends \n", " begins"])
def test_white_space_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", ["<s>", "</s>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>", "<unk>"])
def test_the_name_of_a_special_token_in_a_text_is_plain_text(tokenizer, name):
    text = f"a {name} b"
    assert not {BOS, EOS} & set(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(words=WORDS)
def test_characters_of_pieces_add_up_to_those_of_the_text(tokenizer, words):
    words = [word.replace("▁", "_") for word in words]
    for word, pieces in zip(words, tokenizer.encode_words(words), strict=True):
        assert tokenizer.characters[pieces].sum() == len(word)
    assert (tokenizer.characters[[BOS, EOS]] == 0).all()
    assert tokenizer.characters.shape == (tokenizer.size,)


def test_reading_what_was_kept_changes_nothing(tokenizer, tmp_path):
    kept = tmp_path / tokenizer.file
    kept.write_bytes(tokenizer.content)
    again = TextTokenizer(tokenizer_file(tmp_path))
    assert (again.content, again.size, again.file) == (tokenizer.content, tokenizer.size, tokenizer.file)
    assert again.encode(LINES[0]) == tokenizer.encode(LINES[0])


def test_bos_and_eos_change_places_with_the_pieces_at_1_and_2():
    given = {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "d": 3}, "merges": []},
        "added_tokens": [
            {"id": 4, "content": "<|begin_of_text|>", "special": True},
            {"id": 6, "content": "</s>", "special": True},
        ],
    }
    changed = renumbered(given)
    numbers = {"a": 0, "<|begin_of_text|>": 1, "</s>": 2, "d": 3, "b": 4, "<|unused_5|>": 5, "c": 6}
    assert changed["model"]["vocab"] == numbers
    assert [(e["content"], e["id"]) for e in changed["added_tokens"]] == [("<|begin_of_text|>", 1), ("</s>", 2)]
    assert renumbered(changed) == changed
    assert given["model"]["vocab"]["b"] == 1  # a copy was changed


def test_a_tokenizer_without_bos_gets_one():
    changed = renumbered(byte_level(["<|endoftext|>"]))
    assert special_names(json.dumps(changed).encode()) == ("<|document_begins|>", "<|endoftext|>")


def test_added_pieces_are_numbered_from_the_size_on(tokenizer):
    if tokenizer.file.endswith(".model"):
        pytest.skip("a SentencePiece model is exported as it is")
    model = tokenizers.Tokenizer.from_str(with_added(tokenizer.content, ["<|speech_0|>", "<|text|>"]).decode())
    assert model.token_to_id("<|speech_0|>") == tokenizer.size
    assert model.encode("<|text|>a<|speech_0|>").ids == [1, tokenizer.size + 1, *tokenizer.encode("a"), tokenizer.size]


def test_a_tokenizer_that_loses_text_is_refused(tmp_path):
    document = byte_level() | {"normalizer": {"type": "Lowercase"}}
    (tmp_path / "t.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="does not give a text back as it was"):
        TextTokenizer(tmp_path / "t.json")


WRONG = {
    "torn": b'{"model": ',
    "no model": b"{}",
    "unigram": json.dumps({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}, "added_tokens": []}).encode(),
    "a vocabulary of strings": json.dumps({"model": {"type": "BPE", "vocab": {"a": "b"}}, "added_tokens": []}).encode(),
    "merges of nothing": json.dumps(
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}, "added_tokens": []}
    ).encode(),
    "no model at all": b"\x00\x01",
    "empty": b"",
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_tokenizer_is_one_sentence(tmp_path, kind):
    (tmp_path / "t").write_bytes(WRONG[kind])
    with pytest.raises(DataError, match=r"text tokenizer '.*t' (is no|cannot be read|has bos)"):
        TextTokenizer(tmp_path / "t")


def test_sizes_are_those_of_the_vocabulary(tokenizer):
    assert tokenizer.size == len(tokenizer.characters)
    assert max(tokenizer.encode(" ".join(LINES))) < tokenizer.size
    assert np.issubdtype(tokenizer.characters.dtype, np.integer)
