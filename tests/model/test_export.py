"""Export and loading back: a symmetric pair, the command line, and refusals that leave every file as it was."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lst.model.huggingface  # noqa: F401  (before a test patches what it imports)
from lst.config import RunConfig, arm_config
from lst.errors import CheckpointError
from lst.model import build_model, export_checkpoint, load_checkpoint
from lst.plain import to_dict
from lst.weight_files import weights_hash
from lst.weights import main

ROOT = Path(__file__).parents[2]
MODEL = {"text_vocab": 60, "speech_vocab": 40}


def exported(folder: Path, arm: str = "lst_static", **model: object) -> tuple[torch.nn.Module, RunConfig, Path]:
    config = arm_config(arm, size="tiny", model=MODEL | model)
    network = build_model(config)
    return network, config, export_checkpoint(network, config, folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("arm", ["baseline", "lst_static", "lst_curriculum"])
def test_what_is_exported_comes_back(tmp_path: Path, arm: str) -> None:
    network, config, folder = exported(tmp_path / "deep" / "model", arm)
    assert sorted(contents(folder)) == ["config.json", "manifest.json", "model.safetensors"]
    loaded, loaded_config = load_checkpoint(folder)
    assert loaded_config == config
    pairs = zip(network.state_dict().items(), loaded.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_a_folder_that_holds_anything_is_kept(tmp_path: Path) -> None:
    network, config, folder = exported(tmp_path / "model")
    before = contents(folder)
    with pytest.raises(CheckpointError, match=r"is not empty; give a new or an empty folder"):
        export_checkpoint(network, config, folder)
    with pytest.raises(CheckpointError, match=r"is a file; give a new or an empty folder"):
        export_checkpoint(network, config, folder / "config.json")
    assert contents(folder) == before
    (tmp_path / "empty").mkdir()
    assert export_checkpoint(network, config, tmp_path / "empty") == tmp_path / "empty"


def test_a_model_of_another_configuration_is_refused(tmp_path: Path) -> None:
    network, _, _ = exported(tmp_path / "model")
    other = arm_config("lst_static", size="w64", model=MODEL)
    with pytest.raises(CheckpointError, match=r"the model has [\d,]+ parameters in its embedding, the configuration says"):
        export_checkpoint(network, other, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, folder = exported(tmp_path / "model")
    from lst.model import export

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_file", full)
    assert main(["export", str(folder), str(tmp_path / "out")]) == 1
    assert "No space left" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_command_takes_weights_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, config, folder = exported(tmp_path / "a", "baseline")
    a, b, c, d = (str(tmp_path / name) for name in "abcd")
    assert [main(["export", a, b]), main(["to-llama", b, c]), main(["from-llama", c, d])] == [0, 0, 0]
    assert capsys.readouterr().out.splitlines() == [f"written: {x}" for x in (b, c, d)]
    assert load_checkpoint(d)[1] == config
    first, last = (load_file(Path(x) / "model.safetensors") for x in (a, d))
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert main(["hash", d]) == 0
    assert capsys.readouterr().out.strip() == weights_hash(folder)


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])


def flipped(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)


def foreign(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "notes.txt").write_text("nothing of ours")


def reconfigured(folder: Path) -> None:
    """Another configuration beside these weights, and sealed as if it belonged there."""
    from lst.model.export import seal_folder, write_file

    other = to_dict(arm_config("lst_static", size="tiny", model=MODEL | {"speech_vocab": 41}))
    files = json.loads((folder / "manifest.json").read_text())["sha256"]
    files["config.json"] = write_file(folder / "config.json", json.dumps(other).encode())
    seal_folder(folder, files)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (truncated, "is damaged"),
        (flipped, "is damaged"),
        (foreign, "is no checkpoint; give studies/X/runs/<run_id> or a folder made by export"),
        (reconfigured, "another configuration"),
    ],
)
@pytest.mark.parametrize("verb", ["export", "to-llama"])
def test_bad_input_is_one_sentence_and_writes_nothing(
    tmp_path: Path, damage, named: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, folder = exported(tmp_path / "model")
    damage(folder)
    before = contents(folder)
    assert main([verb, str(folder), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert named in error
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("held", "named"),
    [
        (None, "is a file; give"),
        (("study.yaml", "runs/0123456789ab/run.yaml"), "is no checkpoint; give studies/X/runs/<run_id>"),
        (("run.yaml", "log.txt"), "the run is not finished and has no checkpoint yet"),
        (
            ("run.yaml", "checkpoints/step-00000004/x", "checkpoints/step-00000012/x", "checkpoints/.step-00000016/x"),
            "the run is not finished; its newest checkpoint is checkpoints/step-00000012: give that folder",
        ),
    ],
)
@pytest.mark.parametrize("verb", ["export", "hash"])
def test_what_is_no_checkpoint_is_not_called_a_damaged_one(
    tmp_path: Path, held: tuple[str, ...] | None, named: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given"
    if held is None:
        given.write_text("a file")
    for name in held or ():
        (given / name).parent.mkdir(parents=True, exist_ok=True)
        (given / name).write_text("x")
    assert main([verb, str(given), *([str(tmp_path / "out")] if verb == "export" else [])]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert "damaged" not in error
    assert error.count("\n") == 1


def test_a_checkpoint_of_ours_is_told_from_a_llama(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, folder = exported(tmp_path / "run" / "checkpoints" / "final", "baseline")
    for given in (folder, tmp_path / "run"):
        assert main(["from-llama", str(given), str(tmp_path / "out")]) == 2
        expected = f"error: '{folder}' is a checkpoint of this program already, and no Llama; read it with load_checkpoint.\n"
        assert capsys.readouterr().err == expected


def test_help_is_quick_to_come_and_loads_no_torch() -> None:
    code = "import sys, lst.weights\ntry:\n    lst.weights.main(['--help'])\nfinally:\n    print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout.splitlines()[-1] == "False"
    assert "to-llama" in result.stdout


def test_the_documents_example_runs(tmp_path: Path) -> None:
    block = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "weights.md").read_text(), flags=re.DOTALL)[0]
    check = "\nassert config.model.arm == 'baseline' and not model.training"
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", block + check],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my-llama", "my-model"]


def test_siblings_of_an_export_survive_its_success_and_its_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`git` as the target: neither `.git` nor `.old-git` beside it is the export's."""
    network, config, _ = exported(tmp_path / "model")
    for name in (".git", ".old-git"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept").write_text(name)
    (tmp_path / "git").mkdir()
    from lst.model import export

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(export, "write_file", full)
        with pytest.raises(OSError, match="No space left"):
            export_checkpoint(network, config, tmp_path / "git")
    assert list((tmp_path / "git").iterdir()) == []
    export_checkpoint(network, config, tmp_path / "git")
    assert load_checkpoint(tmp_path / "git")[1] == config
    assert sorted(path.name for path in tmp_path.iterdir()) == [".git", ".old-git", "git", "model"]
    assert all((tmp_path / name / "kept").read_text() == name for name in (".git", ".old-git"))


def test_a_target_that_can_be_no_new_folder_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, config, folder = exported(tmp_path / "model")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for target, named in (
        (tmp_path / "dangling", "is a symbolic link"),
        (tmp_path / "dangling" / "out", "a link to nothing"),
        (folder / "config.json" / "out", "which is a file"),
        (Path(), "is the current folder"),
        (tmp_path / "empty", "is the current folder"),
    ):
        with pytest.raises(CheckpointError, match=named):
            export_checkpoint(network, config, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "empty", "model"]


def test_a_configuration_of_absurd_size_builds_no_network(tmp_path: Path) -> None:
    from lst.model.export import seal_folder, write_file

    _, config, folder = exported(tmp_path / "model", "baseline")
    given = to_dict(config)
    given["model"]["global_stack"]["layers"] = 10**9
    files = json.loads((folder / "manifest.json").read_text())["sha256"]
    files["config.json"] = write_file(folder / "config.json", json.dumps(given).encode())
    seal_folder(folder, files)
    with pytest.raises(CheckpointError, match="another configuration"):
        load_checkpoint(folder)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"sha256": [1]}', '{"sha256": 1}'])
def test_a_hostile_manifest_is_one_error(tmp_path: Path, content: str) -> None:
    _, _, folder = exported(tmp_path / "model", "baseline")
    (folder / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match="no readable manifest"):
        load_checkpoint(folder)


def header(text: bytes, length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (header(b"[" * 100_000), "nested too deeply"),
        (header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e999]}}'), "no whole numbers"),
        (header(b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 0]}}'), "not the bytes of its shape"),
        (header(b"{}", 20 << 30), "cut off"),
    ],
)
def test_a_hostile_header_is_one_error(tmp_path: Path, data: bytes, named: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=named):
        weights_hash(tmp_path)


def test_a_header_that_fills_a_sparse_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(header(b"", 20 << 30))
        file.truncate((20 << 30) + 8)
    with pytest.raises(CheckpointError, match="100,000,000 are allowed"):
        weights_hash(tmp_path)
