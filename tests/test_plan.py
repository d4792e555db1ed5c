import dataclasses
import re
import time
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, Qwen2Config, Qwen3Config

import train.architecture
from rpg_ref import RECIPES
from train.architecture import architecture, divided, sizes
from train.batch import pack
from train.cli import main
from train.config import ModelConfig
from train.model import build_model
from train.optim import step
from train.planning import memory, seconds
from train.planning.case import Case
from train.planning.devices import DEVICES, Device, Devices, devices, measured
from train.planning.page import WIDTH
from train.planning.plan import advice, changed, of_case, plan_run
from train.policy import Policy, recompute
from train.policy_gradient import accumulate, begin
from train.preset import load

GIB = 2**30
PAGE = (Path(__file__).parents[1] / "docs/plan.md").read_text()
PAPER = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1]


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "mine.toml"
    path.write_text(PAPER)
    return str(path)


@pytest.fixture
def paper(preset):
    return lambda gpus="8xH100", **more: plan_run(load(preset, more.pop("settings", {})), gpus, **more)


def parts(plan, phase):
    """Bytes by name, at the fullest moment of a phase."""
    (moment,) = (moment for moment in plan.moments if moment.phase == phase)
    return {part.name: part.bytes for part in moment.parts}


def seconds_of(plan):
    return {phase.name: phase.seconds for phase in plan.phases}


# Architectures


@pytest.mark.parametrize(
    ("name", "parameters", "key_value_bytes"),
    [("Qwen3-4B", 4_022_468_096, 147_456), ("Qwen2.5-7B-Instruct", 7_615_616_512, 57_344)],
)
def test_the_paper_s_models_are_known_without_a_network(preset, name, parameters, key_value_bytes):
    plan = plan_run(load(preset, {"model.path": f"hub:Qwen/{name}@main"}), "h200")
    assert plan.case.sizes.parameters == parameters
    assert memory.key_value_bytes(plan.case) == key_value_bytes


def test_a_random_model_is_described_as_it_is_built():
    model = ModelConfig(width=32, mlp_width=48, layers=3, heads=4, key_value_heads=2, context=64)
    built = build_model(model, seed=0)
    own = {key: value for key, value in built.config.to_dict().items() if key not in ("architectures", "dtype")}
    assert {key: architecture(model).to_dict()[key] for key in own} == own
    found = sizes(architecture(model))
    assert found.parameters == sum(weight.numel() for weight in built.parameters())
    assert found.block == sum(weight.numel() for weight in built.model.layers[0].parameters())
    assert found.root == 262 * 32 + 32 and found.head == 262 * 32


def test_a_folder_is_read_where_it_is(tmp_path):
    architecture(ModelConfig(path="hub:Qwen/Qwen3-4B", context=64)).save_pretrained(tmp_path)
    assert sizes(architecture(ModelConfig(path=str(tmp_path), context=64))).parameters == 4_022_468_096
    with pytest.raises(ValueError, match="there is no model at"):
        architecture(ModelConfig(path=str(tmp_path / "absent")))


def test_a_model_that_neither_ships_nor_can_be_fetched_is_refused_in_a_sentence(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no network\nat all")

    monkeypatch.setattr(train.architecture.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(ValueError, match="hub:nobody/nothing from the hub: no network; .*hub:Qwen/Qwen3-4B$"):
        architecture(ModelConfig(path="hub:nobody/nothing"))


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # hidden, mlp, heads, key heads
        ("Qwen3-4B", (320, 1216, 4, 1)),
        ("Qwen2.5-7B-Instruct", (448, 2368, 7, 1)),
    ],
)
def test_a_divided_model_is_the_same_in_small_and_runs(tmp_path, name, expected):
    whole = architecture(ModelConfig(path=f"hub:Qwen/{name}", context=64))
    small = divided(whole, by=8, layers=3)
    assert type(small) is type(whole)
    assert (
        small.hidden_size,
        small.intermediate_size,
        small.num_attention_heads,
        small.num_key_value_heads,
    ) == expected
    for same in ("vocab_size", "rope_parameters", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings"):
        assert getattr(small, same) == getattr(whole, same)
    small.save_pretrained(tmp_path)
    small = AutoConfig.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(small)
    attention = model.model.layers[2].self_attn
    assert attention.head_dim == 128 and attention.q_proj.weight.shape == (expected[2] * 128, expected[0])
    with torch.no_grad():
        assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, whole.vocab_size)


# Devices


def test_devices_are_a_number_and_a_name():
    assert str(devices("8xH100", "bfloat16")) == "8xH100" and devices("h200", "bfloat16").number == 1
    assert DEVICES["h100"].flops == {"bfloat16": 989e12, "float32": 67e12} and DEVICES["h100"].bandwidth == 3.35e12
    for wrong in ("8x", 8, "0xH100", "8 H100"):
        with pytest.raises(ValueError, match="write a number and a name, such as 8xH100"):
            devices(wrong, "bfloat16")
    with pytest.raises(ValueError, match="unknown GPU 'h10'; the nearest are h100"):
        devices("8xH10", "bfloat16")


def test_what_is_on_this_machine_is_found_in_the_table(monkeypatch):
    said = {"NVIDIA H100 80GB HBM3": "2xH100", "NVIDIA A100-PCIE-40GB": "2xA100-40GB", "NVIDIA L40S": "2xL40S"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, expected in said.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert str(devices(None, "bfloat16")) == expected


@pytest.mark.full
def test_a_processor_is_measured():
    found = devices("2xcpu", "float32")
    assert found.is_cpu and found.number == 2
    assert (
        1e9 < found.each.flops["float32"] < 1e13 and 1e8 < found.each.bandwidth < 1e12 and found.each.memory > GIB / 2
    )


# Memory, by hand


def test_memory_of_the_paper_s_run_by_hand(paper):
    plan = paper()
    assert plan.fits
    assert parts(plan, "start") == {"whole weights, float32": 16_089_872_384}
    assert parts(plan, "draw") == {
        "weights, float32": 2_011_234_048,  # 16,089,872,384 / 8
        "optimiser": 4_022_468_096,
        "engine's weights": 8_822_848_512,  # 2 (4,022,468,096 + 388,956,160): its head is not the embedding
        "engine's keys and values": 32_212_254_720,
        "engine's graphs and workspaces": 2_147_483_648,
        "weight on its way": 2_333_736_960,  # (4 + 2) · 151,936 · 2,560
    }
    assert parts(plan, "learn") == {
        "weights, float32": 2_011_234_048,
        "optimiser": 4_022_468_096,
        "gradients, float32": 2_011_234_048,
        "engine's graphs and workspaces": 2_147_483_648,
        "gathered embedding and head": 777_917_440,  # 2 (388,956,160 + 2,560)
        "what goes into each block": 3_019_898_880,  # 16,384 · 36 · 2 · 2,560
        # 16,384 times: norms 40,960, heads 30,720, attention 32,768, MLP 77,824; gradients 38,912; mask 8,192 + 4,096
        "one block's activations and gradients": 3_825_205_248,
        "gradient of the head": 777_912_320,
        "gathered blocks and their gradients": 1_211_169_792,  # 12 · 100,930,816
    }
    assert {part.name: part.bytes for part in plan.host} == {
        "loading the model": 128_718_979_072,
        "a checkpoint, gathered": 48_269_617_152,
        "its largest file, as it is written": 64_359_489_536,
    }


def test_memory_of_drawing_with_transformers_by_hand(paper):
    plan = paper(settings={"engine.kind": "transformers", "rollout.at_once": 64})
    found = parts(plan, "draw")
    assert found["whole copy to sample from"] == 8_044_936_192
    assert found["keys and values"] == pytest.approx(40_969_961_472)  # 64 · (4,096 + 128 to spare) · 147,456 · 37/36
    assert found["next tokens' logits"] == 64 * 151_936 * 28
    assert "engine's weights" not in found and "engine's graphs and workspaces" not in parts(plan, "learn")


def test_without_recompute_every_block_keeps_all(paper):
    found = parts(paper(settings={"optimizer.recompute": False}), "learn")
    assert found["all blocks' activations"] == 16_384 * 36 * 190_464  # and 8,192 for the mask


def test_a_reference_that_outlives_its_rollout_is_counted(paper):
    plan = paper(settings={"reference.replace": "never"})
    assert parts(plan, "start") == {"whole weights, float32": 32_179_744_768}
    assert parts(plan, "draw")["reference, float32"] == 2_011_234_048
    assert "reference" in seconds_of(plan)


# Memory, measured


def tiny(precision="float32", number=1, **more):
    shape = {"width": 64, "mlp_width": 160, "layers": 2, "heads": 4, "key_value_heads": 2, "context": 96}
    config = load(
        "cpu_tiny",
        {f"model.{name}": size for name, size in shape.items()}
        | {"rollout.prompts": 4, "rollout.samples": 4, "rollout.max_tokens": 64, "optimizer.prompts": 4}
        | {"data.max_prompt_tokens": 32, "model.precision": precision, "device": "cpu"}
        | more,
    )
    device = Device("cpu", 16 * GIB, {"float32": 1e11, "bfloat16": 1e11}, 1e10, 1e10)
    return Case(config, sizes(architecture(config.model)), Devices(number, device), prompt=32, length=64)


def learn(state, recipe="grpo"):
    """One mini-batch of 16 sequences, each 32 + 64 tokens; one prompt is padded, as some always are."""
    batch = pack([[5] * 32] * 15 + [[5] * 30], [[7] * 64] * 16, 0)
    return accumulate(state.model, batch, torch.full((16, 64), -5.0), None, torch.ones(16), RECIPES[recipe], 0, 1.0)


def test_weights_optimiser_and_gradients_are_exact():
    case = tiny()
    state = begin(build_model(case.config.model, seed=0), case.config)
    learn(state)
    weights = list(state.model.parameters())
    planned = {part.name: part.bytes for part in memory.kept(case)}
    assert sum(weight.nbytes for weight in weights) == planned["weights, float32"]
    assert sum(weight.grad.nbytes for weight in weights) == memory.gradients(case).bytes
    step(state.optimizer, 0)
    moments = [x for kept in state.optimizer.rule.state.values() for x in kept.values() if x.ndim]
    assert sum(x.nbytes for x in moments) == planned["optimiser"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_keys_and_values_are_exact(precision):
    case = tiny(precision)
    model = build_model(case.config.model, seed=0).to(getattr(torch, precision))
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.zeros(3, 10, dtype=torch.long), past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 3 * 10 * memory.key_value_bytes(case)


def saved_bytes(config, precision, again):
    """What autograd keeps of a padded batch besides the weights, in bytes a token."""
    policy = Policy(AutoModelForCausalLM.from_config(config).to(getattr(torch, precision)))
    if again:
        recompute(policy)
    weights = {weight.untyped_storage().data_ptr() for weight in policy.parameters()}
    found = {}

    def pack_(x):
        found[x.untyped_storage().data_ptr()] = x.untyped_storage()  # held, lest its place be used again
        return x

    ids, mask = torch.zeros(2, 64, dtype=torch.long), torch.ones(2, 64, dtype=torch.long)
    mask[0, :3] = 0
    with torch.autograd.graph.saved_tensors_hooks(pack_, lambda x: x):
        policy(lambda hidden, head: hidden, input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(x.nbytes() for place, x in found.items() if place not in weights) / 128


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [Qwen3Config, Qwen2Config])
@pytest.mark.parametrize("again", [False, True])
def test_what_a_block_keeps_is_what_autograd_saves_within_two_per_cent(kind, precision, again):
    """One number a norm and a head is left out of the formula."""
    shape = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 6, "head_dim": 32}
    one, two = (kind(**shape, num_key_value_heads=2, num_hidden_layers=layers) for layers in (1, 2))
    lengths = {"data.max_prompt_tokens": 32, "rollout.max_tokens": 32}
    case = dataclasses.replace(tiny(precision, **lengths, **{"optimizer.recompute": again}), sizes=sizes(one))
    a_block = saved_bytes(two, precision, again) - saved_bytes(one, precision, again)
    assert memory.kept_bytes(case) == pytest.approx(a_block, rel=0.02)


def peak_of(do):
    """The most bytes of tensors that were there at a time, less those that were there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        do()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.full
@pytest.mark.parametrize("again", [False, True])
def test_the_peak_of_a_mini_batch_is_planned_within_a_fifth(again):
    case = tiny(**{"optimizer.recompute": again})
    state = begin(build_model(case.config.model, seed=0), case.config)
    learn(state)
    step(state.optimizer, 0)
    fullest = max(moment.bytes for moment in memory.moments(case) if moment.phase == "learn")
    planned = fullest - sum(part.bytes for part in memory.kept(case))
    assert 1 / 1.2 < planned / peak_of(lambda: learn(state)) < 1.2


# Time


def test_time_of_the_paper_s_run_by_hand(paper):
    plan = paper(length=1000, prompt=200)
    found = seconds_of(plan)
    # 24,576 / 8 responses, 16 to a prompt: 192 prompts of 200 tokens; 2 · 3,633,315,840 + 4 · 4,096 · 36 · 200 each
    assert found["draw: prefill"] == pytest.approx(192 * 200 * 7_384_596_480 / 494.5e12)
    # 30 GiB / (1,200 · 147,456) = 182 at a time; a step reads 2 (3,633,315,840 + 388,956,160) bytes, then 182 · 700 of
    # keys and values, at 0.6 · 3.35e12 a second, and 10 ms; 3,072 · 1,000 / 182 such, then 1,048 that read one's.
    full, few = (8_044_544_000 + 18_785_894_400) / 2.01e12 + 0.01, (8_044_544_000 + 103_219_200) / 2.01e12 + 0.01
    assert found["draw: decode"] == pytest.approx(16_879.12 * full + 1_048 * few, rel=1e-6)
    # 8,192 / 8 sequences: 1,200 tokens through the blocks, 7,974,420,480 each, and 1,000 through the head
    once, blocks, head = 1024 / 1e15, 1_200 * 7_974_420_480, 1_000 * 777_912_320
    assert found["old log-probs"] == pytest.approx(once * (blocks + head) / 0.4945)
    learned = once * (4 * blocks + 3 * head) / 0.3956
    assert found["learn"] == pytest.approx(learned + 16 * 28 * 502_808_512 / 3.35e12)
    # 4 bytes of each weight, 7 of 8 of them from elsewhere; zeros and weights, each read and written
    assert found["push of weights"] == pytest.approx(14_078_638_336 / 450e9 + 4 * 8_044_936_192 / 3.35e12)
    assert plan.seconds == pytest.approx(sum(found.values()))


def test_a_single_mini_batch_needs_no_pass_for_old_log_probs(paper):
    assert "old log-probs" not in seconds_of(paper(settings={"optimizer.prompts": 512}))


def test_without_the_filter_fewer_are_drawn_and_as_many_trained_on(paper):
    case = paper(settings={"rollout.filter": False}).case
    assert (case.drawn, case.trained) == (8_192, 8_192) and paper().case.drawn == 24_576


def test_transformers_ends_each_lot_by_itself(paper):
    settings = {"engine.kind": "transformers", "rollout.at_once": 64}
    case = paper(length=1000, settings=settings).case
    # 3,072 responses in 48 lots: each goes on to the longest, 2,048
    full, few = (seconds.step_seconds(case, rows) for rows in (64, 1))
    assert seconds.decode(case).seconds == pytest.approx(48 * (1_000 * full + 1_048 * few))


@pytest.mark.full
def test_learning_takes_as_long_as_planned_within_four_times():
    """Four, for a machine that others use as well; a quiet one is within two. Matrix products are most of it."""
    wide = {"model.width": 256, "model.mlp_width": 1024, "model.layers": 3}
    case = dataclasses.replace(tiny(**wide), devices=Devices(1, measured(1, "float32")))
    state = begin(build_model(case.config.model, seed=0), case.config)
    learn(state)
    took = []
    for number in range(3):
        start = time.perf_counter()
        learn(state)
        step(state.optimizer, number)
        took.append(time.perf_counter() - start)
    assert 1 / 4 < seconds.learn(case).seconds / min(took) < 4


# Advice


@pytest.mark.parametrize("name", ["qwen3_4b_2k", "qwen3_4b_4k", "qwen3_4b_8k", "qwen25_7b_instruct_2k"])
def test_the_paper_s_presets_fit_on_eight_gpus_of_80_gb(name):
    assert plan_run(load(name, {}), "8xH100").fits and plan_run(load(name, {}), "8xA100").fits


def test_what_does_not_fit_is_told_what_would(paper):
    plan = paper(
        "2xH100", settings={"optimizer.recompute": False, "optimizer.micro_tokens": 65536, "engine.kv_gib": 4.0}
    )
    assert not plan.fits and [moment.phase for moment in plan.too_full] == ["learn"]
    found = {key: each for each in advice(plan) for key in each.changes}
    assert list(found) == ["optimizer.recompute", "optimizer.micro_tokens"]
    assert found["optimizer.recompute"].changes == {"optimizer.recompute": True}
    assert found["optimizer.micro_tokens"].changes == {"optimizer.micro_tokens": 4096}
    for each in found.values():
        again = of_case(changed(plan.case, each.changes))
        assert each.plan == again and again.fits
    twice = changed(plan.case, {"optimizer.micro_tokens": 8192})
    assert not of_case(twice).fits, "the largest that fits is advised"


def test_the_cache_is_halved_until_it_fits(paper):
    (found, *_) = advice(paper(settings={"engine.kv_gib": 60.0}))
    assert found.changes == {"engine.kv_gib": 30.0}


def test_where_no_single_change_is_enough_several_are_tried_together(paper):
    settings = {"engine.kind": "transformers", "optimizer.recompute": False}
    (found,) = advice(paper("4xA100", settings=settings))
    assert set(found.changes) == {"optimizer.recompute", "rollout.at_once"} and found.plan.fits


def test_more_gpus_are_advised_where_the_state_itself_is_too_large(paper):
    found = advice(paper("1xH100", settings={"model.path": "hub:Qwen/Qwen2.5-7B-Instruct"}))
    assert [each.changes for each in found] == [{"gpus": 4}]


def test_where_nothing_helps_nothing_is_advised(paper):
    assert advice(paper("8xL4", settings={"model.path": "hub:Qwen/Qwen2.5-7B-Instruct"})) == []


# The command


def said(capsys, *words):
    code = main(["plan", *words])
    return code, capsys.readouterr()


def test_the_command_prints_the_plan_and_says_by_its_exit_code_whether_it_fits(preset, capsys):
    code, out = said(capsys, preset, "--gpus", "8xH100", "--length", "900")
    assert code == 0 and "It fits: 48.0 of 72.8 GiB" in out.out and out.err == ""
    assert "prompts of 256 (--prompt)" in out.out and "half of rollout.max_tokens" not in out.out
    for name in ("weights, float32", "optimiser", "engine's keys and values", "draw: decode", "400 rollout batches"):
        assert name in out.out
    code, out = said(capsys, preset, "--gpus", "1xH100")
    assert code == 1 and "It does not fit while drawing: there are 72.8 GiB" in out.out
    assert "half of rollout.max_tokens" in out.out and "--gpus 2xH100" in out.out


def test_a_draw_that_the_watchdog_would_end_is_said_to_be(preset, capsys):
    code, out = said(capsys, preset, "--gpus", "8xH100", "--engine.timeout", "60")
    text = " ".join(out.out.split())
    assert code == 1 and "It fits: 48.0" in text and "engine.timeout ends the run after 60: raise that." in text


@pytest.mark.parametrize("name", ["qwen3_4b_2k", "qwen3_4b_4k", "qwen3_4b_8k", "qwen25_7b_instruct_2k"])
def test_a_preset_s_draw_is_done_in_time_however_long_its_responses(name):
    config = load(name, {})
    plan = plan_run(config, "8xH100", config.rollout.max_tokens)
    assert plan.in_time and plan.drawing < config.engine.timeout / 2


def test_the_page_shows_what_the_command_prints(preset, capsys):
    _, *shown = (text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) if not kind)
    for gpus, block in zip(("8xH100", "1xH100"), shown, strict=True):
        lines = [line.rstrip() for line in said(capsys, preset, "--gpus", gpus)[1].out.splitlines()]
        assert "\n".join(lines).endswith(block.rstrip("\n"))


def test_nothing_is_wider_than_the_page(preset, capsys):
    for more in (
        (),
        ("--engine.kind", "transformers", "--optimizer.recompute", "false", "--reference.replace", "never"),
    ):
        _, out = said(capsys, preset, "--gpus", "64xA100-40GB", *more)
        assert max(map(len, out.out.splitlines())) <= WIDTH


@pytest.mark.full
def test_a_preset_that_ships_is_planned_for_this_machine(capsys):
    code, out = said(capsys, "cpu_tiny", "--device", "cpu")
    assert code == 0 and "1xcpu" in out.out and "measured just now" in " ".join(out.out.split())
    assert "at a checkpoint" in out.out and "of the machine" not in out.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "plan needs a preset first"),
        (["cpu_tiny", "--gpus", "8xH10"], "unknown GPU 'h10'; the nearest are h100"),
        (
            ["cpu_tiny", "--gpus", "h100", "--length", "9"],
            "pass a whole number of tokens from 1 to rollout.max_tokens = 4",
        ),
        (["cpu_tiny", "--gpus", "h100", "--prompt", "0"], "from 1 to data.max_prompt_tokens = 448"),
        (["cpu_tiny", "--lenght", "9"], "unknown key 'lenght'"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_sentence(capsys, words, sentence):
    code, out = said(capsys, *words)
    assert code == 2 and sentence in out.err and out.err.count("\n") == 1 and out.out == ""
