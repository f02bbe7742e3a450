"""The settings of trajectory construction: defaults, typed settings, and `read` between them.

`trajectories` returns the defaults, which are the paper's. `read` is the only function that takes a
`ConfigDict`; it checks all that can be checked without files or servers.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from mirg_jax.chat.client import check_extra_body
from mirg_jax.errors import ConfigError
from mirg_jax.grounding.tasks import TRAINING_TASKS
from mirg_jax.runs import setting_types
from mirg_jax.trajectories.checks import Rules
from mirg_jax.trajectories.limits import Costs
from mirg_jax.trajectories.prompts import STAGES

if TYPE_CHECKING:
    from mirg_jax.runs.settings import Settings

# Defaults -----------------------------------------------------------------------------------------


def teacher(model: str, **changes) -> ConfigDict:
    """Returns a stage's settings; by default OpenAI's server, with GPT-4o's prices of late 2024."""
    config = ConfigDict(
        {
            "teacher": "openai",  # openai: a server; model: a model in this process; scenes
            "model": model,  # name on the server; for "model", as scripts/ground.py takes it
            "base_url": "",  # "": the environment's OPENAI_BASE_URL, or OpenAI's own server
            # The environment variable that holds the key, not the key itself; "": no key is needed.
            "key_variable": "OPENAI_API_KEY",
            "temperature": 1.0,  # 0: always the likeliest answer, so there is only one attempt
            "max_tokens": 2048,  # of an answer; 0: the field is left out of the request
            "extra_body": {},  # more fields of the request, if the server has them
            "recipe": {},  # for "model": a recipe as scripts/evaluate.py takes it; {}: its own
            "timeout": 180.0,  # seconds, for the whole answer
            "requests_per_minute": 500.0,  # 0: no limit
            "tokens_per_minute": 450_000.0,  # 0: no limit
            # Dollars per million tokens.
            "prompt_price": 2.5,
            "completion_price": 10.0,
            # Tokens that an answer and an image are assumed to take until answers are measured.
            "expected_tokens": 400,
            "tokens_per_image": 765,
        }
    )
    config.update(changes)
    return config


def trajectories() -> ConfigDict:
    """Returns the paper's settings: 10k + 7k questions, annotated by GPT-4o and Qwen2-VL-72B."""
    return ConfigDict(
        {
            "seed": 0,
            "select": {
                "sft": 10_000,  # 0: all questions, in the files' order, and none for RL
                "rl": 7_000,
                "weights": dict.fromkeys(TRAINING_TASKS, 1.0),  # shares of the tasks; open
                # A benchmark file whose images must not be used, and its image root: see select.py.
                "exclude": "",
                "exclude_root": "",
            },
            "prompts": "",  # folder of prompts; "": mirg_jax/trajectories/prompts
            "tries": 3,  # answers of each stage before a question is rejected
            "concurrency": 64,  # requests at a time
            "retries": 8,  # of a request that got no answer, before it is given up
            "backoff": 1.0,  # seconds before the first retry; doubles each time, up to a minute
            "max_dollars": 0.0,  # limit on the cost of all runs into one folder; 0: no limit
            "max_pixels": 1024 * 1024,  # of an image as it is sent
            "checks": {  # see mirg_jax/trajectories/checks.py
                "answer_iou": 0.9,
                "match_iou": 0.5,
                "truth_boxes": True,
                "min_words": 15,
                "max_words": 400,
                "max_objects": 16,
            },
            "stages": {
                "reasoning": teacher("gpt-4o"),
                "mapping": teacher(
                    "Qwen/Qwen2-VL-72B-Instruct",
                    base_url="http://localhost:8000/v1",
                    key_variable="",
                    # The answer consists of special tokens, which vLLM leaves out by default.
                    extra_body=ConfigDict({"skip_special_tokens": False}),
                    requests_per_minute=0.0,
                    tokens_per_minute=0.0,
                    prompt_price=0.0,
                    completion_price=0.0,
                    expected_tokens=250,
                    tokens_per_image=1369,
                ),
                "reassembly": teacher("gpt-4o", expected_tokens=600),
            },
            "scenes": {"seed": 0, "error": 0.0},  # of the teacher "scenes": see scene_teacher.py
            "page_examples": 60,  # trajectories shown in report.html
        }
    )


# Typed settings -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OpenAITeacherSettings:
    """A model behind a server with OpenAI's chat completions."""

    model: str
    base_url: str
    key_variable: str
    timeout: float
    temperature: float
    max_tokens: int
    extra_body: Mapping[str, Any]
    max_pixels: int

    @functools.cached_property
    def identity(self) -> str:
        """The settings that an answer depends on, as JSON; part of a request's key."""
        names = ("model", "temperature", "max_tokens", "extra_body", "max_pixels")
        return json.dumps({name: getattr(self, name) for name in names}, sort_keys=True)


@dataclasses.dataclass(frozen=True)
class ModelTeacherSettings:
    """A model that is loaded into this process.

    Attributes:
      recipe: how images are read, prompts worded and the model laid out; None: as in its own run.
    """

    model: str
    temperature: float
    max_tokens: int
    recipe: "Settings | None"

    @functools.cached_property
    def identity(self) -> str:
        """The settings that an answer depends on, as JSON; part of a request's key."""
        names = ("model", "temperature", "max_tokens")
        recipe = json.loads(self.recipe.text) if self.recipe else {}
        values = {name: getattr(self, name) for name in names} | {"recipe": recipe}
        return json.dumps(values, sort_keys=True)


@dataclasses.dataclass(frozen=True)
class SceneTeacherSettings:
    """The teacher that knows the procedural scenes.

    Attributes:
      seed: the seed that the scenes were drawn with.
      error: how far each side of a box may lie too far out, as a fraction of the box's side.
    """

    seed: int
    error: float

    @functools.cached_property
    def identity(self) -> str:
        """The settings that an answer depends on, as JSON; part of a request's key."""
        return json.dumps({"teacher": "scenes", "seed": self.seed, "error": self.error})


TeacherSettings = OpenAITeacherSettings | ModelTeacherSettings | SceneTeacherSettings


@dataclasses.dataclass(frozen=True)
class RateLimits:
    """What may be asked of a model per minute; 0 means no limit."""

    requests_per_minute: float
    tokens_per_minute: float


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """A stage's teacher, and how often, how fast and at what price it is asked.

    Attributes:
      tries: answers that may be refused before the question is rejected.
    """

    teacher: TeacherSettings
    tries: int
    limits: RateLimits
    costs: Costs


@dataclasses.dataclass(frozen=True)
class SelectionSettings:
    """Which questions are used.

    Attributes:
      sft, rl: numbers of questions; sft=0 takes all of the tasks, in the files' order, and leaves
        none for RL.
      weights: relative share of each task. Where a task has too few questions, the others give
        more.
      seed: of the random draw.
      exclude: a benchmark whose images must not be used; "" for none.
      exclude_root: the benchmark's image root; "" compares images by name only, otherwise copies
        under other names are found too.
    """

    sft: int
    rl: int
    weights: Mapping[str, float]
    seed: int
    exclude: str = ""
    exclude_root: str = ""


@dataclasses.dataclass(frozen=True)
class RequestSettings:
    """How requests are sent, retried and paid for, over all stages.

    Attributes:
      concurrency: requests at a time.
      retries: of a request that got no answer, before it is given up.
      backoff: seconds before the first retry; doubles each time, up to a minute.
      max_dollars: limit on the cost of all runs into one folder; 0 for no limit.
    """

    concurrency: int
    retries: int
    backoff: float
    max_dollars: float


@dataclasses.dataclass(frozen=True)
class TrajectorySettings:
    """All settings of trajectory construction.

    Attributes:
      prompts: folder of prompts; "" for the package's own.
      rules: of the checks, without the patterns that are read with the prompts.
      stages: by name, in order.
      page_examples: number of trajectories shown in report.html.
    """

    selection: SelectionSettings
    prompts: str
    rules: Rules
    stages: Mapping[str, StageSettings]
    requests: RequestSettings
    page_examples: int


# Reading ------------------------------------------------------------------------------------------


def read(config: ConfigDict) -> TrajectorySettings:
    """Reads and checks a config as `trajectories` returns it.

    Raises:
      ConfigError: for a value that can't work.
    """
    given = config.to_dict()
    for stage in given["stages"].values():
        stage.pop("recipe", None)  # which is checked where it is read
    setting_types.check_numbers(given)
    select = config.select
    settings = TrajectorySettings(
        selection=SelectionSettings(
            sft=select.sft,
            rl=select.rl,
            weights=select.weights.to_dict(),
            seed=config.seed,
            exclude=select.exclude,
            exclude_root=select.exclude_root,
        ),
        prompts=config.prompts,
        rules=Rules(**config.checks),
        stages={stage: _stage(config, stage) for stage in STAGES},
        requests=RequestSettings(
            concurrency=config.concurrency,
            retries=config.retries,
            backoff=config.backoff,
            max_dollars=config.max_dollars,
        ),
        page_examples=config.page_examples,
    )
    _check(settings)
    return settings


def _stage(config: ConfigDict, stage: str) -> StageSettings:
    values = config.stages[stage]
    read_teacher = {"openai": _openai, "scenes": _scenes, "model": _model}.get(values.teacher)
    if read_teacher is None:
        raise ConfigError(
            f"stages.{stage}.teacher={values.teacher!r}: openai, scenes and model are known"
        )
    # A teacher that would give the same answer again is asked only once.
    repeats = values.teacher == "scenes" or not values.temperature
    return StageSettings(
        teacher=read_teacher(config, stage),
        tries=min(config.tries, 1) if repeats else config.tries,
        limits=RateLimits(values.requests_per_minute, values.tokens_per_minute),
        costs=Costs(
            prompt_price=values.prompt_price,
            completion_price=values.completion_price,
            expected_tokens=values.expected_tokens,
            tokens_per_image=values.tokens_per_image,
            max_tokens=values.max_tokens,
        ),
    )


def _openai(config: ConfigDict, stage: str) -> OpenAITeacherSettings:
    values = config.stages[stage]
    return OpenAITeacherSettings(
        model=values.model,
        base_url=values.base_url,
        key_variable=values.key_variable,
        timeout=values.timeout,
        temperature=values.temperature,
        max_tokens=values.max_tokens,
        extra_body=values.extra_body.to_dict(),
        max_pixels=config.max_pixels,
    )


def _model(config: ConfigDict, stage: str) -> ModelTeacherSettings:
    values, recipe = config.stages[stage], None
    if values.recipe:
        # Imported here because it takes seconds, and the other teachers don't need it.
        from mirg_jax.runs import settings as run_settings

        try:
            recipe = run_settings.read(values.recipe)
        except ConfigError as error:
            raise ConfigError(f"stages.{stage}.recipe: {error}") from None
    return ModelTeacherSettings(values.model, values.temperature, values.max_tokens, recipe)


def _scenes(config: ConfigDict, stage: str) -> SceneTeacherSettings:
    return SceneTeacherSettings(config.scenes.seed, config.scenes.error)


# Checking -----------------------------------------------------------------------------------------


def _check(settings: TrajectorySettings) -> None:
    """Raises ConfigError for values that can't work, whatever the files and servers are."""
    selection, rules, requests = settings.selection, settings.rules, settings.requests
    counts = (selection.sft, selection.rl, *selection.weights.values())
    if min(counts) < 0 or not sum(selection.weights.values()):
        raise ConfigError("select: counts and weights may not be negative, nor all weights 0")
    if not (0 <= rules.answer_iou <= 1 and 0 <= rules.match_iou <= 1):
        raise ConfigError("checks: answer_iou and match_iou lie within 0..1")
    if rules.min_words > rules.max_words:
        raise ConfigError("checks: min_words may not be more than max_words")
    if rules.max_objects < 1:
        raise ConfigError("checks: max_objects must be at least 1")
    if requests.concurrency < 1:
        raise ConfigError("concurrency: at least one request must be under way")
    _check_not_negative(
        {
            "seed": selection.seed,
            "retries": requests.retries,
            "backoff": requests.backoff,
            "max_dollars": requests.max_dollars,
            "page_examples": settings.page_examples,
        }
    )
    for name, stage in settings.stages.items():
        _check_stage(f"stages.{name}", stage)


def _check_stage(field: str, stage: StageSettings) -> None:
    if stage.tries < 1:
        raise ConfigError("tries: at least one answer of each stage must be allowed")
    numbers = dataclasses.asdict(stage.costs) | dataclasses.asdict(stage.limits)
    _check_not_negative({f"{field}.{name}": value for name, value in numbers.items()})
    if isinstance(stage.teacher, OpenAITeacherSettings):
        if stage.teacher.timeout <= 0:
            raise ConfigError(f"{field}.timeout={stage.teacher.timeout:g} must be above 0")
        if stage.teacher.max_pixels < 1:
            raise ConfigError(f"max_pixels={stage.teacher.max_pixels} must be at least 1")
        check_extra_body(stage.teacher.extra_body, f"{field}.extra_body")
    if not isinstance(stage.teacher, SceneTeacherSettings):
        _check_not_negative({f"{field}.temperature": stage.teacher.temperature})
    else:
        _check_not_negative(
            {"scenes.seed": stage.teacher.seed, "scenes.error": stage.teacher.error}
        )


def _check_not_negative(values: Mapping[str, float]) -> None:
    for field, value in values.items():
        if value < 0:
            raise ConfigError(f"{field}={value:g} may not be negative")
