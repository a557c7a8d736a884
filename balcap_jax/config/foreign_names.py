"""What TRL, verl and tunix call our settings, so that their users are told our names.

TRL: fields of GRPOConfig, ModelConfig and ScriptArguments; verl: names of its ppo_trainer.yaml,
tunix: fields of GRPOConfig, DAPOConfig, RLTrainingConfig and RolloutConfig.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """A setting, or a sentence where there is none, and its names elsewhere, space-separated."""

    ours: str
    trl: str = ""
    verl: str = ""
    tunix: str = ""
    words: str = ""  # what people type without looking it up

    def names(self) -> list[str]:
        """All names of the row."""
        return " ".join(self[1:]).split()


_ACTOR, _ROLLOUT, _MODEL = (f"actor_rollout_ref.{room}" for room in ("actor", "rollout", "model"))

SETTINGS = (
    Row("name", "run_name", "trainer.experiment_name"),
    Row("out", "output_dir", "trainer.default_local_dir", "checkpoint_root_directory"),
    Row("seed", "data_seed", "", "data_shuffle_seed"),
    Row(
        "steps", "max_steps", f"trainer.total_training_steps {_ACTOR}.optim.total_training_steps",
        "max_steps", "num_steps train_steps",
    ),
    Row(
        "prompts_per_step", "per_device_train_batch_size generation_batch_size",
        "data.train_batch_size", "", "batch_size train_batch_size",
    ),
    Row("log_every", "logging_steps"),
    Row("sample_every", "log_completions", "trainer.log_val_generations"),
    Row("loggers", "report_to", "trainer.logger", "metrics_logging_options", "logger wandb"),
    Row("model.path", "model_name_or_path", f"{_MODEL}.path", "", "model model_path model_name"),
    Row("model.revision", "model_revision"),
    Row("model.dtype", "dtype bf16 fp16", f"{_ROLLOUT}.dtype", "data_type", "torch_dtype"),
    Row("model.attention", "attn_implementation", "", "", "flash_attn"),
    Row("model.train_vision", words="freeze_vit freeze_vision_tower"),
    Row("model.lora.rank", "use_peft lora_r", f"{_MODEL}.lora_rank", "", "lora lora_rank peft"),
    Row("model.lora.alpha", "lora_alpha", f"{_MODEL}.lora_alpha"),
    Row("model.lora.rslora", "use_rslora"),
    Row("model.lora.dropout", "lora_dropout"),
    Row("model.lora.targets", "lora_target_modules", f"{_MODEL}.target_modules"),
    Row(
        "model.remat", "gradient_checkpointing activation_checkpointing",
        f"{_MODEL}.enable_gradient_checkpointing",
    ),
    Row("data.path", "dataset_name", "data.train_files", "", "data dataset dataset_path"),
    Row("data.split", "dataset_train_split"),
    Row("data.heldout_path", "", "data.val_files", "", "eval_dataset"),
    Row("data.heldout_split", "dataset_test_split"),
    Row("data.workers", "dataloader_num_workers", "data.dataloader_num_workers"),
    Row("rollout.group_size", "num_generations", f"{_ROLLOUT}.n", "num_generations"),
    Row(
        "rollout.max_new_tokens", "max_completion_length",
        f"data.max_response_length {_ROLLOUT}.response_length", "max_tokens_to_generate",
        "max_tokens",
    ),
    Row("rollout.temperature", "temperature", f"{_ROLLOUT}.temperature", "temperature"),
    Row("rollout.top_p", "top_p", f"{_ROLLOUT}.top_p", "top_p"),
    Row("judge.kind", words="judge"),
    Row(
        "reward.functions", "", "custom_reward_function.path", "reward_fns",
        "reward_funcs reward_functions",
    ),
    Row("reward.weights", "reward_weights"),
    Row(
        "rl.advantage", "multi_objective_aggregation", "algorithm.adv_estimator",
        "advantage_estimator", "algorithm",
    ),
    Row("rl.grpo_scale", "scale_rewards", "algorithm.norm_adv_by_std_in_grpo"),
    Row("rl.clip_low", "epsilon", f"{_ACTOR}.clip_ratio_low {_ACTOR}.clip_ratio", "epsilon"),
    Row("rl.clip_high", "epsilon_high", f"{_ACTOR}.clip_ratio_high", "epsilon_high"),
    Row(
        "rl.importance_cap",
        "vllm_importance_sampling_clip_max vllm_importance_sampling_cap "
        "vllm_importance_sampling_correction vllm_importance_sampling_mode",
        f"algorithm.rollout_correction.rollout_is_threshold {_ACTOR}.tis_imp_ratio_cap", "",
        "rollout_is_threshold tis_imp_ratio_cap importance_sampling_cap",
    ),
    Row("rl.loss_normaliser", "loss_type", f"{_ACTOR}.loss_agg_mode", "loss_agg_mode"),
    Row(
        "rl.kl_coef", "beta", f"algorithm.kl_ctrl.kl_coef {_ACTOR}.kl_loss_coef", "beta",
        "kl kl_beta",
    ),
    Row("rl.updates_per_rollout", "num_iterations", f"{_ACTOR}.ppo_epochs", "num_iterations"),
    Row(
        "rl.micro_batches", "gradient_accumulation_steps",
        f"{_ACTOR}.ppo_micro_batch_size {_ACTOR}.ppo_micro_batch_size_per_gpu",
        "gradient_accumulation_steps train_micro_batch_size", "micro_batch_size",
    ),
    Row("optim.learning_rate", "learning_rate", f"{_ACTOR}.optim.lr", "", "lr"),
    Row(
        "optim.warmup_steps", "warmup_steps",
        f"{_ACTOR}.optim.lr_warmup_steps {_ACTOR}.optim.lr_warmup_steps_ratio", "",
        "warmup warmup_ratio",
    ),
    Row("optim.schedule", "lr_scheduler_type", f"{_ACTOR}.optim.warmup_style", "", "lr_schedule"),
    Row("optim.weight_decay", "weight_decay", f"{_ACTOR}.optim.weight_decay"),
    Row("optim.b1", "adam_beta1"),
    Row("optim.b2", "adam_beta2"),
    Row("optim.max_grad_norm", "max_grad_norm", f"{_ACTOR}.grad_clip", "", "grad_norm"),
    Row("mesh.data", "", "trainer.n_gpus_per_node", "data_parallel_size"),
    Row("mesh.fsdp", "fsdp deepspeed", f"{_ACTOR}.fsdp_config.fsdp_size"),
    Row("mesh.tensor", "", f"{_ROLLOUT}.tensor_model_parallel_size", "tensor_parallel_size"),
    Row("dist.processes", "", "trainer.nnodes"),
    Row("checkpoint.every", "save_steps", "trainer.save_freq"),
    Row("checkpoint.keep", "save_total_limit", "trainer.max_actor_ckpt_to_keep"),
    Row("checkpoint.keep_best", "load_best_model_at_end"),
    Row("evaluation.every", "eval_steps eval_strategy", "trainer.test_freq", "eval_every_n_steps"),
    Row("evaluation.batch_size", "per_device_eval_batch_size", "data.val_batch_size"),
    Row("evaluation.temperature", "", f"{_ROLLOUT}.val_kwargs.temperature"),
)  # fmt: skip

# How a setting of ours differs from what it is called elsewhere.
NOTES = {
    "prompts_per_step": "it counts images over all devices, not captions",
    "rl.clip_low": "the upper bound is rl.clip_high",
    "rl.micro_batches": "it counts the parts that the batch of a step is split into",
    "optim.warmup_steps": "it counts steps",
    "mesh.data": "the mesh.* settings spread a run over devices",
    "mesh.fsdp": "the mesh.* settings spread a run over devices",
    "model.train_vision": "the vision tower is frozen without it",
}

ABSENT = (
    Row(
        "base weights are kept in bfloat16, quantised ones (QLoRA) are not there yet",
        "load_in_4bit load_in_8bit bnb_4bit_quant_type use_bnb_nested_quant", words="qlora",
    ),
    Row(
        "training is counted in steps of one rollout each, so set steps to epochs x images / "
        "prompts_per_step",
        "num_train_epochs", "trainer.total_epochs", "", "epochs num_epochs",
    ),
    Row(
        "captions are sampled by the policy in place, without vLLM or SGLang",
        "use_vllm vllm_mode vllm_gpu_memory_utilization",
        f"{_ROLLOUT}.gpu_memory_utilization {_ROLLOUT}.max_num_seqs {_ROLLOUT}.enforce_eager",
        "rollout_engine rollout_vllm_hbm_utilization", "vllm sglang",
    ),
    Row(
        "sampling knows rollout.temperature and rollout.top_p, others are not there yet",
        "top_k min_p repetition_penalty", f"{_ROLLOUT}.top_k", "top_k",
    ),
    Row(
        "an entropy bonus is not there yet",
        "entropy_coef use_adaptive_entropy top_entropy_quantile", f"{_ACTOR}.entropy_coeff",
    ),
    Row(
        "a second bound of the ratio (dual clipping) is not there yet",
        "delta", f"{_ACTOR}.clip_ratio_c", "epsilon_c",
    ),
    Row(
        "the ratio is taken per token, per caption (GSPO) is not there yet",
        "importance_sampling_level", f"{_ACTOR}.policy_loss.loss_mode", "loss_algo",
    ),
    Row(
        "leaving cut captions out of the loss is not there yet",
        "mask_truncated_completions", "", "overlong_loss_masking",
    ),
    Row(
        "the reference policy of rl.kl_coef is the starting policy and stays it",
        "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
    ),
    Row(
        "each update takes all captions of a rollout, and rl.updates_per_rollout counts updates",
        "steps_per_generation", f"{_ACTOR}.ppo_mini_batch_size", "mini_batch_size",
    ),
    Row(
        "there is no critic, advantages are taken within a group of captions",
        "", "algorithm.gamma algorithm.lam critic.optim.lr", "critic_optimizer",
    ),
    Row(
        "`balcap train --resume RUN` goes on with a run",
        "resume_from_checkpoint", "trainer.resume_mode trainer.resume_from_path",
    ),
)  # fmt: skip

_PREFIXES = {"vllm_": "use_vllm", "rollout_vllm_": "use_vllm", "rollout_sglang_": "use_vllm"}


def exact(name: str) -> list[str]:
    """The settings that another framework calls `name`, dotted."""
    return [row.ours for row in SETTINGS if name in row.names()]


def ending(name: str) -> list[str]:
    """The one setting that has a longer name with this end elsewhere: `rollout.n`, `ppo_epochs`."""
    found = [row.ours for row in SETTINGS if _ends(row, name)]
    return found if len(found) == 1 else []


def why_not(name: str) -> str:
    """A sentence on a setting of other frameworks that has no counterpart here; else ""."""
    for prefix, known in _PREFIXES.items():
        name = known if name.startswith(prefix) else name
    for row in ABSENT:
        if name in row.names() or _ends(row, name):
            return row.ours
    return ""


def _ends(row: Row, name: str) -> bool:
    return any(other.endswith(f".{name}") for other in row.names())
