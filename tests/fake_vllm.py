"""A stand-in for the vllm package: a copy of the model, which draws with what was last loaded into it, and faults.

What it imitates of vLLM 0.32 was found by trying that version: tests/test_vllm.py holds the engine to the real one.
"""

import math
from types import ModuleType, SimpleNamespace

import torch
from transformers import AutoConfig, AutoModelForCausalLM

FAULTS = (
    "dead",  # a push does nothing
    "second dead",  # a push does nothing after the first
    "disk",  # a push ignores what it is given and reads the disk again
    "partial",  # a push leaves out one tensor
    "stale head",  # a push does not reach the head
    "half",  # a push stops half way
    "nan",
    "cache",  # keys and values of older weights are kept
)


class LLM:
    started: "list[LLM]" = []

    def __init__(self, model, fault=None, **given):
        config = AutoConfig.from_pretrained(model)
        torch.manual_seed(given["seed"])
        self.model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, given["dtype"])).eval()
        self.given, self.fault, self.said, self.pushes, self.asleep = given, fault, [], 0, set()
        self.disk = {name: x.clone() for name, x in self.model.named_parameters()}
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: self.said.append("shutdown")))
        LLM.started.append(self)

    @torch.no_grad()
    def collective_rpc(self, method, kwargs):
        assert method == "reload_weights" and set(kwargs) == {"weights_iterator"}
        given = dict(kwargs["weights_iterator"])
        assert "weights" not in self.asleep
        self.said.append("push")
        self.pushes += 1
        own = dict(self.model.named_parameters())
        assert given.keys() == own.keys(), given.keys() ^ own.keys()
        if self.fault == "dead" or self.fault == "second dead" and self.pushes > 1:
            return
        if self.fault == "disk":
            given = self.disk
        skipped = {
            "partial": {"model.layers.1.mlp.down_proj.weight"},
            "stale head": {"lm_head.weight"},
            "half": set(list(own)[len(own) // 2 :]),
        }.get(self.fault, set())
        for name, weight in given.items():
            # Zeros arrive whole: the fault shows with what is to be computed with.
            if name not in skipped or self.pushes % 2:
                own[name].copy_(weight * (math.nan if self.fault == "nan" and self.pushes % 2 == 0 else 1))

    def reset_prefix_cache(self):
        self.said.append("reset")
        return self.fault != "cache"

    def apply_model(self, look):
        return [look(self.model)]

    def wake_up(self, tags=("weights", "kv_cache")):
        self.said.append(f"wake {','.join(tags)}")
        self.asleep -= set(tags)

    @torch.no_grad()
    def sleep(self, level):
        assert level == 2 and self.given["enable_sleep_mode"]
        self.said.append(f"sleep {level}")
        self.asleep = {"weights", "kv_cache"}
        for weight in self.model.parameters():
            weight.fill_(math.nan)

    @torch.no_grad()
    def generate(self, prompts, parameters, use_tqdm):
        assert not self.asleep
        self.said.append(f"draw {len(prompts)}")
        return [self._one(x["prompt_token_ids"], y) for x, y in zip(prompts, parameters, strict=True)]

    def _one(self, prompt, how):
        rng, ids, logps = torch.Generator().manual_seed(how.seed), [], []
        while len(ids) < how.max_tokens and not (ids and ids[-1] in how.stop_token_ids):
            logits = self.model(torch.tensor([prompt + ids])).logits[0, -1].float() / how.temperature
            p = logits.softmax(-1).nan_to_num(1.0)
            ids.append(int(torch.multinomial(p, 1, generator=rng)))
            logps.append(float(logits.log_softmax(-1)[ids[-1]]))
        return SimpleNamespace(
            outputs=[SimpleNamespace(token_ids=tuple(ids), logprobs=SimpleNamespace(logprobs=logps))]
        )


def module(fault=None) -> ModuleType:
    """Return a package to put into sys.modules as vllm."""
    found = ModuleType("vllm")
    found.LLM = lambda **given: LLM(fault=fault, **given)
    found.SamplingParams = SimpleNamespace
    return found
