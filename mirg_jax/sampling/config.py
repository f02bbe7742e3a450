"""How completions are drawn."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn.

    Attributes:
      group: completions of each prompt.
      slots: prompts that a device decodes side by side; when all completions of one have ended,
        the next takes its place. 0: all that it is given.
      max_tokens: length limit of a completion, its stop token included.
      temperature: of the softmax; 0 takes the likeliest token.
      top_p: draw from the smallest set of tokens that holds this much probability. Log-probs are
        of the whole distribution, so training keeps it at 1.
      stop_tokens: ids that end a completion.
    """

    group: int = 1
    slots: int = 0
    max_tokens: int = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    stop_tokens: tuple[int, ...] = ()
