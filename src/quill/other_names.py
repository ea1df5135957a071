"""What flags are called in other tools, and what Quill has instead."""

from __future__ import annotations

from collections.abc import Collection

from quill.validation import nearest

# Quill's flag: its names in nanoGPT, nanochat, the Hugging Face Trainer, llama.cpp, mlx-lm, PyTorch Lightning, …
_SAME = {
    "learning_rate": "lr max_lr peak_lr base_lr",
    "max_iters": "max_steps num_steps n_steps steps num_iterations iterations iters n_iters num_iters train_steps",
    "min_lr": "lr_min end_lr final_lr",
    "lr_schedule": "lr_scheduler lr_scheduler_type scheduler schedule decay_lr",
    "warmup_iters": "warmup warmup_steps num_warmup_steps",
    "weight_decay": "wd",
    "beta1": "adam_beta1 b1",
    "beta2": "adam_beta2 b2",
    "grad_clip": "max_grad_norm clip_grad clip_grad_norm gradient_clip gradient_clip_val max_norm clip",
    "gradient_accumulation_steps": "grad_accum grad_accum_steps accumulation_steps accumulate_grad_batches",
    "batch_size": "bs micro_batch_size device_batch_size per_device_train_batch_size train_batch_size mbs",
    "block_size": "n_ctx ctx seq_len seq_length sequence_length sequence_len context context_length context_size "
    "context_window max_seq_len max_seq_length max_position_embeddings",
    "n_embd": "hidden_size d_model dim model_dim embed_dim emb_dim embedding_dim n_dim width",
    "n_layer": "num_layers n_layers num_hidden_layers depth layers",
    "n_head": "num_heads n_heads num_attention_heads heads",
    "n_kv_head": "num_key_value_heads num_kv_heads n_kv_heads kv_heads",
    "dropout": "drop_rate dropout_rate attn_dropout resid_pdrop",
    "activation": "act hidden_act act_fn",
    "tie_weights": "tie_word_embeddings tied_embeddings weight_tying",
    "architecture": "arch model_type",
    "eval_interval": "eval_every eval_steps val_interval save_every save_steps checkpoint_every save_interval",
    "eval_iters": "eval_batches val_batches",
    "log_interval": "log_every logging_steps report_every",
    "patience": "early_stopping early_stopping_patience",
    "dataset": "data train_data train_file data_path data_file dataset_name dataset_path input_file corpus text",
    "out_dir": "output output_dir save_dir checkpoint_dir ckpt_dir run_dir ckpt ckpt_path checkpoint_path model_path "
    "model model_dir",
    "dtype": "precision mixed_precision fp16 bf16 amp",
    "gradient_checkpointing": "activation_checkpointing grad_checkpointing checkpoint_activations",
    "device": "gpu cuda device_type",
    "seed": "random_seed manual_seed rng_seed",
    "optimizer": "optim opt",
    "tokenizer": "tokenizer_type encoding",
    "compile": "torch_compile",
    "max_new_tokens": "length max_length max_tokens num_tokens n_tokens n_predict gen_length max_new",
    "prompt": "start input text prefix",
    "prompt_file": "file input_file",
    "temperature": "temp",
    "top_k": "topk k",
    "top_p": "topp nucleus",
    "min_p": "minp",
    "repetition_penalty": "repeat_penalty rep_penalty",
    "num_samples": "num_return_sequences n_samples n samples best_of",
    "stop": "stop_string stop_sequence stop_strings stop_sequences eos",
    "engine": "backend",
    "quantization": "quantize quant int8 load_in_8bit",
}  # fmt: skip

# What no flag of Quill is called, and what to do instead.
_INSTEAD = {
    "epochs num_epochs n_epochs num_train_epochs max_epochs":
        "Quill counts steps, not epochs: --max_iters, or --minutes",
    "from_checkpoint resume_from resume_from_checkpoint": "--resume=True resumes the run in --out_dir",
    "eval_only": "quill evaluate measures a run without training",
    "wandb wandb_log wandb_project wandb_run_name use_wandb report_to logger log_with run_name":
        "metrics.jsonl has all metrics, and --tensorboard=True writes them for TensorBoard",
    "always_save_checkpoint save_total_limit": "the last and the best checkpoint are kept, one each --eval_interval",
    "vocab_size": "the text and its tokenizer decide the vocabulary",
    "do_sample greedy": "--temperature=0 always takes the most likely token",
    "num_workers": "batches need no worker processes",
}  # fmt: skip

_VALUES = {
    "device": {"gpu": "cuda", "nvidia": "cuda", "metal": "mps", "apple": "mps"},
    "dtype": {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"},
    "optimizer": {"adam": "adamw"},
    "lr_schedule": {"warmup_stable_decay": "wsd", "trapezoidal": "wsd"},
}

_VALUES_INSTEAD = {
    ("init_from", "resume"): "--resume=True resumes the run in --out_dir",
    ("init_from", "scratch"): "without --init_from, training starts with random weights",
}


def suggest_name(name: str, known: Collection[str]) -> str:
    """Return what to say about a setting that does not exist: " (did you mean 'batch_size'?)", or "".

    `known` are the settings that exist. Another spelling of one of them is tried first, then the name that other tools
    use, then the most similar name.
    """
    return _suggest(name, known, "") or nearest(name, known)


def suggest_flag(name: str, known: Collection[str]) -> str:
    """Return what `suggest_name` says, with flags: " (did you mean '--batch_size'?)". `known` are the flags' names."""
    flags = [f"--{each}" for each in known]
    said = _suggest(name, known, "--") or nearest(name, flags)
    longer = [flag for flag in flags if flag.startswith(name)]
    return said or (f" (did you mean '{longer[0]}'?)" if longer else "")


def suggest_value(flag: str, value: str) -> str:
    """Return what to use instead of a value that other tools have, or ""."""
    if better := _VALUES.get(flag, {}).get(value.lower()):
        return f"did you mean --{flag}={better}?"
    return _VALUES_INSTEAD.get((flag, value), "")


def _suggest(name: str, known: Collection[str], hyphens: str) -> str:
    """Return what is known about a name, with this before the names of settings."""
    plain = name.strip("-").replace("-", "_").lower()
    ours = plain if plain in known else next((n for n in known if plain in _SAME.get(n, "").split()), "")
    if ours:
        return f" (did you mean '{hyphens}{ours}'?)"
    advice = next((advice for others, advice in _INSTEAD.items() if plain in others.split()), "")
    return f" ({advice.replace('--', hyphens)})" if advice else ""
