"""Memory of one process, part by part, at the moments when it is fullest; each formula with its own words."""

from typing import NamedTuple

from rpg_ref import fused
from train.engines.by_transformers import SPARE
from train.planning.case import Case
from train.planning.devices import GIB

WIDE = 4
"""Bytes of a float32."""
MOMENTS = 2
"""Numbers that either optimiser keeps of each parameter."""
CUMULATIVE = 28
"""Bytes of each logit of a draw at most: three float32, and its probability in float64 while it is summed, twice."""
FILE = 2
"""How often a file of a checkpoint is in memory while it is written: tensor by tensor as bytes, and as one."""
GRAPHS = 2 * GIB
"""What vLLM is taken to keep besides weights and cache, asleep too: CUDA graphs, workspaces, its own activations."""


class Part(NamedTuple):
    """What takes memory.

    Attributes:
        name: what it is.
        bytes: how many.
        how: the arithmetic.
    """

    name: str
    bytes: float
    how: str


class Moment(NamedTuple):
    """A moment of a phase, and all that is in memory then.

    Attributes:
        phase: start, draw, learn, or keep.
        name: when.
        parts: what is there.
    """

    phase: str
    name: str
    parts: list[Part]

    @property
    def bytes(self) -> float:
        """All of them."""
        return sum(part.bytes for part in self.parts)


def moments(case: Case) -> list[Moment]:
    """Return the moments at which memory may be fullest, in the order of a step."""
    held = kept(case)
    found = [Moment("start", "weights are about to be divided", [unsharded(case)])] if case.sharded else []
    if case.vllm:
        found.append(Moment("draw", "vLLM is given the weights", [*held, *engine(case), on_its_way(case)]))
    else:
        whole = [copy(case)] if case.sharded else []
        found.append(Moment("draw", "prompts are read", [*held, *whole, prompts(case), sampler(case)]))
        found.append(Moment("draw", "the longest responses end", [*held, *whole, cache(case), sampler(case)]))
    held = [*held, gradients(case), *asleep(case)]
    whole = [root(case)] if case.sharded else []
    loss = [inputs(case), logits(case), head_gradient(case)]
    found.append(Moment("learn", "the loss of a micro-batch", [*held, *whole, *loss]))
    back = [inputs(case), block(case), head_waits(case), *([gathered(case)] if case.sharded else [])]
    found.append(Moment("learn", "a block on the way back", [*held, *whole, *back]))
    found.append(Moment("learn", "the end of the way back", [*held, *whole, embedding_gradient(case)]))
    if case.devices.is_cpu:
        parts = [*kept(case), *asleep(case), *([collected(case)] if case.ranks > 1 else []), file(case)]
        found.append(Moment("keep", "the optimiser is written", parts))
    return found


def kept(case: Case) -> list[Part]:
    """Return what is there all the time."""
    number, ranks = case.sizes.parameters, case.ranks
    reference = [Part("reference, float32", WIDE * number / ranks, f"4 B × {_m(number)}{_of(ranks)}")]
    return [
        Part("weights, float32", WIDE * number / ranks, f"4 B × {_m(number)}{_of(ranks)}"),
        Part("optimiser", MOMENTS * WIDE * number / ranks, f"2 moments × 4 B × {_m(number)}{_of(ranks)}"),
        *(reference if case.config.reference.replace != "rollout" else []),
    ]


def unsharded(case: Case) -> Part:
    """Every process has the whole model, and the reference beside it, before its share is cut out."""
    models = 1 if case.config.reference.replace == "rollout" else 2
    number = case.sizes.parameters
    more = " × 2, the reference too" if models == 2 else ""
    return Part("whole weights, float32", WIDE * number * models, f"4 B × {_m(number)}{more}, on every process")


def copy(case: Case) -> Part:
    """All blocks gathered, to sample from."""
    return Part(
        "whole copy to sample from",
        case.narrow * case.sizes.parameters,
        f"{case.narrow} B × {_m(case.sizes.parameters)}, gathered",
    )


def key_value_bytes(case: Case) -> int:
    """Return the bytes of a token's keys and values, in all blocks."""
    return 2 * case.sizes.layers * case.sizes.keys * case.narrow


def cache(case: Case) -> Part:
    """Keys and values of all responses drawn at a time, room to spare included; one block's twice while it is moved."""
    size, layers, tokens = key_value_bytes(case), case.sizes.layers, case.longest + SPARE
    return Part(
        "keys and values",
        case.seats * tokens * size * (1 + 1 / layers),
        f"{case.seats} responses × {tokens} tokens of room × {size:,} B, and 1/{layers} of it while it is moved",
    )


def prompts(case: Case) -> Part:
    """A block's widest tensors while all distinct prompts are read at once: three of its MLP, three of the stream."""
    distinct = -(-case.seats // case.config.rollout.samples)
    tokens = distinct * case.config.data.max_prompt_tokens
    each = 3 * (case.sizes.mlp_width + case.sizes.width) * case.narrow + key_value_bytes(case)
    return Part("pass over prompts", tokens * each, f"{distinct} prompts × {tokens // distinct} tokens × {each:,} B")


def sampler(case: Case) -> Part:
    """The logits of the next tokens, and what a token is found by."""
    V = case.sizes.vocabulary
    return Part("next tokens' logits", case.seats * V * CUMULATIVE, f"{case.seats} responses × {V:,} × {CUMULATIVE} B")


def engine(case: Case) -> list[Part]:
    """Return vLLM's weights, its cache, and the rest of it; its head is its own even where the policy's is tied."""
    number = case.sizes.parameters + (case.sizes.head if case.sizes.tied else 0)
    apart = ", head and embedding apart" if case.sizes.tied else ""
    return [
        Part("engine's weights", case.narrow * number, f"{case.narrow} B × {_m(number)}{apart}"),
        Part("engine's keys and values", case.config.engine.kv_gib * GIB, "engine.kv_gib"),
        Part("engine's graphs and workspaces", GRAPHS, "2 GiB, assumed"),
    ]


def asleep(case: Case) -> list[Part]:
    """Return what is left of the engine while the policy learns: on a GPU it sleeps, on a processor it cannot."""
    return engine(case)[0 if case.devices.is_cpu else 2 :] if case.vllm else []


def on_its_way(case: Case) -> Part:
    """The largest weight while it is pushed: whole in float32, and as what vLLM makes of it before it copies that."""
    V, d = case.sizes.vocabulary, case.sizes.width
    each = WIDE * case.sharded + case.narrow
    return Part("weight on its way", each * V * d, f"{each} B × {V:,} × {d:,}, the head")


def gradients(case: Case) -> Part:
    """Gradients, kept where the weights are."""
    number = case.sizes.parameters
    return Part("gradients, float32", WIDE * number / case.ranks, f"4 B × {_m(number)}{_of(case.ranks)}")


def root(case: Case) -> Part:
    """Embedding and head, gathered from the beginning of a pass to its end."""
    return Part(
        "gathered embedding and head",
        case.narrow * case.sizes.root,
        f"{case.narrow} B × {_m(case.sizes.root)}",
    )


def gathered(case: Case) -> Part:
    """Two blocks gathered, the next one's buffer; a block's gradients as they come, and in float32 as they leave."""
    size, b = case.narrow, case.sizes.block
    return Part(
        "gathered blocks and their gradients",
        (3 * size + size + WIDE) * b,
        f"(3 × {size} B + {size} B + 4 B) × {_m(b)}, a block",
    )


def inputs(case: Case) -> Part:
    """What the way back needs of every block: what goes in, or without recompute all that autograd keeps."""
    each, layers = kept_bytes(case), case.sizes.layers
    name = "what goes into each block" if case.config.optimizer.recompute else "all blocks' activations"
    return Part(name, case.micro * layers * each, f"{case.micro:,} tokens × {layers} blocks × {each:,} B")


def kept_bytes(case: Case) -> int:
    """Return the bytes that every block keeps of a token until the way back."""
    return case.narrow * case.sizes.width if case.config.optimizer.recompute else inner_bytes(case)


def inner_bytes(case: Case) -> int:
    """Return what autograd keeps of a token in a block, in bytes, s being those of a number in the passes.

    Of each norm of × its float32 copy, its quotient and the product with its weight: (4 + 2s)d, twice. Where heads are
    normalised, their queries and keys likewise, but for the product: (4 + s)(A + K). Of attention queries, keys,
    values and result, 4sA, for a mask of padding repeats keys and values for every head; and that mask as numbers, s
    for each token of a sequence. Of the MLP gate, its activation, the other factor and the product: 4sm. One number a
    norm and a head is left out.
    """
    s, d, m = case.narrow, case.sizes.width, case.sizes.mlp_width
    A, K = case.sizes.queries, case.sizes.keys
    heads = (WIDE + s) * (A + K) if case.sizes.head_norms else 0
    return 2 * (WIDE + 2 * s) * d + heads + 4 * s * A + s * case.longest + 4 * s * m


def block(case: Case) -> Part:
    """One block's activations, made again where they are not kept; two gradients of the MLP's width; a mask."""
    again = inner_bytes(case) if case.config.optimizer.recompute else 0
    # The mask of padding, which all blocks share, is a byte for each pair of a sequence's tokens.
    each = again + 2 * case.narrow * case.sizes.mlp_width + case.longest
    again_too = "activations and " if again else ""
    return Part(f"one block's {again_too}gradients", case.micro * each, f"{case.micro:,} tokens × {each:,} B")


def logits(case: Case) -> Part:
    """A chunk's logits in float32, and their gradient in the dtype of the passes; hidden states and their gradient."""
    V, d, s = case.sizes.vocabulary, case.sizes.width, case.narrow
    most = fused.LOGITS_AT_ONCE["cpu" if case.devices.is_cpu else "cuda"]
    chunk = min(max(1, most // V), case.micro)
    each = WIDE + (s if s < WIDE else 0)
    return Part(
        "chunk of logits, hidden states",
        chunk * V * each + 2 * s * d * case.micro,
        f"{chunk:,} tokens × {V:,} × {each} B + {case.micro:,} tokens × 2 × {s} B × {d:,}",
    )


def head_gradient(case: Case) -> Part:
    """The head's gradient in float32; in half precision also the product that is added to it."""
    copies = 2 if case.narrow < WIDE else 1
    V, d = case.sizes.vocabulary, case.sizes.width
    more = ", and of a chunk" if copies == 2 else ""
    return Part("gradient of the head, float32", copies * WIDE * V * d, f"{copies} × 4 B × {V:,} × {d:,}{more}")


def head_waits(case: Case) -> Part:
    """The head's gradient in the dtype of the passes, until the pass has come back to the embedding."""
    V, d = case.sizes.vocabulary, case.sizes.width
    return Part("gradient of the head", case.narrow * V * d, f"{case.narrow} B × {V:,} × {d:,}")


def embedding_gradient(case: Case) -> Part:
    """The gradients of embedding and head and their sum; sharded, all in float32 once more, as they leave."""
    copies = 3 if case.sizes.tied else 2
    V, d, root_ = case.sizes.vocabulary, case.sizes.width, case.sizes.root
    leaving = WIDE * root_ if case.sharded else 0
    how = f"{copies} × {case.narrow} B × {V:,} × {d:,}" + (f" + 4 B × {_m(root_)}" if leaving else "")
    return Part("gradients of embedding and head", copies * case.narrow * V * d + leaving, how)


def host(case: Case) -> list[Part]:
    """Return what a run takes of the memory of its machine, taken to be one, where its tensors are on GPUs."""
    number = case.sizes.parameters
    return [
        Part("loading the model", WIDE * number * case.ranks, f"4 B × {_m(number)}{_times(case.ranks)}"),
        collected(case),
        file(case),
    ]


def collected(case: Case) -> Part:
    """All that a checkpoint holds, whole, in the memory of the first process."""
    number, models = case.sizes.parameters, 1 if case.config.reference.replace == "rollout" else 2
    how = f"4 B × {_m(number)} × ({models} of weights + {MOMENTS} of the optimiser)"
    return Part("a checkpoint, gathered", (models + MOMENTS) * WIDE * number, how)


def file(case: Case) -> Part:
    """The largest file of a checkpoint, the optimiser's."""
    number = case.sizes.parameters
    how = f"{FILE} copies × {MOMENTS} moments × 4 B × {_m(number)}"
    return Part("its largest file, as it is written", FILE * MOMENTS * WIDE * number, how)


def _m(number: int) -> str:
    return f"{number / 1e6:,.1f} M"


def _times(ranks: int) -> str:
    return f" × {ranks} processes, each of which loads it" if ranks > 1 else ""


def _of(ranks: int) -> str:
    return f" / {ranks} processes" if ranks > 1 else ""
