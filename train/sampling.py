"""Responses drawn from the policy by transformers. Another engine is another function with this signature."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from train.batch import Ids, pack
from train.seeds import derive


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Ids],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    at_once: int = 0,
) -> list[list[int]]:
    """Draw one response to each prompt from the tempered softmax itself: no top-k, no top-p, no penalty.

    Args:
        model: the policy.
        tokenizer: names the padding and end-of-text tokens.
        prompts: token ids of each prompt; repeat one to draw from it again.
        max_tokens: the longest response.
        temperature: divides the logits, > 0.
        seed: the same seed draws the same responses, and the caller's random state stays as it was.
        at_once: the most responses drawn at a time; 0: all.

    Returns:
        Token ids of each response, up to and including its end-of-text token if it has one.
    """
    if 0 < at_once < len(prompts):
        parts = [prompts[first : first + at_once] for first in range(0, len(prompts), at_once)]
        words = {"max_tokens": max_tokens, "temperature": temperature}
        return [
            said
            for number, part in enumerate(parts)
            for said in sample(model, tokenizer, part, seed=derive(seed, "part", number), **words)
        ]
    batch = pack(prompts, [()] * len(prompts), tokenizer.pad_token_id)
    settings = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,  # the library's default is 50
        top_p=1.0,
        max_new_tokens=max_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        full = model.generate(batch.tokens, attention_mask=batch.attention, generation_config=settings)
    drawn = full[:, batch.tokens.shape[1] :].tolist()
    return [ids[: ids.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in ids else ids for ids in drawn]
