"""Every setting of a run, with its default. Recipes in `configs/` change what they must.

Where the paper (MIRG-RL) leaves a value open, the default is that of its closest open peer,
UniVG-R1 (arXiv 2505.14231), and marked "open".
"""

from ml_collections import ConfigDict


def _common() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "num_steps": 1000,
            "batch_size": 128,  # examples (SFT) or prompts (GRPO) a step
            "init_from": "",  # run, checkpoint, HF folder or hub name to start from; "": model.path
            "freeze": ("visual",),  # parts not trained: "visual", "decoder", …; open
            # With a rank, adapters alone are trained, and all of the base is frozen.
            "lora": {
                "rank": 0,  # 0: off
                "alpha": 32,  # the adapters' product is scaled by alpha / rank
                # Layers of the decoder; these are all there are.
                "targets": (
                    "q_proj",
                    "k_proj",
                    "v_proj",
                    "o_proj",
                    "gate_proj",
                    "up_proj",
                    "down_proj",
                ),
                "tower": False,  # the dense layers of the vision blocks too
            },
            "model": {
                "path": "Qwen/Qwen2-VL-7B-Instruct",  # Hugging Face folder or hub name
                "compute_dtype": "bfloat16",
                "param_dtype": "float32",  # the masters that the optimizer moves
                # What a layer's backward pass recomputes: "none" of it, all but the "dots" (outputs
                # of projections), or the "full" layer.
                "remat": "full",
                "attention": "auto",  # auto: splash on TPU, cudnn on GPU, else xla
            },
            "data": {
                "train_json": "",  # MGrounding-630k JSON, MIG-Bench JSON or trajectory JSONL
                "image_root": "",
                "min_pixels": 3136,
                "max_pixels": 401408,  # open
                # Sizes that arrays are padded to (mirg_jax/data/batching.py); the last is the
                # limit, and each combination met is one compilation.
                "shapes": {"lengths": (3072, 6144), "slots": (4, 8), "patches": (2048,)},
                "threads": 2,
            },
            "prompt": {  # wording around the question; open
                "system": "You are a helpful assistant.",
                "image_label": "Image-{n}: ",
                "instruction": "",
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 0.0,
                "schedule": "cosine",  # open
                "warmup_ratio": 0.015,  # open
                "final_ratio": 0.0,
                "weight_decay": 0.0,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "clip_norm": 1.0,
                "adam_ratio": 1.0,  # muon: Adam's rate for embeddings, norms and biases over muon's
            },
            "mesh": {"data": 1, "fsdp": -1, "tensor": 1},  # -1: the devices that the others leave
            "sampling": {
                # Each group of so many devices holds one copy of the weights, in the compute dtype,
                # and answers rows of its own.
                "tensor": 1,
                # GRPO: prompts sampled at a time, on all devices together (0: a micro-batch), and
                # of those decoded side by side; when one's completions have all ended, the next
                # takes its place (0: all).
                "prompts": 0,
                "slots": 0,
            },
            "cpu_devices": 0,  # split the CPU into so many devices (tests, demo); 0: leave it
            "checkpoint": {"every": 100, "keep": 2},
            "max_skipped": 5,  # updates in a row that are not finite, after which the run stops
            "evaluation": {
                "batch_size": 16,
                "max_tokens": 1024,
                # What the model's boxes are: the "grid" that ours are trained on, or "pixels" of
                # the resized image, as Qwen2.5-VL's published models have them.
                "coordinates": "grid",
                # In training: steps between evaluations (0: none) on rows of a benchmark that are
                # not trained on. The best checkpoint is kept beside the latest.
                "every": 0,
                "benchmark": "",  # MIG-Bench's format
                "image_root": "",
                "limit": 0,  # only so many rows, spread over the file; 0: all
            },
        }
    )


def inference() -> ConfigDict:
    """Answering questions alone, as scripts/evaluate.py does."""
    config = _common()
    config.model.param_dtype = config.model.compute_dtype
    return config


def sft() -> ConfigDict:
    """Trajectory SFT (the paper's stage 1): 10k samples, batch 128, learning rate 2e-5."""
    config = _common()
    config.num_steps = 78  # one epoch of 10k; open
    config.optimizer.learning_rate = 2e-5
    config.rows_per_micro_batch = 8  # packed rows computed at a time; gradients are accumulated
    config.logprob_chunk = 1024  # tokens of each row whose logits exist at a time
    return config


def grpo() -> ConfigDict:
    """Image-aware GRPO (the paper's stage 2): 7k samples, learning rate 5e-6, equation 5."""
    config = _common()
    config.num_steps = 437  # one epoch of 7k prompts at 16 a step; open
    config.batch_size = 16  # prompts; × group = the paper's 128 if that counts completions; open
    config.optimizer.learning_rate = 5e-6
    config.prompts_per_micro_batch = 8
    config.logprob_chunk = 1024
    config.grpo = ConfigDict(
        {
            "group": 8,  # completions a prompt, the paper's N; open
            "updates": 1,  # optimizer steps on each rollout
            "temperature": 1.0,  # open
            "top_p": 1.0,
            "max_tokens": 1024,  # of a completion; open
            "completion_lengths": (1024,),  # sizes that completions are padded to in the loss
            "max_objects": 8,  # boxes of an answer that are looked at
            "beta": 0.04,  # weight of the KL penalty, the paper's λ; open
            "kl": "k3",  # k1, k2, k3, or exact (over the whole vocabulary)
            "kl_clamp": 10.0,
            "clip_low": 0.2,  # open
            "clip_high": 0.2,
            "normalisation": "sequence",  # sequence (equation 5), token, constant
            "advantage_scale": "std",  # std (equation 4), none
            "advantage_epsilon": 1e-4,
            # Weights of equation 3. Others: "object_gated", or "module:function".
            "rewards": {"format": 1.0, "image": 1.0, "object": 1.0},
            "log_groups_every": 20,  # steps between groups written out to be read
            "log_groups": 4,
        }
    )
    return config
