"""Every assumption the paper leaves open, with a name, a value and a source, in one table (DESIGN rule 9).

The report prints this table; a study names the ones it touches. What the paper says is in no need of an entry.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Assumption:
    """One decision: its name, what was chosen, why, and the place in the paper that is silent or contradicts itself."""

    name: str
    value: str
    source: str


ASSUMPTIONS: tuple[Assumption, ...] = (
    Assumption("compute", "true training FLOPs, local modules and head counted", "the paper counts units; its gap 3"),
    Assumption(
        "local modules on text",
        "encoder and decoder run on all tokens, text included (model.local_text = true)",
        "not said (gap 8)",
    ),
    Assumption(
        "patch query pooling",
        "max over a patch's hidden states (model.pooling = max)",
        "pooling is not said (gap 8); max as in BLT",
    ),
    Assumption(
        "queries per patch",
        "two queries of the local width (model.queries_per_patch = 2)",
        "not said; BLT's is dim_global / dim_local",
    ),
    Assumption("decoder input", "the encoder's token states (model.decoder_input = encoder)", "not said (gap 8)"),
    Assumption(
        "decoder cross-attention",
        "all closed units of the document (model.cross_attention = all)",
        "'the earlier units' (gap 8); BLT reads the preceding one",
    ),
    Assumption(
        "cross-attention positions", "rotary on units; a token stands at the last unit that it may see", "not said (gap 8)"
    ),
    Assumption("cut patches", "a patch cut short closes at the next token", "when a ragged patch may be seen is not said"),
    Assumption("output head", "apart from the input embedding (model.tied_head = false)", "not said"),
    Assumption(
        "baseline shape",
        "the global transformer's shape with its own embedding and head (baseline_match = global_shape)",
        "not said (gap 7)",
    ),
    Assumption(
        "baseline parameters",
        "layers added until its non-embedding parameters equal LST's within 1% (baseline_match = lst_params)",
        "the other reading of gap 7",
    ),
    Assumption(
        "size names",
        "total parameters of the untied baseline at 32,000 + 501 + 2 ids, within 2%",
        "how sizes count is not said (gap 7)",
    ),
    Assumption(
        "local modules' shape",
        "Table 7's proportions at every size: half the width, 1 encoder layer, a third of the layers (rounded up) as decoder",
        "how they scale is not said (gaps 3 and 7)",
    ),
    Assumption("ending scores", "log-likelihood per token of the ending", "normalisation is not said (gap 8)"),
    Assumption(
        "curriculum",
        "aligned to 1/3 of the steps (patching.curriculum_aligned_until), falling to 0 at 2/3 (patching.curriculum_static_from); "
        "starts from silence apart (patching.silence)",
        "tau 1 and tau 2 are given as thirds only (gap 9)",
    ),
    Assumption(
        "patching draw", "static or aligned is drawn per sequence (patching.draw = sequence)", "3.1 and 4.2 differ (gap 9)"
    ),
    Assumption("mixed share", "half of the draws are aligned (patching.mixed_aligned_share = 0.5)", "not said"),
    Assumption("aligned unit", "a word (patching.aligned_unit = word)", "the paper has words and pieces (gap 9)"),
    Assumption(
        "silence",
        "frames outside words are patches of their own (patching.silence = separate); a span ends before the next word",
        "gap 9",
    ),
    Assumption(
        "speech pieces",
        "SentencePiece BPE (model.speech_bpe_vocab), every speech token a piece, each span encoded apart; losses are those of "
        "its one encoding, over the speech tokens that pieces stand for",
        "of BPE SpeechLLM only the number of pieces and of training sequences is given",
    ),
    Assumption(
        "merged silence",
        "joins the word before it (patching.merge_side = previous); one with no word there stays a patch",
        "how silence merges is not said (gap 9)",
    ),
    Assumption(
        "piece times",
        "a word's frames are divided among its text pieces by their characters, each a frame where they suffice",
        "the paper maps a character alignment to pieces, which a data set seldom has",
    ),
    Assumption(
        "alignment noise",
        "both borders of each unit move, by 20 or 40 ms to either side with equal chance; at 25 Hz 20 ms are a frame every "
        "second time (patching.boundary_noise_ms); a document's errors are the same in every pass and at evaluation",
        "A.11 has +-20 to 40 ms; which borders move, how they become frames and whether evaluation has them is not said",
    ),
    Assumption("mixture", "kept in tokens: the share of interleaved sequences is solved for each patching", "DESIGN rule 10"),
    Assumption("context", "equal units in a sequence; a patched arm sees more tokens", "context_match = units"),
    Assumption(
        "WSD schedule",
        "where a study asks for it: the last 20% of the steps decay, factor 1 - sqrt(progress), to the cosine's end",
        "the paper uses a cosine; shares and shape as in arXiv 2405.18392, after arXiv 2404.06395",
    ),
    Assumption("bad steps", "a loss or gradient norm that is no finite number halts the run; nothing is skipped", "not said"),
    Assumption(
        "document lengths",
        "where a plan is made from the paper's statistics: each sequence is one document; only attention's pairs depend on it",
        "not said, nor whether documents in a sequence are kept apart",
    ),
    Assumption(
        "mean patch lengths",
        "where a plan is made from the paper's statistics: a word with its silence is 9.4 speech tokens, so (9.4 - 5.8) / 3.7 "
        "silences a word; 5.8 / 5.0 pieces a word",
        "Table 6 has the means of words, silences and merged patches, and how many there are of each is not said (gap 9)",
    ),
    Assumption(
        "fine-tuning",
        "a tenth of the pretraining's peak learning rate (after.lr_scale), no warm-up, sequences of words in both modalities, "
        "static patches",
        "Table 5 gives steps, and a batch for ASR alone",
    ),
    Assumption("epochs", "sequences start at evenly drawn places; a pass is complete in expectation", "not said (gap 5)"),
)
