"""Ten documents, and a writer for each format that gives a source over them: what the tests of readers share."""

import io
import json
import random
import tarfile
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq

from lst.data.sources.contract import SpokenContract
from lst.data.sources.paired_lines import FairseqLabels, TextlessUnits
from lst.data.sources.speech_jsonl import SpeechJsonl, own_contract, slamkit_contract
from lst.data.sources.tables import saved_speech, speech_parquet
from lst.data.sources.tar_shards import TarShards

SPEECH_VOCAB = 50
CONTRACT = SpokenContract(speech_vocab=SPEECH_VOCAB)
RATE, SAMPLES = 25, 640  # audio samples of a 25 Hz token


def documents(count=10, seed=0):
    """Records in the project's form, with repeated tokens, silences, and words that are not ASCII."""
    generator = random.Random(seed)
    found = []
    for number in range(count):
        tokens = [
            t for _ in range(generator.randint(8, 14)) for t in [generator.randrange(SPEECH_VOCAB)] * generator.randint(1, 4)
        ]
        words, frame = [], generator.randint(0, 2)
        while frame + 3 < len(tokens):
            last = frame + generator.randint(0, 3)
            words.append({"word": generator.choice(["Haus", "Tür", "猫", "don't"]), "start": frame, "end": last})
            frame = last + generator.randint(1, 3)
        speaker, book = f"s{number % 3}", f"b{number % 2}"
        text = " ".join(w["word"] for w in words) + "."
        found.append(
            {"id": f"{speaker}/{book}/d{number}", "speech_tokens": tokens, "text": text, "words": words}
            | {"speaker": speaker, "book": book, "split": "heldout" if number == 3 else "train"}
        )
    return found


def expected_rows(records):
    """The rows of the speech table, by hand."""
    spans = {"words": "word", "word_start": "start", "word_end": "end"}
    return [r | {column: [w[key] for w in r["words"]] for column, key in spans.items()} for r in records]


def path_naming(path):
    return str(path.with_suffix("")), path.parts[0], path.parts[1]


def lasting(record):
    """(token, frames) of each run of equal tokens."""
    return [(token, len(list(run))) for token, run in groupby(record["speech_tokens"])]


def write_lines(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def own(folder, records, **options):
    return SpeechJsonl([write_lines(folder / "speech.jsonl", records)], own_contract(CONTRACT), **options)


def slamkit(folder, records, **options):
    lines = [
        {
            "units": [token for token, _ in lasting(r)],
            "duration": [frames for _, frames in lasting(r)],
            "file_name": f"{r['id']}.flac",
            "aligned_text": [[f" {w['word']}", w["start"] / RATE, (w["end"] + 1) / RATE] for w in r["words"]],
        }
        | {key: r[key] for key in ("text", "speaker", "book", "split")}
        for r in records
    ]
    return SpeechJsonl([write_lines(folder / "features.jsonl", lines)], slamkit_contract(CONTRACT), **options)


def table_of(records):
    return pa.Table.from_pylist([{("file_id" if key == "id" else key): value for key, value in r.items()} for r in records])


TABLE_CONTRACT = SpokenContract(speech_vocab=SPEECH_VOCAB, columns={"id": "file_id"})


def parquet(folder, records, *, block_bytes=1 << 20):
    pq.write_table(table_of(records), folder / "speech.parquet", row_group_size=3)
    return speech_parquet([folder / "speech.parquet"], TABLE_CONTRACT, block_bytes=block_bytes)


def write_saved_dataset(folder, table, rows_a_batch=2, rows_a_file=4):
    """As `datasets.save_to_disk` lays it out."""
    folder.mkdir(parents=True)
    files = []
    for start in range(0, table.num_rows, rows_a_file):
        files.append({"filename": f"data-{len(files):05}-of-00003.arrow"})
        with pa.OSFile(str(folder / files[-1]["filename"]), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table.slice(start, rows_a_file), max_chunksize=rows_a_batch)
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_fingerprint": "0", "_split": None}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
    return folder


def huggingface(folder, records, *, block_bytes=1 << 20):
    saved = write_saved_dataset(folder / "saved", table_of(records))
    return saved_speech(saved, TABLE_CONTRACT, block_bytes=block_bytes)


def add_member(archive, name, content, **changes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in changes.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


def write_tar(path, members, *, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            add_member(archive, name, content)
    return path


def tar(folder, records, *, block_bytes=None):
    """Two archives, one compressed; half of the documents as .json with .units beside."""
    members = []
    for number, record in enumerate(records):
        apart = {k: v for k, v in record.items() if k != "speech_tokens" or number % 2}
        members.append([(f"{record['id']}.json", json.dumps(apart).encode()), (f"{record['id']}.flac", b"no audio")])
        if not number % 2:
            members[-1].append((f"{record['id']}.units", " ".join(map(str, record["speech_tokens"])).encode()))
    half = len(members) // 2
    first = write_tar(folder / "a.tar", [m for group in members[:half] for m in group])
    second = write_tar(folder / "b.tar.gz", [m for group in members[half:] for m in group], mode="w:gz")
    return TarShards([first, second], CONTRACT)


PATHS = SpokenContract(speech_vocab=SPEECH_VOCAB, naming=path_naming)


def fairseq(folder, records, **options):
    (folder / "train.tsv").write_text(
        "/data\n" + "".join(f"{r['id']}.flac\t{SAMPLES * max(1, len(r['speech_tokens']))}\n" for r in records)
    )
    (folder / "train.km").write_text("".join(" ".join(map(str, r["speech_tokens"])) + "\n" for r in records))
    return FairseqLabels(folder / "train.tsv", None, PATHS, **options)


def textless(folder, records, **options):
    for place, name in enumerate(("units", "durations")):
        lines = [f"{r['id']}\t{' '.join(str(run[place]) for run in lasting(r))}\n" for r in records]
        (folder / f"train.{name}").write_text("".join(lines))
    return TextlessUnits(folder / "train.units", PATHS, **options)


WITH_WORDS = {"own": own, "slamkit": slamkit, "parquet": parquet, "huggingface": huggingface, "tar": tar}
TOKENS_ONLY = {"fairseq": fairseq, "textless": textless}
FORMATS = WITH_WORDS | TOKENS_ONLY


def read_all(source):
    """(rows with lists for arrays, refusals) of all blocks."""
    found = [record for block in source.blocks() for record in source.read(block)]
    rows = [r.row | {"speech_tokens": list(map(int, r.row["speech_tokens"]))} for r in found if hasattr(r, "row")]
    return rows, [r for r in found if not hasattr(r, "row")]
