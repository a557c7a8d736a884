"""`balcap plan`: memory and time by hand, mistakes in one sentence, real programs compiled."""

import dataclasses
import io
import json
from pathlib import Path

import jax
import pytest
import tiny
import tiny_llava
import tpu_compiler
from rich.console import Console

from balcap_jax.cli import main as cli
from balcap_jax.config.base import to_dict
from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.files import load_toml
from balcap_jax.config.judge import JudgeConfig
from balcap_jax.config.sections import (
    DataConfig,
    EvaluationConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    RLConfig,
    RolloutConfig,
)
from balcap_jax.errors import UserError
from balcap_jax.models.families import make_policy
from balcap_jax.models.param_tree import shapes_of
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.plan import compiler, plan, worker
from balcap_jax.plan.chips import CHIPS, GIB, slice_of
from balcap_jax.plan.estimate import advice, memory_of, seconds_of, step_of, wire_bytes_by_kind
from balcap_jax.plan.models import image_of, model_of
from balcap_jax.plan.programs import Step, bytes_per_device
from balcap_jax.plan.scaling import _sized, plot
from balcap_jax.plan.sweep import sweep, variants
from balcap_jax.plan.tables import plan_tables, scaling_table, sweep_table
from balcap_jax.plan.workloads.published import SHAPES

ROOT = Path(__file__).parents[2]
UPDATE = {
    "program": "update",
    "devices": 64,
    "mesh": {"data": 1, "fsdp": 16, "tensor": 4},
    "prefix": 1152,
    "patches": 4480,
    "parameters": 1 * GIB,
    "optimizer": 2 * GIB,
    "batch": GIB / 2,
    "judge": 0,
    "reference": 0,
    "waiting": 0,
    "arguments": 3 * GIB,
    "results": 0,
    "temporary": 5 * GIB,
    "code": GIB / 4,
    "activations": 3 * GIB,
    "flops": 197e12,
    "bytes": 819e9,
    # One phase waits for the units, the other for the memory.
    "phases": [[197e12, 0.0], [0.0, 819e9]],
    "collectives": [
        {"kind": "all-gather", "times": 3, "wire_bytes": 100e9},
        {"kind": "all-reduce", "times": 2, "wire_bytes": 50e9},
        {"kind": "all-gather", "times": 4, "wire_bytes": 50e9},
    ],
    "model_flops": 98.5e12,
    "compile_seconds": 60.0,
    "host_bytes": 2 * GIB,
}
ROLLOUT = UPDATE | {"program": "rollout", "activations": 0, "phases": [[0.0, 819e9]]}
ENCODE = ROLLOUT | {"program": "encode", "collectives": []}
RESULTS = {"encode": ENCODE, "rollout": ROLLOUT, "update": UPDATE}
PROGRAMS = tuple(RESULTS)


# By hand ----------------------------------------------------------------------------------------


def test_memory_adds_up():
    memory = memory_of(UPDATE)
    # 5 GiB of temporaries, 3 of them activations; the rest with a quarter of code.
    assert memory == (1 * GIB, 2 * GIB, 3 * GIB, 2.25 * GIB, GIB / 2, 0, 0, 0)
    assert memory.total == 8.75 * GIB


def test_a_judge_on_the_same_devices_counts_in_every_program():
    judged_too = UPDATE | {"judge": 4 * GIB}
    assert memory_of(judged_too).judge == 4 * GIB
    assert memory_of(judged_too).total == memory_of(UPDATE).total + 4 * GIB
    refused = {**judged_too, "needs": 20 * GIB, "limit": 15.75 * GIB}
    assert memory_of(refused).total == (20 + 0.5 + 4) * GIB
    answer = judged({name: result | {"judge": 4 * GIB} for name, result in RESULTS.items()})
    assert answer["programs"]["rollout"]["bytes"]["judge"] == 4 * GIB


def test_the_bytes_of_a_judge_are_of_its_shapes_over_the_mesh():
    model = model_of("base")
    config = TrainConfig(judge=JudgeConfig(kind="model", model="base", own_policy=True))
    [job] = plan.jobs_of(
        config, model, slice_of("v5e:8x8"), image=(112, 112), text_tokens=8, programs=["update"]
    )
    assert job.judge == model.hf
    [other] = plan.jobs_of(
        TrainConfig(), model, slice_of("v5e:8x8"), image=(112, 112), text_tokens=8,
        programs=["update"],
    )  # fmt: skip
    assert other.judge is None
    count = sum(x.size for x in jax.tree.leaves(shapes_of(make_policy(model.config))))
    mesh = dataclasses.replace(config.mesh, data=1)
    step = Step(
        dataclasses.replace(config, mesh=mesh, prompts_per_step=2), model.config,
        jax.devices()[:1], image=(112, 112), text_tokens=8,
    )  # fmt: skip
    assert bytes_per_device(step.judge_shapes(job.judge)) == 2 * count  # bfloat16
    assert bytes_per_device(step.judge_shapes(None)) == 0
    # Of a language model the decoder alone is kept, whichever folder it is of.
    for fluency in ("policy", "base"):
        config = TrainConfig(judge=JudgeConfig(fluency=fluency))
        [job] = plan.jobs_of(
            config, model, slice_of("v5e:8x8"), image=(112, 112), text_tokens=8,
            programs=["update"],
        )  # fmt: skip
        decoder = shapes_of(make_policy(model.config))["language_model"]
        size = sum(x.size for x in jax.tree.leaves(decoder))
        assert bytes_per_device(step.judge_shapes(None, fluency=job.fluency)) == 2 * size


def step_of_config(**options) -> Step:
    config = TrainConfig(
        prompts_per_step=2,
        model=options.pop("model", ModelConfig(dtype="bfloat16", attention="xla")),
        rollout=RolloutConfig(group_size=2, max_new_tokens=4),
        mesh=MeshConfig(),
        **options,
    )
    return Step(config, tiny.config(), jax.devices()[:2], image=(56, 56), text_tokens=8)


def test_a_reference_policy_is_in_memory_and_a_program():
    step = step_of_config(rl=RLConfig(kl_coef=0.1))
    weights = sum(x.size for x in jax.tree.leaves(step.inputs.state.params))
    # In bfloat16, whole on each device of a mesh that splits the batch alone.
    assert bytes_per_device(step.reference_shapes) == 2 * weights
    compiled = step.compile(step.trace("reference"))
    decoder = step.inputs.state.params["language_model"]  # the features are given
    read = 2 * sum(x.size for x in jax.tree.leaves(decoder))
    assert read < compiled.memory_analysis().argument_size_in_bytes < 2 * weights
    [found] = jax.tree.leaves(compiled.output_shardings)
    assert found.shard_shape((2, 2, 4)) == (1, 2, 4)
    assert 0 < step.model_flops("reference") < step.model_flops("update")
    counted = UPDATE | {"reference": 4 * GIB}
    assert memory_of(counted).total == memory_of(UPDATE).total + 4 * GIB
    shown = shown_tables(judged(dict.fromkeys(RESULTS, counted)))
    assert "reference" in shown
    assert "reference" not in shown_tables(judged(RESULTS))


def test_batches_whose_captions_wait_for_the_judge_are_in_memory():
    step = step_of_config(rl=RLConfig(kl_coef=0.1))
    prompts, features = step.inputs.batch.prompts, step.inputs.batch.features
    each = sum(x.dtype.itemsize * x.size for x in jax.tree.leaves((prompts, features)))
    captions = 2 * 2 * 4 * (4 + 1 + 4) + 2 * 2 * (4 + 1)  # tokens, mask, logprobs; one number each
    # Two devices share the batch; the reference's logprobs come when its turn has come.
    assert bytes_per_device(step.waiting_shapes()) == (each + captions) // 2
    counted = UPDATE | {"waiting": 3 * GIB}
    assert memory_of(counted).total == memory_of(UPDATE).total + 3 * GIB
    refused = counted | {"needs": 20 * GIB, "limit": 15.75 * GIB}
    assert memory_of(refused).total == (20 + 0.5 + 3) * GIB
    shown = shown_tables(judged(dict.fromkeys(RESULTS, counted)))
    assert "waiting" in shown
    assert "waiting" not in shown_tables(judged(RESULTS))


def test_the_policy_without_its_adapters_is_a_reference_that_takes_no_memory():
    lora = ModelConfig(dtype="bfloat16", attention="xla", lora=LoraConfig(rank=2))
    step = step_of_config(rl=RLConfig(kl_coef=0.1), model=lora)
    assert step.reference_shapes is None
    adapters = sum(
        x.size
        for path, x in jax.tree.leaves_with_path(step.inputs.state.params)
        if "lora" in jax.tree_util.keystr(path)
    )
    assert adapters
    traced = step.trace("reference")
    read = sum(x.size for x in jax.tree.leaves(traced.in_avals) if x.ndim > 1)
    assert read < sum(x.size for x in jax.tree.leaves(step.trace("update").in_avals))
    assert step_of_config().reference_shapes is None


def test_the_policy_before_several_updates_is_a_program_where_tokens_are_weighed():
    rl = RLConfig(importance_cap=2.0, updates_per_rollout=2)
    step = step_of_config(rl=rl)
    of_step = plan.programs_of(step.config)[:-1]  # evaluation comes after them
    assert of_step == ("encode", "rollout", "start", "update")
    assert 0 < step.model_flops("start") < step.model_flops("update")
    for one in (dataclasses.replace(rl, updates_per_rollout=1), RLConfig(updates_per_rollout=2)):
        assert "start" not in plan.programs_of(step_of_config(rl=one).config)
    # The first update alone knows them itself; the others are given them.
    given, itself = (
        len(jax.tree.leaves(made.trace("update").in_avals))
        for made in (step, step_of_config(rl=dataclasses.replace(rl, updates_per_rollout=1)))
    )
    assert given == itself + 1


def test_evaluation_is_a_program_where_it_has_more_images_at_once_than_a_step():
    few = EvaluationConfig(batch_size=2)
    assert plan.programs_of(step_of_config(evaluation=few).config) == PROGRAMS
    step = step_of_config(evaluation=EvaluationConfig(batch_size=5), rl=RLConfig(kl_coef=0.1))
    assert plan.programs_of(step.config) == (
        "encode", "rollout", "reference", "update", "evaluation",
    )  # fmt: skip
    traced = step.trace("evaluation")
    tokens = jax.tree.leaves(traced.out_info)[0]
    assert tokens.shape == (6, 1, 4)  # filled up to the devices
    # It is in the memory and not in the time of a step.
    results = RESULTS | {"evaluation": ROLLOUT | {"temporary": 20 * GIB}}
    answer = judged(results)
    assert not answer["fits"]
    assert "--evaluation.batch-size" in answer["programs"]["evaluation"]["change"]
    assert answer["step"] == judged(RESULTS)["step"]


def test_memory_of_a_refused_program_counts_the_state_once():
    refused = {**UPDATE, "needs": 20 * GIB, "limit": 15.75 * GIB}
    assert memory_of(refused).total == (20 + 0.5) * GIB  # its arguments are the state
    # The rollout reads the parameters; the optimizer's state is there all the same.
    assert memory_of(refused | {"program": "rollout"}).total == (20 + 2 + 0.5) * GIB


def test_seconds_at_peak_rates():
    chip = CHIPS["v5e"]
    # 1 s of flops, then 1 s of memory; 200 GB over the 100 GB/s of one axis.
    assert seconds_of(UPDATE, chip) == pytest.approx((2.0, 2.0))
    assert seconds_of(UPDATE, chip, devices_per_chip=2) == pytest.approx((4.0, 4.0))
    step = step_of(RESULTS, chip, updates=2)
    # encode 1 + 0, rollout 1 + 2, update twice 2 + 2
    assert step.serial == pytest.approx(1 + 3 + 2 * 4)
    assert step.overlapped == pytest.approx(1 + 2 + 2 * 2)
    assert step.mfu == pytest.approx(4 * 0.5 / 12)  # half a second of useful flops each
    assert step.update_mfu == pytest.approx(0.5 / 4)


def test_collectives_are_summed_by_kind():
    assert wire_bytes_by_kind(UPDATE["collectives"]) == {
        "all-gather": (7, 150e9),
        "all-reduce": (2, 50e9),
    }


def test_the_published_numbers_are_plausible():
    for chip in CHIPS.values():
        assert 100 < chip.flops / chip.bandwidth < 700  # flops per byte of memory
        assert chip.usable < chip.memory
        assert chip.wire_of_axis * chip.axes == chip.wire


def settings(**changed):
    config = TrainConfig(
        prompts_per_step=64, model=ModelConfig(remat="full"), rl=RLConfig(micro_batches=2)
    )
    return to_dict(dataclasses.replace(config, **changed))


@pytest.mark.parametrize(
    ("program", "mesh", "change", "says"),
    [
        ("update", (1, 16, 4), {"model": ModelConfig()}, "--model.remat full"),
        ("update", (1, 16, 4), {}, "--rl.micro-batches 4"),
        ("update", (2, 32, 1), {"prompts_per_step": 128}, "--mesh.data 1 --mesh.fsdp 64"),
        ("rollout", (1, 64, 1), {}, "--mesh.tensor 2 --mesh.fsdp 32"),
        ("rollout", (1, 16, 4), {}, "--prompts-per-step 32"),
        ("rollout", (1, 32, 4), {}, "larger slice"),
    ],
)
def test_advice_is_a_setting(program, mesh, change, says):
    sizes = dict(zip(("data", "fsdp", "tensor"), mesh, strict=True))
    assert says in advice(program, settings(**change), mesh=sizes, kv_heads=4)


def judged(results=RESULTS):
    model = model_of("Qwen2.5-VL-7B-Instruct")
    config = TrainConfig(prompts_per_step=64, rl=RLConfig(micro_batches=4))
    return plan.judged(config, model, slice_of("v5e:8x8"), results)


def shown_tables(answer) -> str:
    console = Console(file=io.StringIO(), width=80)
    for part in plan_tables(answer):
        console.print(part)
    return console.file.getvalue()


def test_a_plan_that_fits():
    answer = judged()
    assert answer["fits"]
    assert answer["limit_bytes"] == 15.75 * GIB
    assert answer["programs"]["update"]["left_bytes"] == (15.75 - 8.75) * GIB
    assert answer["step"]["captions_per_second"] == pytest.approx(64 * 8 / 8)
    assert json.loads(json.dumps(answer)) == answer
    shown = [part for part in plan_tables(answer) if isinstance(part, str)]
    assert any("It fits, with 7.00 GiB to spare" in line for line in shown)
    assert shown[-1] == (
        "90,000 images take at least 3.12 hours, 200 chip-hours. The chips would wait first for "
        "the bytes to the bucket per host and second; checkpoint.every, "
        "checkpoint.parameters_every moves that."
    )


def test_a_plan_that_does_not_fit_says_by_how_much_and_what_to_change():
    refused = {**UPDATE, "needs": 20 * GIB, "limit": 15.75 * GIB}
    answer = judged({**RESULTS, "update": refused})
    assert not answer["fits"]
    assert "step" not in answer
    shown = [part for part in plan_tables(answer) if isinstance(part, str)]
    # 20 + 0.5 of inputs - 15.75
    assert any(
        "The update does not fit, by 4.75 GiB: set --model.remat full." in line for line in shown
    )
    assert sweep_table([judged(), answer]).row_count == 2


def test_the_compilers_refusal_is_read():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. "
        "Exceeded hbm capacity by 1.75G."
    )
    assert worker.refused_for_memory(message) == {"needs": 17.5 * GIB, "limit": 15.75 * GIB}
    assert worker.refused_for_memory("INTERNAL: something else") is None


# Variants ---------------------------------------------------------------------------------------


def test_variants_divide():
    config = TrainConfig(prompts_per_step=64)
    chosen = list(
        variants(
            config,
            64,
            data=(),
            tensor=(1, 3, 4),
            prompts=(64, 128),
            micro_batches=(1, 2),
            remat=("full",),
        )
    )
    sizes = [(c.mesh.fsdp, c.mesh.tensor, c.prompts_per_step, c.rl.micro_batches) for c in chosen]
    # 3 does not divide 64 devices; 64 prompts in 2 parts do not divide over 64 shards.
    assert sizes == [
        (64, 1, 64, 1),
        (64, 1, 128, 1),
        (64, 1, 128, 2),
        (16, 4, 64, 1),
        (16, 4, 64, 2),
        (16, 4, 128, 1),
        (16, 4, 128, 2),
    ]
    assert {c.model.remat for c in chosen} == {"full"}


def test_a_sweep_without_variants_names_one_that_divides():
    config = TrainConfig(prompts_per_step=64, rl=RLConfig(micro_batches=2))
    choices = {name: () for name in ("data", "prompts", "micro_batches", "remat")}
    sizes = {"image": (280, 280), "text_tokens": 24}
    with pytest.raises(UserError, match="--try-data 1 --try-tensor 1 --try-prompts 128"):
        sweep(config, model_of("base"), slice_of("v5e:8x8"), tensor=(3,), **choices, **sizes)
    (one,) = variants(config, 64, tensor=(1,), **choices | {"data": (1,), "prompts": (128,)})
    assert (one.mesh.fsdp, one.rl.micro_batches) == (64, 2)


def test_scaling_keeps_prompts_per_chip_and_turns_to_data():
    config = TrainConfig(mesh=MeshConfig(tensor=2))

    def sized(name):
        c = _sized(config, slice_of(name), prompts_per_chip=1, most_fsdp=32)
        return c.prompts_per_step, c.mesh.data, c.mesh.fsdp, c.mesh.tensor

    assert sized("v5p:2x2x2") == (8, 1, 4, 2)
    assert sized("v5p:8x8x8") == (512, 8, 32, 2)
    with pytest.raises(UserError, match="do not divide 2 prompts .* change --prompts-per-chip"):
        _sized(config, slice_of("v5p:2x2x2"), prompts_per_chip=0.25, most_fsdp=32)
    with pytest.raises(UserError, match="tensor=2 does not divide the 1 devices of v5p:1x1x1"):
        _sized(config, slice_of("v5p:1x1x1"), prompts_per_chip=1, most_fsdp=32)


def test_the_plot_is_a_picture(tmp_path):
    row = {
        "topology": "v5p:2x2x2",
        "chips": 8,
        "mesh": {"data": 1, "fsdp": 8, "tensor": 1},
        "prompts_per_step": 8,
        "flops": 1e15,
        "moved_bytes": 1e12,
        "wire_bytes": 1e11,
        "total_bytes": 30 * GIB,
        "seconds": {"compute": 2.0, "wires": 1.0},
    }
    rows = [row, row | {"chips": 64}]
    plot(rows, tmp_path / "deep" / "scaling.png", title="one update")
    assert (tmp_path / "deep" / "scaling.png").read_bytes()[:4] == b"\x89PNG"
    assert [table.row_count for table in scaling_table(rows).renderables] == [2, 2]


# Names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5e-64", "must be a chip and the sides of its slice; write it as in v5e:8x8"),
        ("v5e:8xx8", "must be a chip and the sides"),
        ("v9:2x2", "unknown chip 'v9', known are v4, v5e, v5p, v6e, tpu7x."),
        ("v5p:8x8", "has 2 sides but slices of v5p have 3; write it as v5p:4x4x4"),
        ("v5e:32x32", "has 1024 chips but a pod of v5e has 256"),
    ],
)
def test_a_slice_that_does_not_exist(name, says):
    with pytest.raises(UserError, match=says):
        slice_of(name)


def test_slices():
    assert slice_of("v5p:4x4x4").chips == slice_of("v5p:4x4x4").devices == 64
    assert slice_of("v4:2x2x2").devices == 16  # two cores each


def test_models_by_folder_by_name_and_by_flag(tmp_path):
    assert model_of("Qwen/Qwen2.5-VL-3B-Instruct").config.text.num_key_value_heads == 2
    assert model_of("anything", shape="llava-1.5-7b").config.text.num_hidden_layers == 32
    assert model_of("base").config.text.hidden_size < 1000
    folder = tmp_path / "qwen2.5-vl-7b"  # the folder's own sizes, whatever it is called
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny.config().to_hf()))
    assert model_of(str(folder)).config.text == tiny.config().text
    with pytest.raises(UserError, match="neither a folder nor named after a published model"):
        model_of("models/mine")
    with pytest.raises(UserError, match="no published shape, known are qwen2.5-vl-3b"):
        model_of("base", shape="gpt")


def test_an_image_is_the_largest_that_the_settings_allow():
    qwen, llava = model_of("qwen2.5-vl-7b"), model_of("llava-1.5-7b")
    photos = DataConfig(path="a.jsonl")
    # 1024 x 1024 pixels are 1337 tokens of 28 x 28; 29 x 46 is the most with sides of at most 2:1.
    assert image_of(qwen, photos, None) == (29 * 28, 46 * 28)
    for tokens, size in ((1024, (32, 32)), (5, (2, 2)), (8, (2, 4)), (4, (2, 2))):
        data = dataclasses.replace(photos, max_pixels=max(3136, tokens * 28**2))
        assert image_of(qwen, data, None) == (size[0] * 28, size[1] * 28)
    huge = dataclasses.replace(photos, max_pixels=2**30)  # what the image processor allows
    height, width = image_of(qwen, huge, None)
    assert 0.99 * 12845056 < height * width <= 12845056
    assert image_of(qwen, DataConfig(), None) == (112, 112)  # scenes have one size
    larger = DataConfig(min_pixels=224**2)
    assert image_of(qwen, larger, None) == (224, 224)
    assert image_of(llava, photos, None) == image_of(llava, photos, "336x336") == (336, 336)
    assert image_of(qwen, photos, "280x560") == (280, 560)
    for wish in ("100x100", "28", "28x²", "28x" + "9" * 5000, "0x28", "28x-28"):
        with pytest.raises(UserError, match="multiples of 28 pixels"):
            image_of(qwen, photos, wish)
    with pytest.raises(UserError, match="has 1254400 pixels, and images are shrunk to 1048576"):
        image_of(qwen, photos, "1120x1120")
    with pytest.raises(UserError, match="takes 336x336; leave it out"):
        image_of(llava, photos, "448x448")


@pytest.mark.parametrize(
    "settings", [{"max_pixels": 50176}, {"size": {"shortest_edge": 1, "longest_edge": 50176}}]
)
def test_a_folders_image_processor_bounds_the_image(settings, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SHAPES["qwen2.5-vl-3b"]))
    photos = DataConfig(path="a.jsonl")
    assert image_of(model_of(str(tmp_path)), photos, None) == (29 * 28, 46 * 28)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert image_of(model_of(str(tmp_path)), photos, None) == (224, 224)
    # The packaged policy takes images of one size, of patches of 8 x 8, two by two.
    assert image_of(model_of("base"), photos, None) == (112, 112)


# The command ------------------------------------------------------------------------------------


def test_mistakes_end_with_one_sentence(capsys, monkeypatch):
    config = str(ROOT / "configs" / "qwen2_5_vl_7b_v5e_64.toml")
    assert cli.main(["plan", config]) == 2
    assert "--topology is missing; name a slice, such as v5e:8x8" in capsys.readouterr().err
    monkeypatch.setattr(compiler.util, "find_spec", lambda name: None)
    assert cli.main(["plan", config, "--topology", "v5e:8x8"]) == 2
    error = capsys.readouterr().err
    assert "libtpu, the compiler for TPUs, is not installed; pip install" in error
    assert error.count("\n") == 1


def test_a_libtpu_of_another_jax_is_named():
    requirements = ["numpy>=2", 'libtpu==0.0.42.*; extra == "tpu"']
    assert compiler.mismatch("0.0.42.1", "0.10.2", requirements) == ""
    assert compiler.mismatch("0.0.52", "0.10.2", ["numpy>=2"]) == ""
    said = compiler.mismatch("0.0.52", "0.10.2", requirements)
    assert "libtpu 0.0.52 is not the one that jax 0.10.2 asks for" in said
    assert "pip install 'libtpu==0.0.42.*'" in said


PODS = [p for p in sorted((ROOT / "configs").glob("*.toml")) if "--topology" in p.read_text()]


def test_there_are_configs_of_pods():
    assert len(PODS) >= 9


@pytest.mark.parametrize("path", PODS, ids=lambda path: path.stem)
def test_the_configs_of_pods_fill_their_slices(path):
    config = load_toml(TrainConfig, path)
    model = model_of(config.model.path)
    topology = next(line for line in path.read_text().splitlines() if "--topology" in line)
    where = slice_of(topology.split()[-1])
    mesh = config.mesh
    assert mesh.data * mesh.fsdp * mesh.tensor == where.devices
    assert config.prompts_per_step % (mesh.data * mesh.fsdp * config.rl.micro_batches) == 0
    assert model.config.text.num_key_value_heads % mesh.tensor == 0
    sizes = {"qwen2.5-vl-3b": (896, 896), "qwen2.5-vl-7b": (896, 896), "llava-1.5-7b": (336, 336)}
    assert image_of(model, config.data, None) == sizes[model.name]  # as docs/scale.md has it


# The compiler -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topology", "fsdp", "tensor"), [("v5e:8x8", 16, 4), ("v6e:8x8", 32, 2), ("v5p:4x4x4", 8, 8)]
)
def test_meshes_on_a_torus_even_if_a_side_must_be_shared(topology, fsdp, tensor):
    tpu_compiler.chip()  # skips without libtpu
    mesh = make_mesh(data=1, fsdp=fsdp, tensor=tensor, devices=compiler.devices_of(topology))
    assert dict(mesh.shape) == {"data": 1, "fsdp": fsdp, "tensor": tensor}


def test_a_slice_that_the_compiler_refuses():
    tpu_compiler.chip()
    with pytest.raises(UserError, match="'v5e:3x5' is unknown to the compiler for TPUs .*choose"):
        compiler.devices_of("v5e:3x5")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_the_real_programs_compile_for_a_slice(family):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
    policy = tiny.config() if family == "qwen2_5_vl" else tiny_llava.config()
    config = TrainConfig(
        prompts_per_step=4,
        model=ModelConfig(dtype="bfloat16", remat="full", attention="xla"),
        rollout=RolloutConfig(group_size=2, max_new_tokens=4),
        mesh=MeshConfig(data=1, fsdp=2, tensor=2),
    )
    side = 56 if family == "qwen2_5_vl" else policy.vision.image_size
    jobs = [
        worker.Job(
            config=to_dict(config),
            model=policy.to_hf(),
            generation=policy.to_hf_generation(),
            topology="v5e:2x2",
            program=program,
            image=(side, side),
            text_tokens=8,
        )
        for program in plan.programs_of(config)
    ]
    for result in plan.compile_all(jobs):
        assert result["devices"] == 4
        assert result["flops"] > 0
        assert result["flops"] < 8 * result["model_flops"]
        assert result["arguments"] > 0
        assert result["collectives"]
