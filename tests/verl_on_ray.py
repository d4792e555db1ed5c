"""Run under Ray by tests/test_verl.py: verl's own worker, built from our YAML, updates a tiny policy on the processor.

    VERL_USE_EXTERNAL_MODULES=verl_on_cpu python tests/verl_on_ray.py CASES.pt OUT.pt

CASES is a list of (workers, overrides, batch); OUT is a list of what each gave: gradients, weights and metrics.
"""

import sys

import ray
import torch
from hydra import compose, initialize_config_module
from verl.single_controller.base.decorator import Dispatch, register
from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
from verl.utils import tensordict_utils
from verl.utils.distributed import initialize_global_process_group_ray
from verl.workers.engine_workers import ActorRolloutRefWorker


class Worker(ActorRolloutRefWorker):
    """verl's, with a process group that needs no GPU, and a way to see its gradients."""

    def __init__(self, config, role):
        initialize_global_process_group_ray(backend="gloo")
        super().__init__(config, role)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def watch(self):
        """Keep the gradients that the optimiser is about to use: verl drops them after its step."""
        engine, self.kept = self.actor.engine, {}

        def keep(*_):
            self.kept.update({name: p.grad.full_tensor().clone() for name, p in engine.module.named_parameters()})

        engine.optimizer.register_step_pre_hook(keep)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def gradients(self):
        return self.kept


def jagged(rows):
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def run(workers, overrides, batch):
    with initialize_config_module("rpg_ref.integrations", version_base=None):
        config = compose("verl_rpg", overrides=overrides).actor_rollout_ref
    pool = RayResourcePool(process_on_nodes=[workers], use_gpu=False, max_colocate_count=1)
    built = RayClassWithInitArgs(cls=ray.remote(Worker), config=config, role="actor")
    group = RayWorkerGroup(resource_pool=pool, ray_cls_with_init=built, device_name="cpu")
    group.init_model()
    group.watch()
    prompts, responses = batch["prompts"], batch["responses"]
    whole = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    rows = {
        "input_ids": whole,
        "position_ids": [torch.arange(len(ids)) for ids in whole],
        "response_mask": [torch.ones_like(ids) for ids in responses],
        "loss_mask": [torch.cat([0 * p, 0 * r + 1]) for p, r in zip(prompts, responses, strict=True)],
        **batch,
    }
    size = config.actor.ppo_mini_batch_size * config.rollout.n
    settings = {"global_batch_size": size, "mini_batch_size": size, "epochs": 1, "seed": 0}
    settings |= {"dataloader_kwargs": {"shuffle": False}, "calculate_entropy": False, "temperature": 1.0}
    data = tensordict_utils.get_tensordict({name: jagged(x) for name, x in rows.items()}, settings)
    metrics = tensordict_utils.get(group.update_actor(data), "metrics")
    gradients = group.gradients()[0]
    for worker in group.workers:
        ray.kill(worker)
    return {"gradients": gradients, "norm": float(metrics["grad_norm"][0])}


if __name__ == "__main__":
    cases = torch.load(sys.argv[1])
    # What a case reserved is not given back before the end.
    ray.init(num_cpus=2 * sum(workers for workers, *_ in cases), include_dashboard=False)
    torch.save([run(*case) for case in cases], sys.argv[2])
    ray.shutdown()
