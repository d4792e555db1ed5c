"""A tokenizer made in code, one token a byte, and what it makes of prompts, answers and responses."""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from train.problems.files import Message

_ENDS = "ends_of_a_response"
_SAID = "the assistant's words"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 256 bytes and six special tokens, with a chat template: any text round-trips."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Byte-pair encoding without a single merge: every byte stays its own token.
    core = Tokenizer(BPE(vocab={byte: number for number, byte in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> list[int]:
    """Return the ids of a conversation up to where the assistant speaks.

    Raises:
        ValueError: the chat template refuses the conversation, or makes nothing of it.
    """
    turns = [vars(turn) for turn in prompt]
    try:
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program, and may raise anything
        words = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ValueError(
            f"the chat template refuses the prompt: {words}; change that row, or the template in the model's folder"
        ) from error
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError("the chat template makes an empty prompt; correct the template in the model's folder")
    return ids


def answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Return the ids of a response that is this answer, with the token that ends it."""
    return [*tokenizer(answer, add_special_tokens=False)["input_ids"], ends(tokenizer)[0]]


def ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return every id that ends a response; a demonstrated answer ends with the first of them."""
    found: tuple[int, ...] = getattr(tokenizer, _ENDS, (tokenizer.eos_token_id,))
    return found


def set_ends(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> None:
    """Let a response end at these ids too; the one with which the chat template ends a turn comes first."""
    turn = end_of_turn(tokenizer)
    known = dict.fromkeys((tokenizer.eos_token_id, *ids))
    setattr(tokenizer, _ENDS, tuple(sorted(known, key=lambda id: id != turn)))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token that the chat template writes behind the assistant's turn; None if it writes none."""
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _SAID}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # `prompt_ids` says what a template raises
        return None
    _, said, behind = text.rpartition(_SAID)
    known = getattr(tokenizer, "added_tokens_decoder", {})
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"] if said else []
    return next((id for id in ids if id in known), None)


def warnings_of(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return a warning if the chat template ends a turn with a token that does not end a response."""
    turn = end_of_turn(tokenizer)
    if turn is None or turn in ends(tokenizer):
        return []
    token, known = tokenizer.convert_ids_to_tokens(turn), tokenizer.convert_ids_to_tokens(list(ends(tokenizer)))
    return [
        f"the chat template ends a turn with {token}, but a response ends only at {', '.join(known)}: a model that has "
        f"learned the template is cut off at the longest response; add {turn} to eos_token_id in the model's "
        "generation_config.json"
    ]
