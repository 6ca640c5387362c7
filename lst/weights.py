"""`python -m lst.weights`: weights from one form to another, each into a new folder; nothing is written over.

    python -m lst.weights export RUN_OR_CHECKPOINT OUT      one safetensors file, config.json and a manifest
    python -m lst.weights to-llama RUN_OR_CHECKPOINT OUT    a Hugging Face LlamaForCausalLM folder (arms baseline and bpe)
    python -m lst.weights from-llama FOLDER OUT             such a folder as a checkpoint of this program
    python -m lst.weights hash FOLDER                       the digits that train.init_from wants

docs/weights.md says what each form holds. Exit status: 0 done, 1 the work failed, 2 the input was wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lst.errors import LstError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    options = _parser().parse_args(argv)
    try:
        print(_run(options))
        return 0
    except LstError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: cannot write '{options.out}' ({error.strerror}); nothing is left there.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m lst.weights", description=__doc__, formatter_class=raw)
    verbs = parser.add_subparsers(title="verbs", dest="verb", required=True)
    for name, source, what in (
        ("export", "CHECKPOINT", "one safetensors file, config.json and a manifest"),
        ("to-llama", "CHECKPOINT", "arm baseline or bpe as a Hugging Face LlamaForCausalLM folder"),
        ("from-llama", "FOLDER", "a LlamaForCausalLM folder as a checkpoint"),
    ):
        verb = verbs.add_parser(name, help=what, description=what)
        verb.add_argument("source", metavar=source, type=Path, help="what to read")
        verb.add_argument("out", metavar="OUT", type=Path, help="new folder to write")
        if name == "from-llama":
            verb.add_argument(
                "--speech-vocab", type=int, default=501, help="speech tokens among the ids, where the folder says none"
            )
    digits = verbs.add_parser("hash", help="the content hash of a folder's weights", description="For train.init_from.")
    digits.add_argument("source", metavar="FOLDER", type=Path, help="a checkpoint, a finished run, or a Llama folder")
    return parser


def _run(options: argparse.Namespace) -> str:
    """Do what the verb says; the line to print."""
    if options.verb == "hash":
        from lst.weight_files import checkpoint_folder, weights_hash

        return weights_hash(checkpoint_folder(options.source))
    if options.verb == "to-llama":
        from lst.model.huggingface import to_llama

        return f"written: {to_llama(options.source, options.out)}"
    from lst.model import export_checkpoint, load_checkpoint
    from lst.model.huggingface import from_llama

    if options.verb == "export":
        model, config = load_checkpoint(options.source)
    else:
        model, config = from_llama(options.source, speech_vocab=options.speech_vocab)
    return f"written: {export_checkpoint(model, config, options.out)}"


if __name__ == "__main__":
    sys.exit(main())
