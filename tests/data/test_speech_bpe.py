"""Speech pieces: nothing is lost, the same everywhere, kept where they can be, and counted by what they stand for."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst.config import RunConfig, arm_config
from lst.data import speech_bpe
from lst.data.interleave import Segment
from lst.data.pack import EVERY_TOKEN
from lst.data.shards import Dataset, open_dataset, ragged
from lst.data.speech_bpe import SpeechBpe, dataset_pieces, run_pieces, train_speech_bpe, training_sequences
from lst.data.statistics import count_sequences, solve_mixture
from lst.data.stream import Stream
from lst.data.vocab import SPEECH, Vocabulary
from lst.errors import ConfigError, DataError
from lst.flops import num_params, training_flops
from lst.model import build_model, make_batch
from tests.data.made_up_pieces import made_up_pieces

VOCABULARY = 160  # pieces; the toy corpus has 100 speech tokens


@pytest.fixture
def data(toy_dataset: Path, tmp_path: Path) -> Path:
    """A copy of the toy data set of its own, without kept pieces."""
    return shutil.copytree(toy_dataset, tmp_path / "data", ignore=shutil.ignore_patterns("speech_bpe*"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def bpe_config(dataset: Dataset, arm: str = "bpe", **sections: object) -> RunConfig:
    model = {"text_vocab": dataset.text_vocab, "speech_vocab": dataset.speech_vocab}
    model |= {"speech_bpe_vocab": VOCABULARY} if arm == "bpe" else {}
    base = {"data": {"seq_len_units": 64}, "train": {"steps": 50, "batch_sequences": 4}} | sections
    config = arm_config(arm, size="tiny", model=model, **base)
    return dataclasses.replace(config, data=solve_mixture(dataset, config))


@given(st.lists(st.lists(st.integers(0, 49), max_size=80), max_size=5))
def test_decoding_gives_back_what_was_encoded(sequences: list[list[int]]) -> None:
    pieces = made_up_pieces(50, 90)
    encoded = pieces.encode([np.array(s, np.int64) for s in sequences])
    for sequence, found in zip(sequences, encoded, strict=True):
        assert pieces.decode(found).tolist() == sequence
        assert pieces.lengths[found].sum() == len(sequence)
        assert ((found >= 0) & (found < pieces.size)).all()


def test_every_speech_token_is_a_piece_seen_or_not_and_no_control_piece_is_numbered() -> None:
    seen = [np.array([3, 4] * 20), np.array([3, 4, 5] * 20)]
    pieces = SpeechBpe(train_speech_bpe(seen, speech_vocab=501, vocabulary=502))
    assert (pieces.size, pieces.speech_vocab) == (502, 501)
    assert sorted(p[0] for p in pieces.pieces if len(p) == 1) == list(range(501))
    assert (3, 4) in pieces.pieces
    assert [len(p) for p in pieces.encode([np.arange(501)])] == [500]  # 3 and 4 are one


def test_training_is_the_same_in_every_process_whatever_its_threads(data: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from lst.data.shards import open_dataset; from lst.data.speech_bpe import *\n"
        f"d = open_dataset({str(data)!r})\n"
        f"m = train_speech_bpe(training_sequences(d), speech_vocab=d.speech_vocab, vocabulary={VOCABULARY})\n"
        "pathlib.Path(sys.argv[1]).write_bytes(m)"
    )
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / threads)], env=environment, timeout=120, check=True)
    first, second = ((tmp_path / threads).read_bytes() for threads in ("1", "2"))
    assert first == second == dataset_pieces(open_dataset(data), VOCABULARY).model


def test_training_reads_at_most_so_many_sequences_of_the_training_split(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(data)
    tokens, train = ragged(dataset.speech, "speech_tokens"), dataset.rows("speech", "train")
    whole = training_sequences(dataset)
    assert [s.tolist() for s in whole] == [tokens[r].tolist() for r in train]  # all there are, in order
    monkeypatch.setattr(speech_bpe, "SEQUENCE_TOKENS", 50)
    cut = training_sequences(dataset)
    assert max(map(len, cut)) == 50
    assert np.concatenate(cut).tolist() == np.concatenate(whole).tolist()
    monkeypatch.setattr(speech_bpe, "TRAINING_SEQUENCES", 7)
    drawn = [s.tolist() for s in training_sequences(dataset)]
    assert len(drawn) == 7
    assert drawn == [s.tolist() for s in training_sequences(dataset)]
    assert drawn != [s.tolist() for s in cut[:7]]


def test_longest_sequences_are_not_passed_over() -> None:
    """SentencePiece leaves out sentences above its limit without a word."""
    sequences = [np.tile([1, 2, 3, 4], speech_bpe.SEQUENCE_TOKENS // 4)]
    assert (1, 2) in SpeechBpe(train_speech_bpe(sequences, speech_vocab=5, vocabulary=7)).pieces


def test_too_small_speech_is_told_with_a_size_that_fits(data: Path) -> None:
    dataset = open_dataset(data)
    with pytest.raises(DataError, match=r"too small for model.speech_bpe_vocab=20000; give .*=\d+ or less\.$") as error:
        dataset_pieces(dataset, 20_000)
    assert "\n" not in str(error.value)
    fitting = int(str(error.value).split("=")[-1].split()[0])
    assert dataset_pieces(dataset, fitting).size == fitting


def test_pieces_are_made_once_and_kept_beside_the_data(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(data)
    made = dataset_pieces(dataset, VOCABULARY)
    file = data / f"speech_bpe-{dataset.data_id}-{VOCABULARY}.model"
    assert file.read_bytes() == made.model
    assert not cache.exists()
    file.write_bytes(made.model[:100])  # damaged: made anew
    assert dataset_pieces(dataset, VOCABULARY).id == made.id
    assert file.read_bytes() == made.model
    monkeypatch.setattr(speech_bpe, "train_speech_bpe", lambda *_, **__: pytest.fail("made twice"))
    assert dataset_pieces(dataset, VOCABULARY).id == made.id


def test_data_that_others_own_leave_pieces_to_the_cache(
    data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, dataset = speech_bpe.write_atomically, open_dataset(data)

    def write(path: Path, content: bytes) -> None:
        if path.parent in closed:
            raise PermissionError(13, "Permission denied")
        whole(path, content)

    closed = {data}
    monkeypatch.setattr(speech_bpe, "write_atomically", write)
    made = dataset_pieces(dataset, VOCABULARY)
    assert [f.read_bytes() for f in cache.iterdir()] == [made.model]
    assert not list(data.glob("speech_bpe*"))
    shutil.rmtree(cache)
    closed.add(cache)
    with caplog.at_level(logging.WARNING):
        assert dataset_pieces(dataset, VOCABULARY).id == made.id
    assert "set LST_CACHE to a folder that can be written" in caplog.text


def test_embedded_data_are_never_written_to(cache: Path) -> None:
    embedded = open_dataset("embedded")
    before = sorted(p.name for p in embedded.path.iterdir())
    assert dataset_pieces(embedded, 520).size == 520
    assert sorted(p.name for p in embedded.path.iterdir()) == before
    assert [p.name for p in cache.iterdir()] == [f"speech_bpe-{embedded.data_id}-520.model"]


def test_two_processes_at_once_make_one_file(data: Path) -> None:
    code = (
        "from lst.data.shards import open_dataset; from lst.data.speech_bpe import dataset_pieces\n"
        f"print(dataset_pieces(open_dataset({str(data)!r}), {VOCABULARY}).id)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    ids = {process.communicate(timeout=120)[0].strip() for process in both}
    assert ids == {dataset_pieces(open_dataset(data), VOCABULARY).id}
    assert len(list(data.glob("*speech_bpe*"))) + len(list(data.glob(".speech_bpe*"))) == 1


def test_pieces_of_other_data_or_none_are_refused(data: Path) -> None:
    dataset = open_dataset(data)
    config = bpe_config(dataset)
    for wrong, error, sentence in (("0" * 12, DataError, "the run wants 000000000000"), ("", ConfigError, "plan the run")):
        changed = dataclasses.replace(config, data=dataclasses.replace(config.data, speech_bpe_id=wrong))
        with pytest.raises(error, match=sentence):
            run_pieces(changed, dataset)
    assert run_pieces(arm_config("baseline")) is None
    with pytest.raises(DataError, match=r"lies outside 0\.\.99"):
        dataset_pieces(dataset, VOCABULARY).encode([np.array([3, 100])])
    with pytest.raises(DataError, match="no SentencePiece model"):
        SpeechBpe(b"nonsense")
    with pytest.raises(DataError, match="not of speech tokens"):
        SpeechBpe((data / "tokenizer.model").read_bytes())


def test_pieces_are_part_of_a_runs_identity(data: Path) -> None:
    config = bpe_config(open_dataset(data))
    assert config.data.speech_bpe_id == dataset_pieces(open_dataset(data), VOCABULARY).id
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, speech_bpe_id="1" * 12))
    assert other.run_id != config.run_id
    assert bpe_config(open_dataset(data), "baseline").data.speech_bpe_id == ""


def test_rows_hold_the_same_speech_as_the_baselines_each_span_in_pieces(data: Path) -> None:
    """Decoded, a row of `bpe` begins as the baseline's does, which holds less in as many units; each span is encoded apart."""
    dataset = open_dataset(data)
    pieces = dataset_pieces(dataset, VOCABULARY)
    config = bpe_config(dataset)
    shares = dataclasses.replace(config.data, speech_bpe_id="")
    plain = dataclasses.replace(bpe_config(dataset, "baseline"), data=shares)
    vocabulary, baseline = Vocabulary.of(config.model), Vocabulary.of(plain.model)
    streams = Stream(dataset, config), Stream(dataset, plain)
    spans = 0
    for index in range(60):
        row, other = (stream.row(index) for stream in streams)
        assert row.units == other.units == row.tokens == 64
        decoded, last, start = [], len(row.ids), 0
        while start < last:
            if row.modality[start] != SPEECH:
                shift = baseline.text_marker - vocabulary.text_marker if row.ids[start] >= vocabulary.text_marker else 0
                decoded.append(int(row.ids[start]) + shift)
                start += 1
                continue
            end = start + int(np.argmin(np.append(row.modality[start:] == SPEECH, False)))
            ids = row.ids[start:end] - vocabulary.text
            speech = pieces.decode(ids)
            if end < last:  # not cut: encoding the span again gives its pieces
                assert pieces.encode([speech])[0].tolist() == ids.tolist()
                spans += 1
            assert pieces.lengths[ids].tolist() == row.frames[start:end].tolist()
            decoded += (speech + baseline.text).tolist()
            start = end
        assert decoded[:64] == other.ids.tolist()
        assert int(row.content.sum()) == len(decoded)
    assert spans > 20


def test_counts_are_of_content_and_flops_of_positions(data: Path) -> None:
    dataset = open_dataset(data)
    config = bpe_config(dataset)
    rows = [Stream(dataset, config).row(i) for i in range(40)]
    for row in rows:
        counts, speech = row.counts(EVERY_TOKEN), row.modality == SPEECH
        assert (counts.units, counts.patches) == (len(row.ids), speech.sum())
        assert counts.predicted == (row.target >= 0).sum()
        assert counts.speech_tokens == row.frames.sum() >= counts.patches
        assert counts.tokens == counts.text_tokens + counts.speech_tokens + (~speech).sum() - counts.text_tokens
        assert counts.interleaved_tokens == (counts.tokens if row.interleaved else 0)
        stack, V = config.model.global_stack, 300 + VOCABULARY + 2
        layer = 4 * stack.dim**2 + 3 * stack.dim * stack.ffn_dim
        expected = 6 * (64 * stack.layers * layer + counts.predicted * V * stack.dim) + 12 * stack.layers * stack.dim * sum(
            p + 1 for p in row.position.tolist()
        )
        assert training_flops(config, counts).total == expected
    table = count_sequences(dataset, config).total()
    assert table.interleaved_tokens / table.tokens == pytest.approx(1 / 3, abs=0.02)  # the mixture is in tokens by content
    assert table.mean_patch_length > 1.5


def test_network_has_a_row_of_embedding_and_head_for_each_piece(data: Path) -> None:
    dataset = open_dataset(data)
    config = bpe_config(dataset)
    model = build_model(config)
    assert sum(p.numel() for p in model.parameters()) == num_params(config.model)
    assert model.embedding.num_embeddings == dataset.text_vocab + VOCABULARY + 2
    batch = make_batch([[("text", [12, 7]), ("speech", [3, 3, 90, 41]), ("text", [5])]], config)
    pieces = dataset_pieces(dataset, VOCABULARY).encode([np.array([3, 3, 90, 41])])[0]
    text = dataset.text_vocab
    marks = text + VOCABULARY, text + VOCABULARY + 1
    assert batch.ids_BT[0].tolist() == [1, marks[0], 12, 7, marks[1], *(pieces + text).tolist(), marks[0], 5]
    assert batch.visible_BT[0].tolist() == list(range(1, batch.ids_BT.shape[1] + 1))  # each id closes at itself
    with pytest.raises(ConfigError, match=r"data\.speech_bpe_id=''"):
        make_batch([[("speech", [3])]], arm_config("bpe"))


def test_segments_in_pieces_stay_as_they_are() -> None:
    pieces = made_up_pieces(50, 90)
    document = pieces.encode_document([Segment("text", np.array([5])), Segment("speech", np.array([1, 2, 3]))])
    assert pieces.encode_document(document)[1] is document[1]
    assert document[1].frames is not None
    assert int(document[1].frames.sum()) == 3


def test_model_with_a_flipped_bit_has_another_id_or_encodes_equally() -> None:
    good = made_up_pieces(50, 58)
    generator = np.random.Generator(np.random.Philox(key=1))
    speech = [generator.integers(0, 50, 40).cumsum() % 50 for _ in range(5)]
    expected = [pieces.tolist() for pieces in good.encode(speech)]
    loaded = changed = 0
    for place in range(len(good.model)):
        damaged = bytearray(good.model)
        damaged[place] ^= 1 << place % 8
        try:
            pieces = SpeechBpe(bytes(damaged))
            found = [encoded.tolist() for encoded in pieces.encode(speech)]
        except DataError:
            continue
        loaded, changed = loaded + 1, changed + (found != expected)
        assert pieces.id != good.id or found == expected
    assert loaded > changed > 0  # some flips do change the encoding of a model that loads


def test_damaged_file_whose_id_is_another_is_made_anew(data: Path) -> None:
    dataset = open_dataset(data)
    config = bpe_config(dataset)
    file = next(data.glob("speech_bpe*"))
    good = file.read_bytes()
    place = next(p for p in range(len(good) - 1, 0, -1) if is_loadable(good[:p] + bytes([good[p] ^ 1]) + good[p + 1 :]))
    file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    assert dataset_pieces(dataset, VOCABULARY, config.data.speech_bpe_id).model == good
    assert file.read_bytes() == good
    assert dataset_pieces(dataset, VOCABULARY, "0" * 12).model == good  # run_pieces refuses it


def is_loadable(model: bytes) -> bool:
    try:
        return (SpeechBpe(model).speech_vocab, SpeechBpe(model).size) == (100, VOCABULARY)
    except DataError:
        return False


@pytest.mark.parametrize("token", [-1, 50, 10**6, 2**32])
def test_token_that_no_piece_has_is_refused(token: int) -> None:
    with pytest.raises(DataError, match=rf"speech token {token} lies outside 0\.\.49"):
        made_up_pieces(50, 58).encode([np.array([3, token])])


@pytest.mark.parametrize("wrong", [{"speech_bpe_vocab": VOCABULARY + 1}, {"speech_vocab": 99}])
def test_pieces_known_to_the_process_are_refused_to_a_model_of_another_size(data: Path, wrong: dict[str, int]) -> None:
    config = bpe_config(open_dataset(data))
    assert run_pieces(config) is not None
    with pytest.raises(DataError, match=r"are 160 of 100 speech tokens, the model has"):
        run_pieces(dataclasses.replace(config, model=dataclasses.replace(config.model, **wrong)))
