"""The prepared data set is the same bytes whatever the parts, their order and their interruptions; wrong uses are refused."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lst.data.prepare import main
from lst.data.preparing.building import part_of
from lst.data.preparing.verify import verify_dataset
from lst.data.preparing.work_folder import WorkFolder
from lst.data.shards import open_dataset
from tests.data.preparing.small_preparation import (
    OPTIONS,
    ROOT,
    SMALL,
    checksums,
    make_small,
    run_killed,
    toy_records,
    write_records,
)


@pytest.fixture
def small(monkeypatch):
    make_small(monkeypatch)


def write_input(folder, documents=60):
    """Toy documents, one malformed line and one repeated id among them, and a text of its own."""
    records = toy_records(documents)
    write_records(folder / "in.jsonl", [*records[:25], "{torn", *records[25:], records[3]])
    texts = [{"id": f"t{i}", "book": f"book{i % 11}", "text": "the moon was high and the cat saw the stars"} for i in range(40)]
    write_records(folder / "texts.jsonl", texts)
    return [f"input={folder / 'in.jsonl'}", f"text={folder / 'texts.jsonl'}", *OPTIONS, "refuse=skip", "max_refused=0.06"]


@settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.integers(1, 7), order=st.randoms(use_true_random=False))
def test_the_result_does_not_depend_on_parts_or_their_order(small, tmp_path_factory, parts, order):
    folder = tmp_path_factory.mktemp("parts")
    options = write_input(folder)
    assert main([*options, f"out={folder / 'whole'}"]) == 0
    numbers = list(range(1, parts + 1))
    order.shuffle(numbers)
    for number in numbers:
        assert main([*options, f"out={folder / 'parted'}", f"part={number}/{parts}"]) == 0
    if parts > 1:
        assert not (folder / "parted").exists()
        assert main(["merge", str(folder / "parted")]) == 0
    assert checksums(folder / "whole") == checksums(folder / "parted")
    assert sorted(p.name for p in folder.iterdir()) == ["in.jsonl", "parted", "texts.jsonl", "whole"]


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_the_named_numbers_of_parts_give_the_same_bytes(small, tmp_path, parts):
    options = write_input(tmp_path)
    assert main([*options, f"out={tmp_path / 'whole'}"]) == 0
    for number in range(parts, 0, -1):
        assert main([*options, f"out={tmp_path / 'parted'}", f"part={number}/{parts}"]) == 0
    if parts > 1:
        assert main(["merge", f"out={tmp_path / 'parted'}"]) == 0
    assert checksums(tmp_path / "whole") == checksums(tmp_path / "parted")
    shards = open_dataset(tmp_path / "whole").manifest["shards"]["speech"]
    assert [s["split"] for s in shards] == sorted((s["split"] for s in shards), reverse=True)  # train before heldout
    assert len(shards) > 3


@given(count=st.integers(0, 50), parts=st.integers(1, 12))
def test_parts_are_contiguous_and_cover_each_block_once(count, parts):
    assert [block for i in range(1, parts + 1) for block in part_of(count, (i, parts))] == list(range(count))


def test_a_preparation_that_is_killed_again_and_again_ends_with_the_same_bytes(small, tmp_path):
    options = write_input(tmp_path, documents=36)
    assert main([*options, f"out={tmp_path / 'whole'}"]) == 0
    kills, stages = 0, set()
    while (ended := run_killed(17, *options, f"out={tmp_path / 'killed'}")).returncode == -signal.SIGKILL:
        kills += 1
        stages.add(WorkFolder(tmp_path / "killed").join.exists())
        assert kills < 60
    assert ended.returncode == 0, ended.stderr
    assert stages == {False, True}  # both stages were interrupted
    assert checksums(tmp_path / "whole") == checksums(tmp_path / "killed")
    verify_dataset(tmp_path / "killed")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "killed", "texts.jsonl", "whole"]


@pytest.mark.parametrize("moment", ["before the folder has its name", "after the folder has its name"])
def test_a_kill_beside_the_last_rename_changes_nothing(small, tmp_path, moment):
    options = write_input(tmp_path)
    assert main([*options, f"out={tmp_path / 'whole'}"]) == 0
    assert run_killed(moment, *options, f"out={tmp_path / 'killed'}").returncode == -signal.SIGKILL
    assert (tmp_path / "killed").exists() == moment.startswith("after")
    assert main([*options, f"out={tmp_path / 'killed'}"]) == 0
    assert checksums(tmp_path / "whole") == checksums(tmp_path / "killed")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "killed", "texts.jsonl", "whole"]


def test_finished_blocks_are_not_read_again(small, tmp_path, monkeypatch):
    options = write_input(tmp_path)
    out = f"out={tmp_path / 'out'}"
    assert main([*options, out, "part=1/2"]) == 0
    work = WorkFolder(tmp_path / "out")
    before = {file.name: file.stat().st_mtime_ns for file in work.path.glob("speech-*.arrow")}
    assert len(before) > 1
    assert main([*options, out, "part=1/2"]) == 0
    assert {file.name: file.stat().st_mtime_ns for file in work.path.glob("speech-*.arrow")} == before


def test_a_join_that_lacks_a_part_says_so_and_takes_it_later(small, tmp_path, capsys):
    options = write_input(tmp_path)
    assert main([*options, f"out={tmp_path / 'out'}", "part=1/2"]) == 0
    assert main(["merge", str(tmp_path / "out")]) == 2
    assert "blocks of speech are not read yet" in capsys.readouterr().err
    assert main([*options, f"out={tmp_path / 'out'}", "part=2/2"]) == 0
    assert main(["merge", str(tmp_path / "out"), "heldout_share=0.3"]) == 0
    assert open_dataset(tmp_path / "out").manifest["about"]["heldout_share"] == 0.3


def test_parts_and_the_join_that_come_again_find_that_all_is_done(small, tmp_path, capsys):
    options, out = [*write_input(tmp_path), f"out={tmp_path / 'out'}"], tmp_path / "out"
    for part in ("1/2", "2/2"):
        assert main([*options, f"part={part}"]) == 0
    assert main(["merge", str(out), "heldout_share=0.2"]) == 0
    before = checksums(out)
    for again in ([*options, "part=2/2"], ["merge", str(out)], ["merge", str(out), "heldout_share=0.2"]):
        capsys.readouterr()
        assert main(again) == 0
        assert "is done already" in capsys.readouterr().out
    assert main(["merge", str(out), "heldout_share=0.3"]) == 2
    assert "made with heldout_share=0.2, and this command has heldout_share=0.3" in capsys.readouterr().err
    assert checksums(out) == before
    assert not WorkFolder(out).path.exists()


def test_a_damaged_raw_shard_is_found_by_the_join(small, tmp_path, capsys):
    options = write_input(tmp_path)
    assert main([*options, f"out={tmp_path / 'out'}", "part=1/2"]) == 0
    assert main([*options, f"out={tmp_path / 'out'}", "part=2/2"]) == 0
    file = WorkFolder(tmp_path / "out").block("speech", 1, "arrow")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert main(["merge", str(tmp_path / "out")]) == 2
    assert f"'{file}' is missing or damaged" in capsys.readouterr().err


def change_input(folder):
    with (folder / "in.jsonl").open("a") as file:
        file.write("\n")


def touch_input(folder):
    os.utime(folder / "in.jsonl", ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "option", "sentence"),
    [
        (change_input, "", "input has changed"),
        (touch_input, "", "input has changed"),
        (None, "speech_vocab=101", "begun with speech_vocab=100, this command has speech_vocab=101"),
        (None, "heldout_share=0.3", "begun with heldout_share=0.05, this command has heldout_share=0.3"),
    ],
)
def test_a_changed_input_or_option_is_refused(small, tmp_path, capsys, change, option, sentence):
    options = write_input(tmp_path)
    assert main([*options, f"out={tmp_path / 'out'}", "part=1/2"]) == 0
    if change:
        change(tmp_path)
    given_now = [o for o in options if o.split("=")[0] != option.split("=")[0]]
    assert main([*given_now, *([option] if option else []), f"out={tmp_path / 'out'}", "part=2/2"]) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert "to begin anew" in message


def started(code, *arguments):
    """A preparation that stops in the middle of its first block and waits, holding its lock."""
    waiting = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
    waiting += code + "\nimport lst.data.preparing.building as building\n"
    waiting += "building._read_block = lambda *a, **o: (print('reading', flush=True), __import__('time').sleep(60))\n"
    process = subprocess.Popen(
        [sys.executable, "-c", waiting + SMALL, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout.readline() == "reading\n"
    return process


@pytest.mark.parametrize(("first", "second"), [("1/1", "1/1"), ("2/3", "2/3"), ("1/1", "1/2"), ("2/3", "1/1"), ("2/3", "merge")])
def test_the_second_of_two_on_one_folder_is_refused_by_the_name_of_the_first(small, tmp_path, capsys, first, second):
    options = [*write_input(tmp_path), f"out={tmp_path / 'out'}"]
    process = started("", *options, f"part={first}")
    try:
        arguments = ["merge", str(tmp_path / "out")] if second == "merge" else [*options, f"part={second}"]
        assert main(arguments) == 1
        message = capsys.readouterr().err
        assert f"in use by process {process.pid} on {os.uname().nodename}" in message
        assert ("part=2/3" if first == "2/3" else "the preparation") in message
    finally:
        process.kill()
        process.wait()


def test_another_part_works_beside_the_first(small, tmp_path):
    options = [*write_input(tmp_path), f"out={tmp_path / 'out'}"]
    process = started("", *options, "part=1/2")
    try:
        assert main([*options, "part=2/2"]) == 0
    finally:
        process.kill()
        process.wait()
    assert main([*options, "part=1/2"]) == 0  # the kernel has freed the lock of the killed one
    assert main(["merge", str(tmp_path / "out")]) == 0


def test_a_work_folder_left_by_a_kill_after_the_last_rename_goes(small, tmp_path, capsys):
    options = [*write_input(tmp_path), f"out={tmp_path / 'out'}"]
    assert main([*options, "part=1/2"]) == 0
    assert main([*options, "part=2/2"]) == 0
    work = WorkFolder(tmp_path / "out").path
    shutil.copytree(work, tmp_path / "kept")
    assert main(["merge", str(tmp_path / "out")]) == 0
    shutil.copytree(tmp_path / "kept", work)
    assert main(["merge", str(tmp_path / "out")]) == 2  # blocks that were never joined: not ours to throw away
    assert "holds blocks for it" in capsys.readouterr().err
    (work / "join").mkdir()
    (work / "join" / "joining.json").write_text("{}")
    assert main(["merge", str(tmp_path / "out")]) == 0
    assert not work.exists()


def test_refusals_are_kept_and_counted_by_reason(small, tmp_path, capsys):
    options = write_input(tmp_path)
    assert main([*options, f"out={tmp_path / 'out'}"]) == 0
    manifest = open_dataset(tmp_path / "out").manifest
    lines = [json.loads(line) for line in (tmp_path / "out" / "refusals.jsonl").read_text().splitlines()]
    assert [(line["table"], line["line"]) for line in lines] == [("speech", 26), ("speech", 62)]
    assert lines[1]["reason"] == "id 'd0003' stands on an earlier line too"
    assert manifest["refused"]["speech"]["records"] == 2
    assert sum(manifest["refused"]["speech"]["by_reason"].values()) == 2
    assert "id '...' stands on an earlier line too" in manifest["refused"]["speech"]["by_reason"]
    assert manifest["refused"]["text"] == {"records": 0, "by_reason": {}}
    assert manifest["rows"] == {"speech": 60, "text": 40}
    assert f"refused {tmp_path / 'in.jsonl'}:26: not JSON" in capsys.readouterr().err


def test_only_the_first_refusals_are_printed(small, tmp_path, capsys):
    write_records(tmp_path / "in.jsonl", [*toy_records(60), *["{"] * 30])
    options = [f"input={tmp_path / 'in.jsonl'}", f"out={tmp_path / 'out'}", *OPTIONS, "refuse=skip", "max_refused=0.5"]
    assert main(options) == 0
    message = capsys.readouterr().err
    assert message.count("not JSON") == 10
    assert "all are kept in refusals.jsonl" in message
    assert len((tmp_path / "out" / "refusals.jsonl").read_text().splitlines()) == 30


def test_too_many_refusals_stop_the_reading_as_soon_as_that_is_certain(small, tmp_path, capsys):
    """Of about 300 bytes a record, those that are unread cannot outweigh thousands of torn lines."""
    write_records(tmp_path / "in.jsonl", [*["{"] * 30_000, *toy_records(30)])
    options = [f"input={tmp_path / 'in.jsonl'}", f"out={tmp_path / 'out'}", *OPTIONS, "refuse=skip", "max_refused=0.2"]
    assert main([*options, "part=1/2"]) == 2
    assert "cannot be kept any more" in capsys.readouterr().err
    work = WorkFolder(tmp_path / "out")
    assert not work.block("speech", 8, "json").exists()


def test_a_share_of_refusals_that_may_still_be_met_does_not_stop_the_reading(small, tmp_path):
    write_records(tmp_path / "in.jsonl", ["{", *toy_records(60)])
    options = [f"input={tmp_path / 'in.jsonl'}", f"out={tmp_path / 'out'}", *OPTIONS, "refuse=skip", "max_refused=0.06"]
    assert main(options) == 0


@pytest.mark.parametrize("size", [3_000, 9_000, 14_000])
def test_a_full_disk_leaves_no_data_set_and_the_work_goes_on_when_there_is_room(small, tmp_path, size):
    """A real limit on the size of files: of raw shards, of final ones, of the tokenizer."""
    options = [*write_input(tmp_path), f"out={tmp_path / 'out'}"]
    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
    )
    command = [sys.executable, "-c", limit + SMALL, *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=os.environ, check=False)
    assert ended.returncode == 2, ended.stderr
    assert "free some space" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()
    assert main(options) == 0
    assert main([o if o[:4] != "out=" else f"out={tmp_path / 'whole'}" for o in options]) == 0
    assert checksums(tmp_path / "whole") == checksums(tmp_path / "out")


def test_ctrl_c_keeps_what_is_finished(small, tmp_path):
    options = [*write_input(tmp_path), f"out={tmp_path / 'out'}"]
    assert run_killed(20, *options).returncode == -signal.SIGKILL
    process = started("", *options)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert WorkFolder(tmp_path / "out").worth_keeping()
    assert main(options) == 0
