"""The recipes inside the real verl: `make check-verl` runs these in an environment of its own, on the processor."""

import os
import re
import signal
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("verl")

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_policy_loss_fn
from verl.workers.config import ActorConfig, PolicyLossConfig

from rpg_ref import RECIPES, WeightBound, count
from rpg_ref.integrations import verl as integration

pytestmark = pytest.mark.filterwarnings("default")

ROOT = Path(__file__).parents[1]
LENGTHS = [3, 5, 2, 6, 4, 4, 1, 6]
PLACES = ["data.train_files=x", "data.val_files=y"]
TINY = [
    "actor_rollout_ref.model.use_remove_padding=false",
    "+actor_rollout_ref.model.override_config.attn_implementation=eager",
    "actor_rollout_ref.actor.use_torch_compile=false",
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile=false",
    "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32",
    "actor_rollout_ref.actor.use_dynamic_bsz=false",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.optim.clip_grad=1e9",
    "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
    "actor_rollout_ref.actor.optim.total_training_steps=10",
]
# workers, responses in a micro-batch, recipe
ON_RAY = [
    (1, 8, "rpg-reinforce-urkl-clip"),
    (1, 2, "rpg-reinforce-urkl-clip"),
    (2, 1, "rpg-reinforce-urkl-clip"),
    (2, 2, "rpg-rkl-prefix"),
    (1, 2, "grpo-corrected"),
]


def config(**options):
    loss_mode = options.pop("loss_mode", "rpg-urkl")
    batch = {"dp_size": 1, "batch_num_tokens": sum(LENGTHS), "global_batch_size": 8, "loss_scale_factor": None}
    return ActorConfig(
        strategy="fsdp",
        rollout_n=4,
        ppo_micro_batch_size_per_gpu=1,
        policy_loss=PolicyLossConfig(loss_mode=loss_mode),
        global_batch_info=options.pop("global_batch_info", batch),
        **options,
    )


def batch():
    random = torch.Generator().manual_seed(0)
    logp, old = -2 + 0.3 * torch.randn((2, 8, 6), generator=random, dtype=torch.float64)
    A = torch.tensor([1.0, -1.0, 0.5, 0.0] * 2, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    return logp.requires_grad_(), old, A[:, None] * mask, mask


def loss_of(name, logp, old, A, mask, mode="token-mean", **options):
    loss, metrics = get_policy_loss_fn(name)(
        old_log_prob=old,
        log_prob=logp,
        advantages=A,
        response_mask=mask,
        loss_agg_mode=mode,
        config=options.pop("config", config()),
        **options,
    )
    return loss, metrics


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_policy_loss_is_the_recipes_in_any_micro_batches(name):
    """Whole, and as eight micro-batches of which verl knows the whole's tokens and responses."""
    recipe = RECIPES[name]
    logp, old, A, mask = batch()
    mode = integration.aggregation(recipe)
    registered = integration.loss_mode(recipe)
    advantages = A if recipe.level == "token" else A[:, 0]
    denominator = None if mode == "token-mean" else 8
    (expected,) = torch.autograd.grad(recipe(logp, old, None, advantages, mask, denominator=denominator).loss, logp)
    for rows in ([range(8)], [[i] for i in range(8)]):
        parts = [loss_of(registered, logp[r], old[r], A[r], mask[r], mode)[0] for r in map(list, rows)]
        (found,) = torch.autograd.grad(sum(parts), logp)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_metrics_are_numbers():
    _, metrics = loss_of("rpg-reinforce-urkl-clip", *batch())
    assert metrics["actor/ratio_mean"] > 0 and metrics["actor/clip_high"] >= 0
    assert all(isinstance(x, float) for x in metrics.values())


def test_nothing_of_verls_is_replaced():
    ours = {integration.loss_mode(row) for row in RECIPES.values()}
    assert ours <= POLICY_LOSS_REGISTRY.keys() and {"gspo", "cispo", "vanilla"} <= POLICY_LOSS_REGISTRY.keys() - ours
    assert integration.loss_mode(RECIPES["gspo"]) == "rpg-ref-gspo"
    assert POLICY_LOSS_REGISTRY["gspo"].__module__.startswith("verl.")


def test_a_row_of_ones_own():
    name = integration.register(replace(RECIPES["rpg-urkl"], name="rpg-urkl-strong", beta=0.5))
    assert name == "rpg-urkl-strong"
    weak, strong = loss_of("rpg-urkl", *batch())[0], loss_of("rpg-urkl-strong", *batch())[0]
    assert abs(float((weak - strong).detach())) > 1e-3
    with pytest.raises(ValueError, match="verl has a policy loss 'rpg-urkl-strong' already; give"):
        integration.register(replace(RECIPES["rpg-urkl"], name="rpg-urkl-strong"))


def test_a_bound_of_the_recipes_own_is_refused():
    with pytest.raises(ValueError, match="'rpg-bounded' bounds the sampler's weight by WeightBound"):
        integration.register(replace(RECIPES["rpg-urkl"], name="rpg-bounded", sampler=WeightBound(high=2.0)))


def test_tokens_of_prefixes_are_tokens():
    assert integration.aggregation(RECIPES["rpg-urkl-prefix"]) == "token-mean"
    assert integration.aggregation(RECIPES["rloo"]) == integration.aggregation(RECIPES["gspo"]) == "seq-mean-token-sum"


def test_a_response_without_tokens_adds_nothing():
    logp, old, A, mask = batch()
    for name, mode in (("rpg-ref-rloo", "seq-mean-token-sum"), ("rpg-urkl-prefix", "token-mean")):
        gradients = []
        for rows in (torch.arange(8), torch.arange(7)):
            kept = mask & (torch.arange(8) < 7)[:, None]
            loss, _ = loss_of(name, logp[rows], old[rows], A[rows], kept[rows], mode)
            gradients.append(torch.autograd.grad(loss, logp)[0])
        assert gradients[0].isfinite().all()
        torch.testing.assert_close(*gradients)


def test_a_second_penalty_is_refused():
    with pytest.raises(
        ValueError, match="use_kl_loss is True, and 'rpg-urkl' has a penalty of its own; set it to False"
    ):
        loss_of("rpg-urkl", *batch(), config=config(use_kl_loss=True))
    loss_of("rpg-ref-dapo", *batch(), config=config(use_kl_loss=True))


@pytest.mark.parametrize("name", ["rpg-ref-dr-grpo", "rpg-ref-rloo"])
def test_the_norm_mode_divides_by_the_longest_response(name):
    plain, norm = (
        torch.autograd.grad(loss_of(name, logp, *rest, mode)[0], logp)[0]
        for mode, (logp, *rest) in (("seq-mean-token-sum", batch()), ("seq-mean-token-sum-norm", batch()))
    )
    torch.testing.assert_close(norm, plain / 6)


def test_padding_may_hold_anything():
    logp, old, A, mask = batch()
    (expected,) = torch.autograd.grad(loss_of("rpg-urkl", logp, old, A, mask)[0], logp)
    (found,) = torch.autograd.grad(
        loss_of("rpg-urkl", torch.where(mask, logp, torch.nan), torch.where(mask, old, -torch.inf), A, mask)[0], logp
    )
    torch.testing.assert_close(found, expected)


def test_the_engines_weight_multiplies_the_whole_loss_of_a_sample():
    logp, old, A, mask = batch()
    weights = torch.rand((8, 6), dtype=torch.float64) * mask
    (found,) = torch.autograd.grad(loss_of("rpg-fkl", logp, old, A, mask, rollout_is_weights=weights)[0], logp)
    loss, alive, _ = RECIPES["rpg-fkl"].per_sample(logp, old, None, A, mask)
    (expected,) = torch.autograd.grad((loss * weights)[alive].sum() / alive.sum(), logp)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"mode": "seq-mean-token-mean"},
            "'seq-mean-token-mean', and 'rpg-urkl' goes with 'token-mean'",
        ),
        ({"name": "rpg-ref-gspo"}, "loss_agg_mode is 'token-mean', and 'rpg-ref-gspo' goes with 'seq-mean-token-sum'"),
        ({"name": "rpg-urkl-prefix", "A": "tokens"}, "advantages differ within a response"),
        (
            {"name": "rpg-ref-gspo", "mode": "seq-mean-token-sum", "rollout_is_weights": "tokens"},
            "rollout_is_weights differ within a response",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(change, message):
    logp, old, A, mask = batch()
    tokens = torch.arange(6.0, dtype=torch.float64).expand(8, 6) * mask
    change = {"name": "rpg-urkl"} | {key: tokens if x == "tokens" else x for key, x in change.items()}
    with pytest.raises(ValueError, match=message) as error:
        loss_of(change.pop("name"), logp, old, change.pop("A", A), mask, **change)
    assert "\n" not in str(error.value)


def test_verls_default_mode_works_without_its_totals():
    logp, old, A, mask = batch()
    loss, _ = loss_of("rpg-urkl", logp, old, A, mask, config=None)
    expected = RECIPES["rpg-urkl"](logp, old, None, A, mask, denominator=count(mask, "token-mean")).loss
    torch.testing.assert_close(loss, expected)


def composed(*overrides):
    with initialize_config_module("rpg_ref.integrations", version_base=None):
        return compose("verl_rpg", overrides=[*PLACES, *overrides])


def leaves(tree, path=""):
    for key, value in tree.items():
        here = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from leaves(value, here)
        else:
            yield here, value


def test_every_key_of_the_yaml_is_one_that_verl_reads():
    with initialize_config_module("verl.trainer.config", version_base=None):
        theirs = compose("ppo_trainer")
    ours = OmegaConf.to_container(OmegaConf.load(ROOT / "rpg_ref/integrations/verl_rpg.yaml"))
    del ours["hydra"], ours["defaults"]
    known = {key for key, _ in leaves(OmegaConf.to_container(theirs))}
    # The DAPO manager reads its arguments by name: verl's own file has none.
    unlisted = {key for key, _ in leaves(ours)} - known
    assert all(key.startswith("reward.reward_kwargs.") for key in unlisted), unlisted


def test_the_yaml_has_the_presets_numbers():
    preset = tomllib.loads((ROOT / "train/presets/qwen3_4b_2k.toml").read_text())
    mine = composed()
    actor, rollout = mine.actor_rollout_ref.actor, mine.actor_rollout_ref.rollout
    optimizer, drawn = preset["optimizer"], preset["rollout"]
    assert actor.policy_loss.loss_mode == preset["recipe"]
    assert actor.loss_agg_mode == RECIPES[preset["recipe"]].aggregation
    assert (mine.data.train_batch_size, rollout.n, actor.ppo_mini_batch_size) == (
        drawn["prompts"],
        drawn["samples"],
        optimizer["prompts"],
    )
    assert (actor.optim.lr, actor.optim.weight_decay, actor.optim.clip_grad) == (
        optimizer["learning_rate"],
        optimizer["weight_decay"],
        optimizer["max_grad_norm"],
    )
    # Ours counts optimiser steps, verl rollout batches.
    updates = drawn["prompts"] // optimizer["prompts"]
    assert actor.optim.lr_warmup_steps * updates == optimizer["warm_up"]
    assert mine.trainer.total_training_steps == preset["steps"]
    assert mine.data.max_prompt_length == preset["data"]["max_prompt_tokens"]
    assert mine.data.max_response_length == drawn["max_tokens"]
    overlong = mine.reward.reward_kwargs.overlong_buffer_cfg
    assert (overlong.len, overlong.penalty_factor) == (drawn["overlong_buffer"], drawn["overlong_penalty"])
    assert rollout.val_kwargs.n == preset["eval_samples"]
    assert actor.ppo_max_token_len_per_gpu == optimizer["micro_tokens"]


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory):
    """Each case in verl's own worker, under Ray; the batch, the model's folder and what came of each."""
    folder = tmp_path_factory.mktemp("ray")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    ids = {"vocab_size": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    Qwen3ForCausalLM(Qwen3Config(**shape, **heads, **ids)).save_pretrained(folder / "model")
    words = models.WordLevel({f"w{i}": i for i in range(16)}, unk_token="w0")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="w0", eos_token="w1").save_pretrained(
        folder / "model"
    )
    random = torch.Generator().manual_seed(1)
    rows = {
        "prompts": [torch.randint(2, 16, (2,), generator=random) for _ in LENGTHS],
        "responses": [torch.randint(1, 16, (n,), generator=random) for n in LENGTHS],
        "old_log_probs": [-2.8 + 0.1 * torch.randn(n, generator=random) for n in LENGTHS],
        "advantages": [(i % 3 - 1.2) * torch.ones(n) for i, n in enumerate(LENGTHS)],
    }
    cases = []
    for workers, size, name in ON_RAY:
        recipe = RECIPES[name]
        overrides = [
            f"actor_rollout_ref.model.path={folder / 'model'}",
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={size}",
            f"actor_rollout_ref.actor.policy_loss.loss_mode={integration.loss_mode(recipe)}",
            f"actor_rollout_ref.actor.loss_agg_mode={integration.aggregation(recipe)}",
        ]
        cases.append((workers, [*PLACES, *TINY, *overrides], rows))
    torch.save(cases, folder / "cases.pt")
    environment = os.environ | {
        "VERL_USE_EXTERNAL_MODULES": "verl_on_cpu",
        # The engine that verl lists for a GPU runs on a processor as well.
        "VERL_ENGINE_DEVICE": "cuda",
        "VERL_ENGINE_VENDOR": "nvidia",
        "PYTHONPATH": str(Path(__file__).parent),
        "RAY_AUTH_MODE": "disabled",
        "RAY_DISABLE_IMPORT_WARNING": "1",
    }
    command = [sys.executable, str(Path(__file__).with_name("verl_on_ray.py")), "cases.pt", "out.pt"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "model", rows, torch.load(folder / "out.pt")


@pytest.mark.parametrize("case", range(len(ON_RAY)), ids=["-".join(map(str, case)) for case in ON_RAY])
def test_a_ray_workers_update_is_the_recipes_gradient(on_ray, case):
    """Of the whole mini-batch, on one worker or two, whatever the micro-batches."""
    folder, rows, results = on_ray
    recipe, T = RECIPES[ON_RAY[case][2]], max(LENGTHS)
    model = Qwen3ForCausalLM.from_pretrained(folder, attn_implementation="eager")
    mask = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    prompts = torch.stack(rows["prompts"])
    responses, logp_old, A = (
        torch.nn.utils.rnn.pad_sequence(rows[name], batch_first=True)
        for name in ("responses", "old_log_probs", "advantages")
    )
    logits = model(input_ids=torch.cat([prompts, responses], 1)).logits[:, 1:-1]
    logp = logits.log_softmax(-1).gather(-1, responses[..., None])[..., 0]
    recipe(logp, logp_old, None, A[:, 0], mask).loss.backward()
    found = results[case]["gradients"]
    expected = {name: p.grad for name, p in model.named_parameters()}
    norm = torch.stack([x.norm() for x in expected.values()]).norm()
    assert results[case]["norm"] == pytest.approx(float(norm), rel=1e-5)
    size = max(float(x.abs().max()) for x in expected.values())
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=0, atol=2e-6 * size)


def test_two_machines_meet_and_the_command_is_verls(tmp_path):
    """The launch file on two of Ray's nodes, with Hydra's own end: the configuration printed in the place of a run."""
    port = str(20000 + os.getpid() % 10000)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PORT": port, "LOOK": "1", "RAY_AUTH_MODE": "disabled"}
    launch = ["bash", str(ROOT / "rpg_ref/integrations/verl_rpg.sh"), "127.0.0.1", "2"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    second = subprocess.Popen([*launch, "1"], env=environment, cwd=tmp_path, **quiet)
    try:
        command = [*launch, "0", *PLACES, "--cfg", "job"]
        first = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert first.returncode == 0, first.stderr[-2000:]
        assert second.wait(60) == 0  # it ends by itself once the head is gone
    finally:
        if second.poll() is None:
            os.killpg(second.pid, signal.SIGKILL)
    assert "loss_mode: rpg-reinforce-urkl-clip" in first.stdout and "  nnodes: 2\n" in first.stdout


def settled(text):
    """The words, with every residual of double precision alike: its digits depend on the processor."""
    return re.sub(r"\b\d+e-1[3-7]\b", "0", " ".join(text.split()))


def test_the_pages_snippets(capsys):
    """docs/verl.md: a row of one's own, and what the check prints."""
    page = (ROOT / "docs/verl.md").read_text()
    own, check = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(own.replace("rpg-urkl-strong", "rpg-urkl-of-the-page"), {})
    assert "rpg-urkl-of-the-page" in POLICY_LOSS_REGISTRY
    # By itself: nothing here has imported the integration for it.
    alone = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=240)
    assert alone.returncode == 0 and settled(alone.stdout.split("\n")[0]) in settled(page)
