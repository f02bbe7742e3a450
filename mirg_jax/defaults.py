"""Default values of all settings. Recipes in `configs/` override only what differs.

Where the paper (MIRG-RL) does not state a value, the default follows the closest related work with
published code, UniVG-R1 (arXiv 2505.14231), and the comment says "open".
"""

from typing import Any

from ml_collections import ConfigDict


def _common() -> ConfigDict:
    """Returns the settings that all stages share."""
    return ConfigDict(
        {
            "seed": 0,
            "num_steps": 1000,
            "batch_size": 128,  # examples (SFT) or prompts (GRPO) per step
            # Initial weights: a run, a checkpoint, a Hugging Face folder (also in a bucket, gs://…)
            # or a hub name; "" means model.path.
            "init_from": "",
            "freeze": ("visual",),  # modules not trained: "visual", "decoder", …; open
            # With rank > 0 only the adapters are trained; the whole base model is frozen.
            "lora": _lora(),
            "model": _model(),
            "data": _data(),
            "prompt": _prompt(),
            "optimizer": _optimizer(),
            # Devices along each mesh axis; -1: all remaining devices.
            "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
            "sampling": {
                # Devices that share one copy of the weights (in the compute dtype). Each such group
                # decodes its own rows.
                "tensor": 1,
                # GRPO: prompts per call of the sampler, over all devices (0: a micro-batch), and
                # how many of them are decoded at the same time (0: all). When all completions of
                # one prompt have ended, the next prompt takes its slot.
                "prompts": 0,
                "slots": 0,
            },
            "cpu_devices": 0,  # number of virtual CPU devices (tests, demo); 0: no change
            # A save is due after so many steps or minutes (0: not counted; the first and last step
            # are always saved); number of saves kept (0: all).
            "checkpoint": {"every": 100, "minutes": 30.0, "keep": 2},
            # The first and the last step of a trace, recorded in WORKDIR/profile; () for none.
            "profile": (),
            # Weights & Biases: the project that the run is shown in; "": nowhere. Without an entity
            # it is the key's own, without a name the run has that of its folder.
            "wandb": {"project": "", "entity": "", "name": ""},
            "max_skipped": 5,  # stop after this many non-finite updates in a row; 0: never
            "evaluation": _evaluation(),
        }
    )


# What is other than above for a family of models, by config.json's model_type.
_OF_FAMILY = {
    "qwen3_vl": {
        "prompt.system": "",  # its chat template has none
        "data.min_pixels": 65536,
        "data.max_pixels": 524288,  # 512 visual tokens, as 401408 are for the others; open
    },
}


def for_family(config: ConfigDict, model_type: str) -> ConfigDict:
    """Changes settings to the defaults of a family of models, and returns them.

    Args:
      config: the settings.
      model_type: the family's name in config.json.
    """
    config.update_from_flattened_dict(_OF_FAMILY.get(model_type, {}))
    return config


def _lora() -> dict[str, Any]:
    """Low-rank adapters."""
    return {
        "rank": 0,  # 0: no LoRA
        "alpha": 32,  # the adapters' product is scaled by alpha / rank
        # Decoder layers that get adapters; the default is all that can have one.
        "targets": (
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ),
        "tower": False,  # whether the dense layers of the vision blocks get adapters too
    }


def _model() -> dict[str, Any]:
    """The model, and how it is computed."""
    return {
        "path": "Qwen/Qwen2-VL-7B-Instruct",  # Hugging Face folder or hub name
        "compute_dtype": "bfloat16",
        "param_dtype": "float32",  # dtype of the master weights that the optimizer updates
        # Rematerialisation in a layer's backward pass: "none" recomputes nothing, "dots"
        # everything except projection outputs, "full" the whole layer.
        "remat": "full",
        # Attention implementation: "xla", "splash" or "cudnn"; "auto" is splash on TPU,
        # cudnn on GPUs that can run it in this dtype, and xla otherwise.
        "attention": "auto",
    }


def _data() -> dict[str, Any]:
    """The training data, and how its images are read."""
    return {
        "train_json": "",  # MGrounding-630k, MIG-Bench or trajectories, JSON or JSON lines
        "image_root": "",  # folder, or gs:// URL, that image paths are relative to
        "follow_links": False,  # whether links below it may lead to files elsewhere
        # Whether images are turned as their EXIF orientation says; False: read as stored,
        # which is what boxes of published data sets are relative to.
        "apply_exif": False,
        # Folder on a disk that keeps the images of a root in a store; "": none are kept.
        "image_cache": "",
        "min_pixels": 3136,  # images are resized to between min_pixels and max_pixels
        "max_pixels": 401408,  # open
        # Padded sizes of arrays (mirg_jax/data/batching.py): tokens per row, image slots
        # per row, patches per slot. The last of each is the upper limit; every combination
        # that occurs is compiled once.
        "shapes": {"lengths": (3072, 6144), "slots": (4, 8), "patches": (2048,)},
        # CPU threads that load and preprocess examples; -1: one a core, 32 at most.
        "threads": -1,
        # Share of rows that ask for an answer without thoughts, drawn among those that have no
        # "direct" of their own.
        "direct": 0.0,
        # A file of scripts/rate_rows.py, and what it is used for: rows whose mean IoU is from the
        # first to the second number of `difficulty`; trajectories that gain by these fractions over
        # a direct answer that hits, and over one that doesn't, as MG-Thinker's (0.1, 0.2); (): all.
        "ratings": "",
        "difficulty": (),
        "gain": (),
    }


def _prompt() -> dict[str, Any]:
    """The text around the question; open."""
    return {
        "system": "You are a helpful assistant.",
        "image_label": "Image-{n}: ",
        "instruction": "",
        # Its place where an answer without thoughts is asked for.
        "direct_instruction": "Answer at once, without thoughts.",
        # Whether the prompt ends with the "<think>" that answers begin with, as in the chat
        # template of Qwen3-VL's thinking variants.
        "thinking": False,
    }


def _optimizer() -> dict[str, Any]:
    """The optimizer."""
    return {
        "name": "adamw",
        "learning_rate": 0.0,  # peak learning rate
        "schedule": "cosine",  # open
        "warmup_ratio": 0.015,  # warm-up as a fraction of all updates; open
        "final_ratio": 0.0,  # final learning rate as a fraction of the peak
        "weight_decay": 0.0,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "clip_norm": 1.0,  # maximum global gradient norm; 0: no clipping
        # With muon, embeddings, norms and biases use Adam with learning_rate × adam_ratio.
        "adam_ratio": 1.0,
        # Whether the moments wait in the host's memory between updates: room for eight bytes a
        # trained parameter, for two copies of them a step.
        "on_host": False,
    }


def _evaluation() -> dict[str, Any]:
    """Evaluation, by scripts/evaluate.py and during training."""
    return {
        # Questions answered at once, over all devices; 0: by the devices and their memory
        # (mirg_jax/inference/rows.py).
        "batch_size": 0,
        "max_tokens": 1024,  # per completion
        # Coordinates of the model's boxes: the 0–1000 "grid" that our models are trained
        # on, "pixels" of the resized image, as in the published Qwen2.5-VL models, or the
        # grid in lists of "thousandths", as in the published Qwen3-VL models.
        "coordinates": "grid",
        "direct": False,  # whether answers without thoughts are asked for
        # Evaluation during training on held-out rows of a benchmark: steps between
        # evaluations (0: none). The best checkpoint is kept as well as the latest.
        "every": 0,
        "benchmark": "",  # file in MIG-Bench's format
        "image_root": "",  # folder that the benchmark's image paths are relative to
        "limit": 0,  # number of rows, drawn from all tasks in proportion; 0: all
    }


def inference() -> ConfigDict:
    """Returns the settings for inference without training, as in scripts/evaluate.py."""
    config = _common()
    config.model.param_dtype = config.model.compute_dtype
    return config


def sft() -> ConfigDict:
    """Returns the settings of trajectory SFT, the paper's stage 1.

    The paper: 10k samples, batch size 128, learning rate 2e-5.
    """
    config = _common()
    config.num_steps = 78  # one epoch of 10k samples; open
    config.optimizer.learning_rate = 2e-5
    config.rows_per_micro_batch = 8  # packed rows per micro-batch; gradients are accumulated
    config.logprob_chunk = 1024  # tokens of each row whose logits are in memory at a time; 0: all
    return config


def grpo() -> ConfigDict:
    """Returns the settings of image-aware GRPO, the paper's stage 2.

    The paper: 7k samples, learning rate 5e-6, objective of equation 5.
    """
    config = _common()
    config.num_steps = 437  # one epoch of 7k prompts, 16 per step; open
    # Prompts per step. 16 × group is the paper's 128, if that counts completions; open.
    config.batch_size = 16
    config.optimizer.learning_rate = 5e-6
    config.prompts_per_micro_batch = 8
    config.logprob_chunk = 1024
    config.grpo = ConfigDict(
        {
            "group": 8,  # completions per prompt, the paper's N; open
            "updates": 1,  # passes over a rollout, each of an update a mini-batch
            # Which of the sampled groups are learned from (docs/algorithms.md). Prompts sampled at
            # a time are pool x batch_size; at most batch_size of their groups are taken.
            "pool": 1,
            # A group is left out if the standard deviation of its rewards is at or below this.
            # Several values take turns, each for an equal part of the run; (): none is left out.
            "gate": (),
            # Pools sampled for a step, at most, while fewer groups than batch_size are above the
            # gate; 1: steps are not filled up. verl's scripts for DAPO have 10
            # (max_num_gen_batches). A step that is short then is taken with what it has.
            "max_rounds": 1,
            # Order of the groups: "sampled", or "reward", by falling mean reward.
            "order": "sampled",
            # Parts that the groups are divided into, in this order; each has its own update.
            "mini_batches": 1,
            "temperature": 1.0,  # open
            "top_p": 1.0,
            "max_tokens": 1024,  # per completion; open
            "completion_lengths": (1024,),  # padded lengths of completions in the loss
            # Boxes per answer that can match a target; further ones are counted as surplus. A row
            # with more targets is rejected.
            "max_objects": 8,
            "beta": 0.04,  # weight of the KL penalty, the paper's λ; open
            "kl": "k3",  # estimator: "k2", "k3", or "exact" (over the whole vocabulary)
            "kl_clamp": 10.0,  # bound on the log-ratio inside the KL estimator
            # Policy loss (docs/algorithms.md): "ppo" (equation 5, clipped), "gspo", "cispo", "sapo"
            # or "reinforce".
            "objective": "ppo",
            "clip_low": 0.2,  # PPO clipping: ratios between 1 - clip_low and 1 + clip_high; open
            "clip_high": 0.2,
            "dual_clip": 0.0,  # bound on PPO's ratios if the advantage is negative; 0: none
            "tau_positive": 1.0,  # SAPO's temperatures, for positive advantages and for the others
            "tau_negative": 1.05,
            # Whether completions are sampled with 8-bit weights in the decoder's layers.
            "int8_sampling": False,
            # A token's loss is weighed by how much likelier it is to the learner than it was to the
            # sampler, by this at most (truncated importance sampling); 0: not weighed.
            "importance_cap": 0.0,
            # Whether completions that `max_tokens` cut are left out of the loss.
            "mask_cut": False,
            "normalisation": "sequence",  # of the loss: "sequence", "token", "constant"; open
            # "std" (equation 4), "none", "batch_std", "leave_one_out" or "gdpo"
            # (docs/algorithms.md).
            "advantage_scale": "std",
            "advantage_epsilon": 1e-4,  # added to the standard deviation
            # Whether a group's advantages are multiplied by exp(1 - its mean IoU), as in UniVG-R1.
            "difficulty_weight": False,
            # Reward weights of equation 3. docs/algorithms.md has the other names.
            "rewards": {"format": 1.0, "image": 1.0, "object": 1.0},
            # Rewards beside those, as "name=weight"; a name may also be of a function of your own,
            # "path/to/file.py:function" or "module:function", with "text:" before it if it reads
            # texts.
            "more_rewards": (),
            "text_reward_seconds": 60.0,  # limit of such a one, for the completions of a call
            "overlong_buffer": 0.2,  # last part of max_tokens, in which "overlong" falls to -1
            # "object_bounded" is 0 below the first, 1 from the second.
            "iou_thresholds": (0.1, 0.9),
            "log_groups_every": 20,  # steps between samples written for inspection; 0: none
            "log_groups": 4,  # groups written each time
        }
    )
    return config
