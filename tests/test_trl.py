"""The recipes inside the real TRL: `make check-trl` runs these in an environment of its own, on the processor."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("trl")

from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    TrainerCallback,
)
from trl import GRPOConfig

from rpg_ref import RECIPES, Recipe, WeightBound, advantages
from rpg_ref.integrations.trl import RPGTrainer

pytestmark = pytest.mark.filterwarnings("default")

WORDS = ["<pad>", "<eos>", *(f"w{i}" for i in range(14))]
SHAPE = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
PROMPTS = Dataset.from_dict({"prompt": [f"w{i} w{j}" for i in range(8) for j in range(8)]})


def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model drawn at random: nothing is downloaded."""
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPE))
    with torch.no_grad():
        model.lm_head.weight[1] += 0.1  # some responses end early
        model.lm_head.weight *= 3
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return str(path)


def even(completion_ids, **_):
    """The share of even tokens: something that every token can learn."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def config(tmp_path, **options):
    usual = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "max_completion_length": 6,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_grad_norm": 0.0,
        "gradient_checkpointing": False,
        "seed": 1,
    }
    return GRPOConfig(**(usual | options))


def trainer(folder, args, reward=even, **choices):
    return RPGTrainer(folder, reward, args, PROMPTS, processing_class=tokenizer(), **choices)


class Watched(RPGTrainer):
    """Keeps what each loss was given, and what each optimiser step's gradient was."""

    def __init__(self, *args, **named):
        self.seen, self.windows = [], []
        super().__init__(*args, **named)
        keep = SimpleNamespace(trainer=self)

        class Keep(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, **_):
                gradient = {name: p.grad.clone() for name, p in keep.trainer.model.named_parameters()}
                weights = {name: p.detach().clone() for name, p in keep.trainer.model.named_parameters()}
                keep.trainer.windows.append((keep.trainer.seen, gradient, weights))
                keep.trainer.seen = []

        self.add_callback(Keep())

    def _compute_loss(self, model, inputs):
        self.seen.append({key: x.clone() if torch.is_tensor(x) else x for key, x in inputs.items()})
        return super()._compute_loss(model, inputs)


def watched(folder, args, reward=even, **choices):
    return Watched(folder, reward, args, PROMPTS, processing_class=tokenizer(), **choices)


def logps(model, part, temperature):
    """The plain way: whole logits."""
    ids = torch.cat([part["prompt_ids"], part["completion_ids"]], 1)
    mask = torch.cat([part["prompt_mask"], part["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, part["prompt_ids"].shape[1] - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(-1, part["completion_ids"][..., None])[..., 0]


def expected_gradient(folder, window, weights, recipe, temperature=1.0, rollouts=None):
    """The recipe's own gradient of the window as one batch; or of each rollout in it, by its share of the parts."""
    model = Qwen3ForCausalLM.from_pretrained(folder)
    model.load_state_dict(weights)
    rollouts = rollouts or [range(len(window))]
    masks = [part["completion_mask"] * part.get("tool_mask", 1) for part in window]
    counts = [recipe.count(mask) for mask in masks]
    for i, part in enumerate(window):
        logp = logps(model, part, temperature)
        old = part.get("old_per_token_logps", logp.detach())
        (rollout,) = (rollout for rollout in rollouts if i in rollout)
        whole = sum(counts[j] for j in rollout) * len(window) / len(rollout)
        ref = part.get("ref_per_token_logps")
        recipe(logp, old, ref, part["advantages"], masks[i], denominator=whole).loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same(found, expected, tolerance=4e-6):
    size = max(float(x.abs().max()) for x in expected.values())
    assert size > 0
    for name, x in expected.items():
        torch.testing.assert_close(
            found[name], x, rtol=0, atol=tolerance * size, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_the_pages_snippets(folder, tmp_path, capsys):
    """docs/trl.md: the two lines, and what the check prints."""
    page = (Path(__file__).parents[1] / "docs/trl.md").read_text()
    run, check = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    named = {"model": folder, "reward": even, "args": config(tmp_path, max_steps=1), "dataset": PROMPTS}
    exec(run, named | {"tokenizer": tokenizer()})
    capsys.readouterr()
    exec(check, {})
    said = capsys.readouterr().out
    assert " ".join(said.split("\n")[0].split()) in " ".join(page.split())


def test_a_tiny_model_learns(folder, tmp_path):
    args = config(tmp_path, max_steps=60, learning_rate=1e-2, per_device_train_batch_size=16, seed=0)
    run = trainer(folder, args, recipe="rpg-reinforce-urkl-clip")
    run.train()
    rewards = [row["reward"] for row in run.state.log_history if "reward" in row]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3, rewards
    logged = run.state.log_history[-2]
    names = {"ratio_mean", "ratio_max", "forward_kl_old", "reverse_kl", "clip_high", "clip_low", "clip_dual", "entropy"}
    assert names <= logged.keys()
    assert run.ref_model is None  # π_ref = π_old


@pytest.mark.parametrize("name", ["rpg-urkl", "grpo-corrected", "rloo", "rpg-rkl-prefix", "dr-grpo", "gspo"])
@pytest.mark.parametrize("updates", [1, 3])
def test_each_update_of_a_rollout_is_the_recipes_gradient_of_its_responses(folder, tmp_path, name, updates):
    """Two micro-batches an update, of uneven lengths; one or three updates a rollout, the later ones off-policy."""
    args = config(
        tmp_path,
        max_steps=2 * updates,
        gradient_accumulation_steps=2,
        steps_per_generation=2 * updates,
        learning_rate=1e-2,
    )
    recipe = replace(RECIPES[name], beta=0.3) if RECIPES[name].beta else RECIPES[name]
    run = watched(folder, args, recipe=recipe, reference="model" if recipe.beta else "old")
    run.train()
    assert len(run.windows) == 2 * updates and {len(window) for window, *_ in run.windows} == {2}
    counts = {int(part["completion_mask"].sum()) for window, *_ in run.windows for part in window}
    assert len(counts) > 2
    for window, gradient, weights in run.windows:
        assert ("old_per_token_logps" in window[0]) == (updates > 1)
        assert_same(gradient, expected_gradient(folder, window, weights, recipe))


def test_a_rollout_used_twice(folder, tmp_path):
    """Its parts in turn, 0 1 0 and 1: the second update begins in the midst of the rollout."""
    options = {"gradient_accumulation_steps": 3, "steps_per_generation": 2, "num_iterations": 2}
    run = watched(folder, config(tmp_path, max_steps=2, learning_rate=1e-2, **options), recipe="rpg-urkl")
    run.train()
    (first, *_), (second, *_) = run.windows
    assert (first[0]["completion_ids"] == first[2]["completion_ids"]).all()
    assert (first[1]["completion_ids"] == second[0]["completion_ids"]).all()
    for (window, gradient, weights), rollouts in zip(run.windows, (None, [[0], [1, 2]]), strict=True):
        expected = expected_gradient(folder, window, weights, RECIPES["rpg-urkl"], rollouts=rollouts)
        assert_same(gradient, expected)


def test_an_update_of_several_rollouts_weighs_each_the_same(folder, tmp_path):
    """The later rollout is not drawn yet when the first one's loss is taken."""
    args = config(tmp_path, max_steps=2, gradient_accumulation_steps=3, steps_per_generation=2, learning_rate=1e-2)
    run = watched(folder, args, recipe="rpg-urkl")
    run.train()
    for (window, gradient, weights), rollouts in zip(run.windows, ([[0, 1], [2]], [[0], [1, 2]]), strict=True):
        expected = expected_gradient(folder, window, weights, RECIPES["rpg-urkl"], rollouts=rollouts)
        assert_same(gradient, expected)


def test_the_last_update_of_an_epoch_may_be_smaller(folder, tmp_path):
    args = config(tmp_path, num_train_epochs=1, gradient_accumulation_steps=3, steps_per_generation=4)
    run = Watched(folder, even, args, PROMPTS.select(range(4)), processing_class=tokenizer(), recipe="rpg-urkl")
    run.train()
    assert [len(window) for window, *_ in run.windows] == [3, 1]
    for window, gradient, weights in run.windows:
        assert_same(gradient, expected_gradient(folder, window, weights, RECIPES["rpg-urkl"]))


def tool(prompts, trainer):
    """Responses of four to seven tokens, every third token a tool's, and one response all its own."""
    ids = [trainer.processing_class(prompt)["input_ids"] for prompt in prompts]
    said = [[2 + (3 * i + j) % 13 for j in range(3 + i % 4)] + [1] for i in range(len(prompts))]
    own = [[int(i != 5 and j % 3 > 0) for j in range(len(tokens))] for i, tokens in enumerate(said)]
    return {"prompt_ids": ids, "completion_ids": said, "logprobs": [[-1.0] * len(x) for x in said], "env_mask": own}


@pytest.mark.parametrize("name", ["rpg-urkl", "rloo", "rpg-rkl-prefix"])
def test_updates_with_tools_count_only_what_the_policy_said(folder, tmp_path, name):
    recipe = replace(RECIPES[name], beta=0.2)
    args = config(tmp_path, max_steps=2, gradient_accumulation_steps=2, steps_per_generation=4, learning_rate=1e-2)
    run = watched(folder, args, recipe=recipe, reference="model", rollout_func=tool)
    run.train()
    assert any((part["tool_mask"] * part["completion_mask"]).sum(1).min() == 0 for part in run.windows[0][0])
    for window, gradient, weights in run.windows:
        assert_same(gradient, expected_gradient(folder, window, weights, recipe))


def test_cut_off_responses_are_left_out_of_gradients_and_metrics(folder, tmp_path):
    """Some micro-batches then have no sample at all."""
    options = {"mask_truncated_completions": True, "max_completion_length": 3, "per_device_train_batch_size": 2}
    args = config(
        tmp_path, max_steps=8, gradient_accumulation_steps=2, num_generations=2, learning_rate=1e-2, seed=3, **options
    )
    run = watched(folder, args, recipe="rpg-urkl")
    run.train()
    kept = [[int(part["completion_mask"].sum()) for part in window] for window, *_ in run.windows]
    assert any(0 in counts and sum(counts) for counts in kept), kept
    rows = [row for row in run.state.log_history if "grad_norm" in row]
    for counts, (window, gradient, weights), row in zip(kept, run.windows, rows, strict=True):
        if sum(counts):
            expected = expected_gradient(folder, window, weights, RECIPES["rpg-urkl"])
            if max(float(x.abs().max()) for x in expected.values()) > 0:
                assert_same(gradient, expected)
            # On-policy every ratio is 1, however many micro-batches had none.
            assert row["ratio_mean"] == pytest.approx(1) and row["ratio_max"] == pytest.approx(1)
        else:
            assert row["ratio_mean"] is None and all(bool((x == 0).all()) for x in gradient.values())


def test_an_update_that_was_interrupted_is_not_gone_on_with(folder, tmp_path):
    args = config(tmp_path, max_steps=3, gradient_accumulation_steps=4, learning_rate=1e-2)
    run = watched(folder, args, recipe="rpg-urkl")
    compute = run._compute_loss

    def interrupted(model, inputs):
        if run._step == 1:
            raise KeyboardInterrupt
        return compute(model, inputs)

    run._compute_loss = interrupted
    with pytest.raises(KeyboardInterrupt):
        run.train()
    run._compute_loss, run.seen, run._step = compute, [], 4
    run.train()
    for window, gradient, weights in run.windows:
        assert_same(gradient, expected_gradient(folder, window, weights, RECIPES["rpg-urkl"]))


def test_what_a_tool_said_is_not_trained_on(folder, tmp_path):
    """Tokens that a tool put into the response are seen by the model, and are no samples of it."""
    run = watched(folder, config(tmp_path, max_steps=1), recipe="rpg-urkl")
    run.train()
    ((part,), _, weights) = run.windows[0]
    tool_mask = torch.ones_like(part["completion_mask"])
    tool_mask[:, 1:3] = 0
    run.model.zero_grad()
    run.model.load_state_dict(weights)
    del part["denominator"]
    run._compute_loss(run.model.train(), part | {"tool_mask": tool_mask}).backward()
    model = Qwen3ForCausalLM.from_pretrained(folder)
    model.load_state_dict(weights)
    logp = logps(model, part, 1.0)
    mask = part["completion_mask"] * tool_mask
    RECIPES["rpg-urkl"](logp, logp.detach(), None, part["advantages"], mask).loss.backward()
    assert_same(*({name: p.grad for name, p in m.named_parameters()} for m in (run.model, model)))


def test_the_samplers_temperature_is_in_the_ratio(folder, tmp_path):
    args = config(tmp_path, max_steps=2, steps_per_generation=2, temperature=0.7, learning_rate=1e-2)
    run = watched(folder, args, recipe="rpg-urkl")
    run.train()
    for window, gradient, weights in run.windows:
        assert_same(gradient, expected_gradient(folder, window, weights, RECIPES["rpg-urkl"], temperature=0.7))


def test_lora_trains_its_adapter_against_the_base_model(folder, tmp_path):
    args = config(tmp_path, max_steps=3, steps_per_generation=1, learning_rate=1e-2)
    recipe = replace(RECIPES["rpg-urkl"], beta=0.1)
    run = trainer(
        folder, args, recipe=recipe, reference="model", peft_config=LoraConfig(r=2, target_modules=["q_proj"])
    )
    run.train()
    steps = [row for row in run.state.log_history if "reverse_kl" in row]
    assert steps[0]["reverse_kl"] == pytest.approx(0, abs=1e-6) and steps[-1]["reverse_kl"] > 1e-6


def test_a_mixture_of_experts_keeps_its_balancing_loss(tmp_path):
    torch.manual_seed(0)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "decoder_sparse_step": 1}
    shape = Qwen3MoeConfig(**SHAPE, **experts, output_router_logits=True, router_aux_loss_coef=0.5)
    Qwen3MoeForCausalLM(shape).save_pretrained(tmp_path / "moe")
    args = config(tmp_path, max_steps=1, gradient_accumulation_steps=2)
    run = trainer(
        str(tmp_path / "moe"), args, reward=lambda completion_ids, **_: [1.0] * len(completion_ids), recipe="dapo"
    )
    run.train()
    # Equal rewards have no gradient of their own: what is left is the router's.
    assert run.state.log_history[0]["loss"] == pytest.approx(0.5 * run.state.log_history[0]["aux_loss"], rel=1e-3)


def test_an_evaluation_is_logged(folder, tmp_path):
    batches = {"per_device_train_batch_size": 16, "per_device_eval_batch_size": 4}
    args = config(tmp_path, max_steps=1, eval_strategy="steps", eval_steps=1, **batches)
    run = Watched(
        folder, even, args, PROMPTS, PROMPTS.select(range(1)), processing_class=tokenizer(), recipe="rpg-urkl"
    )
    run.train()
    rows = [row for row in run.state.log_history if "eval_reward" in row]
    assert rows and {"eval_ratio_mean", "eval_entropy"} <= rows[0].keys()
    # Of the log's sixteen rows the evaluation's four are the last, and the others are those of training.
    logged = torch.tensor(list(run._logs["advantages"]))
    trained = run.windows[0][0][0]["advantages"]
    assert len(logged) == 16 and all(bool((x == trained).any()) for x in logged[:12])


def test_a_run_goes_on_from_its_checkpoint(folder, tmp_path):
    options = {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "save_strategy": "steps", "save_steps": 2}
    trainer(folder, config(tmp_path, max_steps=2, **options), recipe="rpg-urkl").train()
    run = watched(folder, config(tmp_path, max_steps=4, **options), recipe="rpg-urkl")
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 4 and len(run.windows) == 2
    for window, gradient, weights in run.windows:
        assert_same(gradient, expected_gradient(folder, window, weights, RECIPES["rpg-urkl"]))
    assert "2505.17508" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out", "group_std", "batch_std"])
def test_the_baseline_is_the_recipes(folder, tmp_path, baseline):
    drawn = []

    def reward(completion_ids, **_):
        drawn.append(torch.tensor(even(completion_ids)))
        return drawn[-1].tolist()

    args = config(tmp_path, max_steps=1, per_device_train_batch_size=8)
    run = watched(folder, args, reward, recipe=replace(RECIPES["rpg-urkl"], baseline=baseline))
    run.train()
    (window, *_), (rewards,) = run.windows[0], drawn
    expected = advantages(rewards, torch.arange(8) // 4, baseline)
    # TRL shuffles the responses.
    torch.testing.assert_close(window[0]["advantages"].sort().values, expected.sort().values)
    torch.testing.assert_close(torch.tensor(list(run._logs["advantages"])), expected)


def test_what_no_function_scores_moves_nothing(folder, tmp_path):
    def reward(completion_ids, **_):
        scores = even(completion_ids)
        return [None if i in (0, 5, 6, 7) else score for i, score in enumerate(scores)]

    args = config(tmp_path, max_steps=1, per_device_train_batch_size=8)
    run = watched(folder, args, reward, recipe=replace(RECIPES["dapo"], baseline="leave_one_out"))
    run.train()
    A = torch.tensor(list(run._logs["advantages"]))
    # The first group goes on without its first response; the second has one left, too few for its baseline.
    assert A[0] == 0 and (A[4:] == 0).all() and A[1:4].sum() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"loss_type": "grpo"}, "loss_type is 'grpo', which the recipe 'rpg-urkl' decides; leave it out"),
        ({"beta": 0.1}, "beta is 0.1, which the recipe"),
        ({"epsilon": 0.1}, "epsilon is 0.1"),
        ({"scale_rewards": "none"}, "scale_rewards is 'none'"),
        ({"entropy_coef": 0.1}, "entropy_coef is 0.1"),
        ({"sync_ref_model": True}, "sync_ref_model moves a reference model and reference is 'old'; pass"),
        ({"use_vllm": True}, "vllm_importance_sampling_mode is 'sequence_mask', a weight of whole responses, and"),
    ],
)
def test_what_a_recipe_decides_is_not_set_twice(folder, tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        trainer(folder, config(tmp_path, **option), recipe="rpg-urkl")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"recipe": "rpg-uklr"}, "unknown recipe 'rpg-uklr'"),
        ({"reference": "frozen"}, "unknown reference 'frozen'"),
        ({"recipe": "dapo", "reference": "model"}, "the recipe 'dapo' has beta 0 and needs no reference"),
        ({"recipe": replace(RECIPES["dapo"], sampler=WeightBound(high=2.0))}, "vllm_importance_sampling_"),
    ],
)
def test_bad_choices_are_one_sentence(folder, tmp_path, choices, message):
    with pytest.raises(ValueError, match=message) as error:
        trainer(folder, config(tmp_path), **choices)
    assert "\n" not in str(error.value)


def test_the_users_own_arguments_are_left_as_they_were(folder, tmp_path):
    args = config(tmp_path)
    run = trainer(folder, args, recipe=replace(RECIPES["rpg-urkl"], beta=0.2), reference="model")
    assert args.beta == 0.0 and run.beta == 0.2 and isinstance(run.recipe, Recipe)


def test_two_processes_share_one_denominator(folder, tmp_path):
    """Run on two processes under torchrun: each update is the recipe's gradient of both processes' responses."""
    port = 29000 + hash(str(tmp_path)) % 1000
    command = f"-m torch.distributed.run --nproc-per-node 2 --master-port {port} {__file__} {folder} {tmp_path}"
    done = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "said.json").read_text()) == {"updates": 4, "processes": 2}


def on_two_processes(folder, out):
    torch.set_num_threads(1)
    args = config(out, max_steps=4, gradient_accumulation_steps=2, steps_per_generation=4, learning_rate=1e-2)
    recipe = replace(RECIPES["rpg-urkl"], beta=0.3)
    run = watched(folder, args, recipe=recipe, reference="model")
    run.train()
    everyone_seen, largest = [], []
    for window, gradient, weights in run.windows:
        everyone = [None, None]
        torch.distributed.all_gather_object(everyone, [{k: x for k, x in part.items()} for part in window])
        everyone_seen += sum(everyone, [])
        tokens = [sum(int(part["completion_mask"].sum()) for part in parts) for parts in everyone]
        assert tokens[0] != tokens[1]
        gradient = {name.removeprefix("module."): x for name, x in gradient.items()}
        weights = {name.removeprefix("module."): x for name, x in weights.items()}
        largest.append(largest_ratio(folder, weights, everyone))
        assert_same(gradient, expected_gradient(folder, sum(everyone, []), weights, recipe))
    assert_advantages_of(everyone_seen, recipe.baseline)
    logged = [row["ratio_max"] for row in run.state.log_history if "ratio_max" in row]
    torch.testing.assert_close(torch.tensor(logged), torch.tensor(largest), rtol=1e-5, atol=0)
    if torch.distributed.get_rank() == 0:
        said = {"updates": len(run.windows), "processes": torch.distributed.get_world_size()}
        (Path(out) / "said.json").write_text(json.dumps(said))
    torch.distributed.destroy_process_group()


def largest_ratio(folder, weights, everyone):
    """Over both processes and all micro-batches."""
    model = Qwen3ForCausalLM.from_pretrained(folder)
    model.load_state_dict(weights)
    with torch.no_grad():
        of_parts = [
            max(
                float((logps(model, part, 1.0) - part["old_per_token_logps"])[part["completion_mask"] == 1].max().exp())
                for part in parts
            )
            for parts in zip(*everyone, strict=True)
        ]
    return max(of_parts)


def assert_advantages_of(parts, baseline):
    """Each response has the advantage of its own reward among those of its prompt."""
    rows = []
    for part in parts:
        columns = (part[key] for key in ("prompt_ids", "completion_ids", "completion_mask", "advantages"))
        for prompt, ids, mask, A in zip(*columns, strict=True):
            rows.append((tuple(prompt.tolist()), even([ids[mask == 1].tolist()])[0], float(A)))
    names = sorted({prompt for prompt, *_ in rows})
    assert len(rows) == 4 * len(names)
    groups = torch.tensor([names.index(prompt) for prompt, *_ in rows])
    expected = advantages(torch.tensor([reward for _, reward, _ in rows]), groups, baseline)
    torch.testing.assert_close(torch.tensor([A for *_, A in rows]), expected)


if __name__ == "__main__":
    on_two_processes(*sys.argv[1:])
