"""Typed settings of a run, created from a `ConfigDict` by `read`.

`mirg_jax.defaults` explains each setting; the names here are the same. Settings check themselves
when they are created (`checks.py`): an invalid one is a `ConfigError`, wherever it comes from.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from ml_collections import ConfigDict

from mirg_jax import defaults
from mirg_jax.data.batching import Shapes
from mirg_jax.data.images import ImageRoot, Root
from mirg_jax.data.pipeline import Preparer, threads_of_this_machine
from mirg_jax.data.prompts import PromptStyle, Tokenizer
from mirg_jax.errors import CheckpointError, ConfigError
from mirg_jax.files import places
from mirg_jax.models.config import ModelConfig
from mirg_jax.models.layers import Precision
from mirg_jax.models.lora import Lora
from mirg_jax.rl import own_rewards, rewards
from mirg_jax.rl.objective import Bounds
from mirg_jax.rl.rewards import RewardOptions
from mirg_jax.runs import checks, loading, run_folder, setting_types, tokenizer, wandb_run
from mirg_jax.runs.wandb_run import WandbSettings

Stage = Literal["sft", "grpo", "inference"]


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The model and how it is computed."""

    path: str
    precision: Precision
    remat: str
    attention: str

    def __post_init__(self):
        checks.model(self)


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The training data, the range of image sizes, and the padded sizes of arrays."""

    train_json: str
    image_root: str
    min_pixels: int
    max_pixels: int
    shapes: Shapes
    threads: int
    # Runs made before have no such settings.
    follow_links: bool = False
    apply_exif: bool = False
    image_cache: str = ""
    direct: float = 0.0
    ratings: str = ""
    difficulty: tuple[float, ...] = ()
    gain: tuple[float, ...] = ()

    @property
    def reading_threads(self) -> int:
        """The number of threads that read and prepare examples."""
        return threads_of_this_machine() if self.threads < 0 else self.threads

    def root(self, image_root: Root) -> ImageRoot:
        """Returns an image root with the settings' way of reading images."""
        if isinstance(image_root, ImageRoot):
            return image_root
        folder = places.of(image_root, "image_root")
        return ImageRoot(folder, self.follow_links, self.apply_exif, self.image_cache)

    def __post_init__(self):
        checks.data(self)


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer and its learning-rate schedule."""

    name: str
    learning_rate: float
    schedule: str
    warmup_ratio: float
    final_ratio: float
    weight_decay: float
    b1: float
    b2: float
    eps: float
    clip_norm: float
    adam_ratio: float
    on_host: bool

    def __post_init__(self):
        checks.optimizer(self)


@dataclasses.dataclass(frozen=True)
class DeviceSettings:
    """Mesh sizes for training and sampling, and what the devices are started for."""

    data: int
    fsdp: int
    tensor: int
    sampling_tensor: int
    cpu_devices: int
    float32: bool  # whether the model computes in float32

    def __post_init__(self):
        checks.devices(self)


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """Steps and minutes between checkpoints (0: not counted), and how many of the latest are kept.

    With keep=0 all are kept.
    """

    every: int
    keep: int
    minutes: float = 0  # runs made before have none

    def __post_init__(self):
        checks.checkpoint(self)


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """Generation of answers, and evaluation on held-out rows during training."""

    batch_size: int
    max_tokens: int
    coordinates: str
    every: int
    benchmark: str
    image_root: str
    limit: int
    direct: bool = False  # runs made before have no such setting

    def __post_init__(self):
        checks.evaluation(self)


@dataclasses.dataclass(frozen=True)
class GrpoSettings:
    """GRPO's sampling, rewards and objective."""

    group: int
    updates: int
    temperature: float
    top_p: float
    max_tokens: int
    completion_lengths: tuple[int, ...]
    max_objects: int
    beta: float
    kl: str
    kl_clamp: float
    clip_low: float
    clip_high: float
    normalisation: str
    advantage_scale: str
    advantage_epsilon: float
    rewards: Mapping[str, float]
    log_groups_every: int
    log_groups: int
    prompts: int  # prompts per call of the sampler, over all devices; 0: a micro-batch
    slots: int  # how many of them are decoded at the same time; 0: all
    # Runs made before have no such settings.
    difficulty_weight: bool = False
    objective: str = "ppo"
    dual_clip: float = 0.0
    tau_positive: float = 1.0
    tau_negative: float = 1.05
    mask_cut: bool = False
    overlong_buffer: float = 0.2
    iou_thresholds: tuple[float, ...] = (0.1, 0.9)
    pool: int = 1
    gate: tuple[float, ...] = ()
    max_rounds: int = 1
    order: str = "sampled"
    mini_batches: int = 1
    int8_sampling: bool = False
    importance_cap: float = 0.0
    text_reward_seconds: float = 60.0

    def __post_init__(self):
        checks.grpo(self)

    @property
    def selects(self) -> bool:
        """Whether the groups to learn from are chosen, ordered or divided into mini-batches."""
        return self.pool > 1 or bool(self.gate) or self.order != "sampled" or self.mini_batches > 1

    @property
    def takes_policy_before(self) -> bool:
        """Whether the learner's own probabilities before its updates have to be computed first."""
        return bool(self.importance_cap) and self.updates * self.mini_batches > 1

    @property
    def bounds(self) -> Bounds:
        """How far the policy may move from the one that sampled."""
        return Bounds(**{name: getattr(self, name) for name in Bounds._fields})

    @property
    def reward_options(self) -> RewardOptions:
        """What some of the rewards depend on besides the answers."""
        return RewardOptions(**{name: getattr(self, name) for name in RewardOptions._fields})


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run.

    Attributes:
      micro_batch: packed rows (SFT) or prompts (GRPO) per micro-batch.
      lora: the LoRA settings; None if all weights except those of `freeze` are trained.
      grpo: the GRPO settings; None in other stages.
      text: the config as JSON, as saved in a run's folder.
    """

    stage: Stage
    seed: int
    num_steps: int
    batch_size: int
    micro_batch: int
    logprob_chunk: int
    init_from: str
    freeze: tuple[str, ...]
    max_skipped: int
    model: ModelSettings
    lora: Lora | None
    data: DataSettings
    prompt: PromptStyle
    optimizer: OptimizerSettings
    devices: DeviceSettings
    checkpoint: CheckpointSettings
    evaluation: EvaluationSettings
    grpo: GrpoSettings | None
    text: str
    profile: tuple[int, ...] = ()  # the first and the last step that are traced
    wandb: WandbSettings = WandbSettings()

    def __post_init__(self):
        checks.whole(self)

    @property
    def source(self) -> str:
        """The model that the run starts from: a path or hub name."""
        return self.init_from or self.model.path

    @property
    def tower_is_frozen(self) -> bool:
        """Whether the vision tower is not trained, so that visual tokens stay the same."""
        return not self.lora.tower if self.lora else "visual" in self.freeze

    @property
    def micro_batch_name(self) -> str:
        """The name of `micro_batch` in the config."""
        return "prompts_per_micro_batch" if self.grpo else "rows_per_micro_batch"

    @property
    def sampled_prompts(self) -> int:
        """GRPO's prompts per call of the sampler, over all devices."""
        return self.grpo.prompts or self.micro_batch

    @property
    def examples_at_once(self) -> int:
        """Examples that are read for a step, or for each of its rounds of sampling."""
        return self.batch_size * (self.grpo.pool if self.grpo else 1)

    @property
    def passes(self) -> int:
        """Passes over what a step learns from."""
        return self.grpo.updates if self.grpo else 1

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates per training step."""
        return self.passes * (self.grpo.mini_batches if self.grpo else 1)

    def for_model(self, model: ModelConfig) -> "Settings":
        """Returns the settings with arrays for a model's patches; all who read images need them.

        Args:
          model: the model's configuration.
        """
        shapes = dataclasses.replace(self.data.shapes, patch=model.vision.patch_size)
        return dataclasses.replace(self, data=dataclasses.replace(self.data, shapes=shapes))

    def preparer(self, tokenizer: Tokenizer, *, with_response: bool, image_root: Root) -> Preparer:
        """Creates the callable that reads and encodes single examples.

        Args:
          tokenizer: the model's tokenizer.
          with_response: whether examples are encoded with their response.
          image_root: folder that image paths are relative to.
        """
        return Preparer(
            image_root=self.data.root(image_root),
            tokenizer=tokenizer,
            style=self.prompt,
            shapes=self.data.shapes,
            min_pixels=self.data.min_pixels,
            max_pixels=self.data.max_pixels,
            with_response=with_response,
        )


# Reading ------------------------------------------------------------------------------------------


def read(config: ConfigDict) -> Settings:
    """Converts a config of `mirg_jax.defaults` to settings.

    Raises:
      ConfigError: if a value is invalid, missing, or of another type.
    """
    stage = _stage_of(config)
    setting_types.check(config.to_dict(), _DEFAULTS[stage]().to_dict())
    micro_batch = 0
    if stage != "inference":
        names = {"grpo": "prompts_per_micro_batch", "sft": "rows_per_micro_batch"}
        micro_batch = config[names[stage]]
    data, mesh, lora = config.data, config.mesh, config.lora
    shapes = Shapes(**{name: tuple(sizes) for name, sizes in data.shapes.items()})
    return Settings(
        stage=stage,
        seed=config.seed,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        micro_batch=micro_batch,
        logprob_chunk=config.get("logprob_chunk", 0),
        init_from=config.init_from,
        freeze=tuple(config.freeze),
        max_skipped=config.max_skipped,
        model=ModelSettings(
            path=config.model.path,
            precision=Precision(
                _dtype("model.compute_dtype", config.model.compute_dtype),
                _dtype("model.param_dtype", config.model.param_dtype),
            ),
            remat=config.model.remat,
            attention=config.model.attention,
        ),
        lora=_lora(lora) if lora.rank else None,
        data=DataSettings(**_data(data) | {"shapes": shapes}),
        prompt=PromptStyle(**config.prompt),
        optimizer=OptimizerSettings(**config.optimizer),
        devices=DeviceSettings(
            data=mesh.data,
            fsdp=mesh.fsdp,
            tensor=mesh.tensor,
            sampling_tensor=config.sampling.tensor,
            cpu_devices=config.cpu_devices,
            float32=config.model.compute_dtype == "float32",
        ),
        checkpoint=CheckpointSettings(**config.checkpoint),
        evaluation=EvaluationSettings(**config.evaluation),
        grpo=_grpo(config) if stage == "grpo" else None,
        text=config.to_json_best_effort(indent=1),
        profile=tuple(config.get("profile", ())),
        wandb=WandbSettings(**config.get("wandb", {})),
    )


def read_for_training(config: ConfigDict, stage: Stage) -> Settings:
    """Converts a config to settings, and checks that it has all that training requires.

    Args:
      config: the config.
      stage: the stage that the config must be for.

    Raises:
      ConfigError: if a value is invalid or missing, or the config is for another stage.
    """
    settings = read(config)
    if settings.stage != stage:
        raise ConfigError(f"--config: this recipe is for {settings.stage}; give one for {stage}")
    if not settings.data.train_json:
        raise ConfigError("data.train_json is not set: give the path of the training data")
    wandb_run.check(settings.wandb)
    if settings.grpo:
        check_rewards(settings.grpo)
    if settings.evaluation.every and not settings.evaluation.benchmark:
        raise ConfigError("evaluation.every is set, but evaluation.benchmark is not: give its path")
    return settings


def check_rewards(grpo: GrpoSettings) -> None:
    """Checks what only training needs: a user's own rewards are loaded.

    Raises:
      ConfigError: if one can't be loaded, or the KL penalty has no effect.
    """
    rewards.resolve(grpo.rewards)
    for name in filter(own_rewards.is_of_texts, grpo.rewards):
        own_rewards.load_function(name)
    if grpo.kl == "k1" and grpo.beta:
        raise ConfigError(
            "grpo.kl='k1': its gradient is 0 on average, so that the penalty would hold nothing "
            "back; give 'k3', 'k2' or 'exact', or grpo.beta=0"
        )


def of_model(source: str | places.Place) -> ConfigDict:
    """Returns the config that a run was trained with, or the defaults of any other model's family.

    Raises:
      CheckpointError: if the run's config.json can't be read, or holds something else.
    """
    usual = defaults.inference()

    def parse(raw: Any) -> ConfigDict:
        config = ConfigDict(usual.to_dict() | raw)
        setting_types.check(config.to_dict(), _DEFAULTS[_stage_of(config)]().to_dict())
        return config

    if saved := run_folder.find_run(source):
        own = run_folder.read_record(saved.run / "config.json", parse, "a run's settings")
        return own or usual
    with contextlib.suppress(CheckpointError):  # whoever loads the model says what is wrong
        folder = loading.model_folder(source)
        defaults.for_family(usual, ModelConfig.from_folder(folder).model_type)
        usual.prompt.thinking = tokenizer.begins_thoughts(folder)
    return usual


_DEFAULTS = {"sft": defaults.sft, "grpo": defaults.grpo, "inference": defaults.inference}


def _stage_of(config: ConfigDict) -> Stage:
    if "grpo" in config:
        return "grpo"
    return "sft" if "rows_per_micro_batch" in config else "inference"


def _lora(config: ConfigDict) -> Lora:
    try:
        return Lora(**config.to_dict() | {"targets": tuple(config.targets)})
    except ValueError as error:
        raise ConfigError(f"config.lora: {error}") from None


def _data(config: ConfigDict) -> dict[str, Any]:
    values = config.to_dict()
    pairs = ("difficulty", "gain")
    return values | {name: tuple(values[name]) for name in pairs if name in values}


def _grpo(config: ConfigDict) -> GrpoSettings:
    values = config.grpo.to_dict()
    values["rewards"] |= rewards.parse_terms(values.pop("more_rewards", ()))
    for name in ("completion_lengths", "iou_thresholds", "gate"):
        if name in values:
            values[name] = tuple(values[name])
    return GrpoSettings(
        **values,
        prompts=config.sampling.prompts,
        slots=config.sampling.slots,
    )


def _dtype(field: str, name: str) -> Any:
    checks.one_of(field, name, checks.DTYPES)
    return jnp.dtype(name)
