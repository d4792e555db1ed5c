"""vLLM in this process, one engine a process: it wakes, is given the policy's weights, draws, and sleeps.

On a GPU its weights and its cache are freed while it sleeps. Each push is proved (``train.engines.canary``).
"""

import copy
import faulthandler
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from train import ranks
from train.batch import Ids
from train.config import EngineConfig
from train.engines import canary
from train.engines.engine import Demands, Said, StaleWeights
from train.policy import Policy
from train.seeds import derive
from train.tokenizer import ends

ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",  # nothing leaves the machine
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else the trainer's own threads are bound as well
}
"""What is set for vLLM where the user has not."""
AT_ONCE = 256
"""Responses drawn at a time, unless the run says otherwise."""
STDERR = 2
LOOK, LOOK_AT, LOOK_BACK = 16, 8, 64
"""The canary draws so many tokens to so many prompts, of which it keeps the last so many tokens."""


def described(policy: Policy) -> PretrainedConfig:
    """Return the config that vLLM builds its model from: the policy's, with a head of its own.

    A tied head that is pushed as the embedding alone stays as it was in vLLM 0.32 where its kernel has packed it, on a
    processor; whether a tied model takes one pushed by its own name is up to each model's loader.
    """
    config = copy.deepcopy(policy.model.config)
    config.architectures, config.tie_word_embeddings = [type(policy.model).__name__], False
    return config


def can_sleep(policy: Policy) -> bool:
    """Say whether vLLM can free its memory while it does not draw."""
    return policy.device.type == "cuda"


@contextmanager
def _refusals() -> Iterator[None]:
    """Say in this project's words what to change where vLLM does not start, and in vLLM's why."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise ValueError(
            f"vLLM does not start: {why}; change engine.kv_gib, model.context, rollout.at_once or the model, or take "
            "engine.kind = transformers"
        ) from error


class VLLM:
    """A vLLM engine without weights until it is given some."""

    def __init__(
        self, policy: Policy, tokenizer: PreTrainedTokenizerBase, settings: EngineConfig, demands: Demands
    ) -> None:
        """Start vLLM; as ``open_engine``."""
        self.tokenizer, self.settings, self.demands = tokenizer, settings, demands
        self.prompts = [list(prompt[-LOOK_BACK:]) for prompt in demands.prompts[:LOOK_AT]]
        self.sleeps = can_sleep(policy)
        # In this process: weights are handed over as tensors.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        threads = torch.get_num_threads()
        from vllm import LLM

        given: dict[str, Any] = {"distributed_executor_backend": "external_launcher"} if ranks.size() > 1 else {}
        with tempfile.TemporaryDirectory() as folder, self._watched(), _refusals():
            described(policy).save_pretrained(folder)
            self.llm = LLM(
                model=folder,
                skip_tokenizer_init=True,
                load_format="dummy",
                generation_config="vllm",
                dtype=demands.precision,
                max_model_len=demands.context,
                max_num_seqs=demands.at_once or AT_ONCE,
                kv_cache_memory_bytes=int(settings.kv_gib * 2**30),
                # With the bytes given this only bounds what must be free at the start, where the trainer is already.
                gpu_memory_utilization=0.01,
                # Temperature included, as in the trainer's own.
                logprobs_mode="processed_logprobs",
                enable_sleep_mode=self.sleeps,
                enforce_eager=not self.sleeps,
                disable_log_stats=True,
                seed=0,
                **given,
            )
        torch.set_num_threads(threads)  # which vLLM takes for its own
        self._sleep()

    @contextmanager
    def holding(self, policy: Policy) -> Iterator[None]:
        """Wake, push zeros and look, push the weights and look; sleep in the end."""
        self._wake("weights")
        self._push(policy, blank=True)
        self._wake("kv_cache")
        ranks.everywhere(lambda: canary.check_blank(self._look(), policy))
        self._push(policy, blank=False)
        said = ranks.everywhere(self._look_at_weights)
        canary.check_pushed(
            said,
            self.prompts,
            policy,
            max_gap=self.settings.gap(self.demands.precision),
            budget=self.demands.budget,
            temperature=self.demands.temperature,
            pad=self.tokenizer.pad_token_id,
        )
        yield
        self._sleep()

    def sample(
        self, prompts: Sequence[Ids], *, max_tokens: int, temperature: float, seed: int, first: int = 0
    ) -> list[Said]:
        """Draw, as ``Engine.sample``."""
        from vllm import SamplingParams

        if not prompts:
            return []
        how: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": 1.0, "top_k": 0}
        # The same ends as everywhere else; vLLM itself knows none, since it is given no generation config.
        how |= {"ignore_eos": True, "stop_token_ids": list(ends(self.tokenizer)), "detokenize": False}
        how |= {"logprobs": 0, "flat_logprobs": True}
        asked = [SamplingParams(seed=derive(seed, first + row), **how) for row in range(len(prompts))]
        with self._watched():
            outputs = self.llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts], asked, use_tqdm=False
            )
        said = [(list(x.outputs[0].token_ids), list(x.outputs[0].logprobs.logprobs)) for x in outputs]
        if any(len(ids) != len(logp) for ids, logp in said):
            raise RuntimeError("vLLM did not return one log-probability a token; take version 0.32")
        return [Said(*one) for one in said]

    def close(self) -> None:
        """End the engine and let go of its memory, and of torch's process group."""
        if self.sleeps:
            self.llm.wake_up()  # what is unmapped already cannot be freed
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm

    def _push(self, policy: Policy, *, blank: bool) -> None:
        with self._watched():
            weights = canary.pushed(policy, blank=blank)
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            # What is cached was computed with other weights.
            if not self.llm.reset_prefix_cache():
                raise StaleWeights("vLLM keeps keys and values of older weights; end what it is still drawing first")

    def _look_at_weights(self) -> list[Said]:
        zero = self.llm.apply_model(canary.still_zero)[0]
        if zero:
            raise StaleWeights(f"a push left out {zero[0]} of the sampler, which is zero; mend the engine's push")
        return self._look()

    def _look(self) -> list[Said]:
        return self.sample(self.prompts, max_tokens=LOOK, temperature=self.demands.temperature, seed=0)

    def _wake(self, what: str) -> None:
        if self.sleeps:
            self.llm.wake_up(tags=[what])

    def _sleep(self) -> None:
        if self.sleeps:
            self.llm.sleep(level=2)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """End the process, after printing where each thread stands, if this takes too long: the others end with it."""
        faulthandler.dump_traceback_later(self.settings.timeout, exit=True, file=STDERR)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
