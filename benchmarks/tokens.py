"""What the wrong tokens cost: bits per byte of the base under the file's own pre-tokenizer and under GPT-2's cut.

Real answers whose ids differ between the two, the same text and model: ``python -m benchmarks.tokens``. GPT-2's cut is
what transformers' GGUF import gives SmolLM2 and what this package trained with before ``ERRATA.md``, entry 2.
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

from realm.conversations.conversation import Conversation
from realm.conversations.readers import read_conversations
from realm.core.profile import load_profile
from realm.dialogue.encoder import Encoder, encoder_of
from realm.dialogue.format import chat_format
from realm.evaluation.intervals import bootstrap, ratio_of_sums
from realm.models import assets
from realm.training.base import load_base
from realm.training.likelihood import likelihood

RESULTS = Path(__file__).parent / "results" / "tokens.csv"
CONVERSATIONS, BITS, SEED = 100, np.log(2), 1
PROFILE = load_profile("cpu")
CONFIG = PROFILE.realm_sft.model_copy(update={"method": "lora"})  # the weights as they are, not rounded


def cut_by_gpt2(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return other


def first_rounds(limit: int) -> list[Conversation]:
    """The first question and answer of each conversation, where both fit."""
    talks = (c for c in read_conversations(assets.data("sharegpt")) if len(c.messages) > 1 and c.opens_session)
    rounds = (Conversation(c.id, c.messages[:2]) for c in talks)
    return list(itertools.islice((c for c in rounds if c.rounds and len(c.messages[1].content) < 2 * limit), 1_000))


def main() -> None:
    own = encoder_of(PROFILE, "realm_sft")
    other_tokenizer = cut_by_gpt2(own.tokenizer)
    other = Encoder(
        other_tokenizer, chat_format(PROFILE.dialogue.template, other_tokenizer), "assistant", own.max_length
    )
    talks = first_rounds(PROFILE.dialogue.max_length)
    pairs = zip(talks, own.encode_all(talks), other.encode_all(talks), strict=True)
    hit = [
        (talk, a, b) for talk, a, b in pairs if not (a.cut or b.cut) and a.input_ids.tolist() != b.input_ids.tolist()
    ]
    print(f"answers_with_other_ids={len(hit)} of {len(talks)}")
    hit = hit[:CONVERSATIONS]
    size = np.array([len(talk.messages[1].content.encode()) for talk, _, _ in hit])
    model = load_base(CONFIG)
    gpt2 = likelihood(model, [b for _, _, b in hit], other_tokenizer, "GPT-2's cut").nll / BITS
    file = likelihood(model, [a for _, a, _ in hit], own.tokenizer, "the file's cut").nll / BITS
    RESULTS.parent.mkdir(exist_ok=True)
    pd.DataFrame({"bytes": size, "bits_gpt2_cut": gpt2, "bits_file_cut": file}).to_csv(RESULTS, index=False)
    print(f"bits_per_byte_gpt2_cut={ratio_of_sums(gpt2, size):.4f}")
    print(f"bits_per_byte_file_cut={ratio_of_sums(file, size):.4f}")
    low, high = bootstrap([gpt2 - file, size], ratio_of_sums, SEED)
    print(f"difference={ratio_of_sums(gpt2 - file, size):.4f} [{low:.4f}, {high:.4f}] n={len(hit)}")


if __name__ == "__main__":
    main()
