"""A processor as one of verl's platforms, with VERL_USE_EXTERNAL_MODULES=verl_on_cpu: it has none of its own."""

from contextlib import nullcontext
from types import SimpleNamespace

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry, set_platform


def nothing(*_, **__):
    return None


MODULE = SimpleNamespace(
    **dict.fromkeys(("empty_cache", "synchronize", "set_device", "manual_seed", "manual_seed_all"), nothing),
    **dict.fromkeys(("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved"), lambda: 0),
    current_device=lambda: "cpu",
    device_count=lambda: 1,
    get_device_name=lambda: "CPU",
    is_available=lambda: True,
    mem_get_info=lambda: (0, 0),
    get_rng_state=torch.get_rng_state,
    set_rng_state=torch.set_rng_state,
)


@PlatformRegistry.register(platform="cpu")
class Processor(PlatformBase):
    device_name = vendor_name = "cpu"
    device_module = MODULE

    def is_available(self):
        return True

    def current_device(self):
        return "cpu"

    def device_count(self):
        return 1

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg):
        return nullcontext()

    def ray_resource_name(self):
        return "CPU"

    def ray_noset_envvars(self):
        return []

    def is_ipc_supported(self):
        return False

    set_device = synchronize = manual_seed = manual_seed_all = set_allocator_settings = empty_cache = nothing
    profiler_start = profiler_stop = cudart = nothing


set_platform(Processor())
