"""What a run is made of: every choice, its range and its meaning, in frozen records."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Weight = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]

PACKAGE = "package:"
"""What a model's path begins with when the model is a file of an installed package."""
HUB = "hub:"
"""What a model or a data set begins with that is to be fetched from the Hugging Face hub: hub:ORG/NAME[@REVISION]."""


@dataclass(frozen=True)
class DataConfig:
    """Where the problems come from.

    Attributes:
        train: a parquet or JSONL file of problems to train on, a folder of such files, or hub:ORG/NAME[@REVISION], a
            data set of the Hugging Face hub (its split train); left out: two-digit arithmetic, generated.
        test: the same, or a list of several, each evaluated by its name; of a hub data set the split test; left out:
            the last test_problems of the training problems.
        test_problems: how many problems are held out when no test file is given.
        rule: what counts as right: the very answer (exact), what the math-verify package finds in the response
            (math-verify), or the rule of the paper's released code (released).
        max_prompt_tokens: longer prompts lose their beginning.
        contradictions: whether a prompt that comes with two answers is an error (refuse) or left out (drop).
    """

    train: str | None = None
    test: str | tuple[str, ...] | None = None
    test_problems: Count = 256
    rule: Literal["exact", "math-verify", "released"] = "exact"
    max_prompt_tokens: Count = 448
    contradictions: Literal["refuse", "drop"] = "refuse"

    def __post_init__(self) -> None:
        """Refuse a test file that would be left unread."""
        if self.test is not None and self.train is None:
            raise ValueError(f"test is {self.test!r} but train is left out; name both, or neither")


class Shape(NamedTuple):
    """The sizes of a random model, as ModelConfig names them."""

    width: int
    mlp_width: int
    layers: int
    heads: int
    key_value_heads: int


@dataclass(frozen=True)
class ModelConfig:
    """The policy: a model that exists, or a small one of the Qwen3 architecture with random weights.

    Attributes:
        path: a Hugging Face folder, hub:ORG/NAME[@REVISION] for one to be fetched from the hub, a .gguf file, or
            package:NAME for the .gguf file of an installed package; left out: a random one, and the five sizes below
            say of what shape.
        width: size of the residual stream.
        mlp_width: hidden size of each feed-forward block.
        layers: number of blocks.
        heads: attention heads; they divide the width, and each is of even size.
        key_value_heads: heads that keys and values have; they divide the heads.
        context: longest sequence, prompt and response together.
        precision: of passes, float32 or bfloat16; weights are kept and moved, and gradients summed, in float32.
    """

    path: str | None = None
    width: Count | None = None
    mlp_width: Count | None = None
    layers: Count | None = None
    heads: Count | None = None
    key_value_heads: Count | None = None
    context: Count = 512
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        """Check that there is one model, and what divides what."""
        sizes = {name: getattr(self, name) for name in Shape._fields}
        given = [name for name, size in sizes.items() if size is not None]
        if self.path is not None:
            if given:
                raise ValueError(f"path is {self.path!r}, whose shape is its own; leave out {', '.join(given)}")
            return
        if len(given) < len(sizes):
            missing = ", ".join(name for name in sizes if name not in given)
            raise ValueError(f"a random model lacks {missing}; give all five sizes, or the path of a model")
        width, heads, key_value_heads = self.shape.width, self.shape.heads, self.shape.key_value_heads
        if width % (2 * heads):
            raise ValueError(f"width {width} is not a multiple of 2 x heads = {2 * heads}; choose one that is")
        if heads % key_value_heads:
            raise ValueError(f"heads {heads} is not a multiple of key_value_heads {key_value_heads}")

    @property
    def shape(self) -> Shape:
        """The five sizes of a random model; a model that has a path has none."""
        return Shape(*(getattr(self, name) for name in Shape._fields))


@dataclass(frozen=True)
class WarmStartConfig:
    """Supervised steps that teach the format and a first, unreliable policy.

    Attributes:
        steps: optimiser steps; 0 leaves the model at random.
        batch: demonstrations a step.
        learning_rate: AdamW's, after a linear warm-up.
        warm_up: steps of that warm-up.
        weight_decay: AdamW's.
        slip: share of demonstrations in which one digit of the answer is wrong; the policy learns to slip as often.
    """

    steps: Natural = 0
    batch: Count = 64
    learning_rate: Positive = 1e-3
    warm_up: Natural = 20
    weight_decay: Weight = 0.1
    slip: Share = 0.0


@dataclass(frozen=True)
class RolloutConfig:
    """What is drawn from the policy at each step.

    Attributes:
        prompts: problems a step.
        samples: responses to each, a group.
        max_tokens: longest response.
        at_once: the most responses drawn at a time; 0: all.
        temperature: divides the logits, of the sampler and of the trained policy alike.
        filter: whether groups that are all right or all wrong are dropped and others drawn instead.
        oversample: with filter, problems drawn at a time, as a multiple of prompts; what is left over is dropped, since
            the next step's π_old would not be its sampler.
        draws: with filter, the most times that problems are drawn for one step.
        overlong_buffer: the last tokens of a response, out of max_tokens, in which its reward falls; 0: none.
        overlong_penalty: by how much the reward has fallen at max_tokens.
    """

    prompts: Count
    samples: Count
    max_tokens: Count
    at_once: Natural = 0
    temperature: Positive = 1.0
    filter: bool = False
    oversample: Count = 1
    draws: Count = 20
    overlong_buffer: Natural = 0
    overlong_penalty: Weight = 1.0

    def __post_init__(self) -> None:
        """Check what one number asks of another."""
        if self.overlong_buffer > self.max_tokens:
            raise ValueError(f"overlong_buffer {self.overlong_buffer} exceeds max_tokens {self.max_tokens}; lower it")
        if self.filter and self.samples < 2:
            raise ValueError(f"filter drops every group of samples = {self.samples}; raise samples, or drop filter")


@dataclass(frozen=True)
class EngineConfig:
    """What draws responses, and how far its log-probabilities may be from the trainer's.

    Attributes:
        kind: transformers, or vllm: in this process, one engine a process.
        kv_gib: memory that vllm has for keys and values, in GiB a process.
        max_gap: a step warns where the mean of |log π_old − log π_sampler| over its tokens exceeds this, in nats; where
            the engine is five times as far off right after it was given new weights, the run ends; left out: 0.03 in
            bfloat16, 0.001 in float32.
        correct: multiply each sample's loss by the constant π_old/π_sampler, truncated at high (truncate), or zero
            outside [low, high] (mask); none: as if the trainer had sampled.
        low: with mask, the smallest weight that counts.
        high: the largest weight.
        timeout: seconds that vllm may take for all the responses of a draw before the process ends, its stacks printed.
    """

    kind: Literal["transformers", "vllm"] = "transformers"
    kv_gib: Positive = 1.0
    max_gap: Positive | None = None
    correct: Literal["none", "truncate", "mask"] = "none"
    low: Weight = 0.5
    high: Positive = 2.0
    timeout: Positive = 3600.0

    def gap(self, precision: str) -> float:
        """Return max_gap, or where it is left out what the rounding of passes in that precision allows."""
        # In bfloat16 about 0.01 is usual of a model of 4 billion parameters; in float32 1e-6 of small ones.
        return self.max_gap or {"bfloat16": 0.03, "float32": 0.001}[precision]

    def __post_init__(self) -> None:
        """Check that there is something between the bounds."""
        if self.low > self.high:
            raise ValueError(f"low {self.low} exceeds high {self.high}; lower the one or raise the other")


@dataclass(frozen=True)
class OptimizerConfig:
    """How the policy follows the recipe's gradient.

    Attributes:
        learning_rate: AdamW's, after a linear warm-up.
        warm_up: optimiser steps of that warm-up.
        weight_decay: AdamW's.
        max_grad_norm: longer gradients are shortened to this.
        prompts: problems in the mini-batch of one optimiser step; a divisor of rollout.prompts.
        kind: adamw, or schedule-free (Defazio et al. 2024), which samples and evaluates at its average.
        micro_tokens: the most tokens, padding counted, that go through the model on a rank at a time, unless a sequence
            is longer; the gradient is that of the whole mini-batch. 0: all at once.
        recompute: whether activations within a block are computed again on the way back instead of being kept.
    """

    learning_rate: Positive
    prompts: Count
    warm_up: Natural = 0
    weight_decay: Weight = 0.1
    max_grad_norm: Positive = 1.0
    kind: Literal["adamw", "schedule-free"] = "adamw"
    micro_tokens: Natural = 0
    recompute: bool = False


@dataclass(frozen=True)
class ReferenceConfig:
    """When π_ref is replaced by π_θ.

    Attributes:
        replace: at every rollout (π_ref = π_old), every some optimiser steps (steps), when the moving average of
            KL(π_θ‖π_ref) exceeds kappa (kl), or never.
        every: optimiser steps, where replace is steps.
        kappa: nats a sample of the recipe's level, a token for most, where replace is kl.
        decay: of the moving average.
    """

    replace: Literal["rollout", "steps", "kl", "never"] = "rollout"
    every: Count = 160
    kappa: Positive = 0.01
    decay: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9


@dataclass(frozen=True)
class Config:
    """A whole run.

    Attributes:
        name: of the run; its folder is runs/NAME-seedSEED unless run_dir says otherwise.
        recipe: a name in rpg_ref.RECIPES.
        steps: rollout batches; 0 ends after the warm start.
        model: the transformer.
        rollout: what is drawn.
        optimizer: how the policy moves.
        warm_start: the supervised start.
        data: where problems come from, and what counts as right.
        engine: what draws.
        reference: when π_ref is replaced.
        seed: of weights, data and sampling.
        beta: strength of the divergence penalty; left out: the recipe's own.
        eval_samples: k of Mean@k, the responses drawn to each held-out problem at an evaluation.
        eval_every: rollout batches from one evaluation to the next; 0: only before and after.
        checkpoint_every: rollout batches from one checkpoint to the next; the last is always kept.
        transcripts: responses to write down, of each rollout batch.
        loggers: where metrics go besides metrics.jsonl: tensorboard, wandb, trackio.
        threads: of the processor; 0 leaves the choice to torch.
        device: cpu, cuda (one GPU a process), or auto: cuda where there is one.
        timeout: seconds that a process waits for the others, under torchrun, before it gives up.
        run_dir: folder to write; it must be new or empty.
    """

    name: str
    recipe: str
    steps: Natural
    model: ModelConfig
    rollout: RolloutConfig
    optimizer: OptimizerConfig
    warm_start: WarmStartConfig = WarmStartConfig()
    data: DataConfig = DataConfig()
    engine: EngineConfig = EngineConfig()
    reference: ReferenceConfig = ReferenceConfig()
    seed: Natural = 0
    beta: Weight | None = None
    eval_samples: Count = 8
    eval_every: Natural = 0
    checkpoint_every: Count = 10
    transcripts: Natural = 2
    loggers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    threads: Natural = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    timeout: Positive = 600.0
    run_dir: str | None = None

    def __post_init__(self) -> None:
        """Check what one section asks of another."""
        if self.rollout.prompts % self.optimizer.prompts:
            raise ValueError(
                f"optimizer.prompts {self.optimizer.prompts} does not divide rollout.prompts {self.rollout.prompts}; "
                "choose a divisor"
            )
        longest = self.data.max_prompt_tokens + self.rollout.max_tokens
        if longest > self.model.context:
            raise ValueError(
                f"data.max_prompt_tokens + rollout.max_tokens = {longest} exceeds model.context {self.model.context}; "
                "lower one of the first two or raise the last"
            )

    @property
    def folder(self) -> Path:
        """The folder this run writes."""
        return Path(self.run_dir or f"runs/{self.name}-seed{self.seed}")


@dataclass(frozen=True)
class EvalConfig:
    """An evaluation of a model on a file of problems.

    Attributes:
        model: as model.path of a run: a Hugging Face folder, such as a run's ``model``, or a .gguf file.
        problems: a parquet or JSONL file in the schema of the paper's data.
        k: responses to each problem.
        rule: what counts as right, as data.rule of a run.
        max_tokens: longest response.
        max_prompt_tokens: longer prompts lose their beginning.
        at_once: the most responses drawn at a time; 0: all.
        temperature: divides the logits.
        seed: of the sampling.
        device: cpu, cuda, or auto: cuda where there is one.
        engine: as engine of a run.
        precision: as model.precision of a run.
        contradictions: whether a prompt that comes with two answers is an error (refuse) or left out (drop).
    """

    model: str
    problems: str
    k: Count = 32
    rule: Literal["exact", "math-verify", "released"] = "math-verify"
    max_tokens: Count = 2048
    max_prompt_tokens: Count = 2048
    at_once: Natural = 256
    temperature: Positive = 1.0
    seed: Natural = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: EngineConfig = EngineConfig()
    precision: Literal["float32", "bfloat16"] = "float32"
    contradictions: Literal["refuse", "drop"] = "refuse"
