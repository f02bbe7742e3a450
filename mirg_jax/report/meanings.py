"""What the curves of a training run mean, in a sentence each, for people who see them first."""

_OF_METRIC = {
    "loss": "what the optimizer makes smaller",
    "reward": "mean reward of the sampled answers, the weighted sum of its parts; higher is better",
    "kl": "how far the model has moved from the one that it started from; 0: not at all",
    "completion_length": "mean length of the sampled answers, in tokens",
    "zero_spread_fraction": "share of the questions whose answers were all rewarded alike, from "
    "which nothing is learned",
    "logprob_diff": "how much the probabilities differ between sampling and learning; only "
    "rounding, so it should stay near 0",
    "truncated_fraction": "share of the tokens whose importance weight was cut to its bound",
    "cut_fraction": "share of the answers that reached the limit of tokens and were cut off",
    "entropy": "how undecided the model is at each token; near 0 its answers are all alike",
    "reward_spread": "standard deviation of the rewards of a question's answers, on average",
    "used_fraction": "share of the sampled questions that were learned from",
    "below_gate_fraction": "share of the sampled questions that were left out because the rewards "
    "of their answers hardly differ",
    "grad_norm": "size of the update's gradient before it is clipped; jumps mean unstable training",
    "reward_format": "share of the answers in the required form",
    "reward_image": "share of the boxes for which the right image is named",
    "reward_object": "mean overlap (IoU) of the boxes with the true ones",
    "eval_acc": "share of the held-out questions answered with an IoU of 0.5 or more",
    "eval_mean_iou": "mean overlap (IoU) of the boxes with the true ones, on held-out questions",
    "eval_image_acc": "share of the held-out questions for which the right image is named",
    "eval_format": "share of the answers to held-out questions in the required form",
}
_OF_STAGE = {
    "SFT loss": "how unlikely the model finds the given answers, on average a token; lower is "
    "better",
    "GRPO loss": "what the optimizer makes smaller; near 0 at any quality, so look at the reward",
}


def of_curve(title: str) -> str:
    """Returns what a curve means; "" if it isn't known, as for rewards of one's own.

    Args:
      title: as `charts.training_curves` names it, such as "GRPO reward".
    """
    return _OF_STAGE.get(title) or _OF_METRIC.get(title.partition(" ")[2], "")
