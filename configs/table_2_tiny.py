"""Table 2 of the paper with the two small models on a CPU."""

from configs import grpo_tiny, sft_tiny, tables

BASES = {
    "Qwen2-VL-7B": "assets/small_base",
    "Qwen2.5-VL-7B": "assets/small_base_qwen2_5_vl",
}


def get_config():
    models = {}
    for name, path in BASES.items():
        models[name] = {"sft": sft_tiny.get_config(), "grpo": grpo_tiny.get_config()}
        for stage in models[name].values():
            stage.model.path = path
        models[name]["grpo"].num_steps = 50  # half of the demo's
    config = tables.table_2(models)
    return tables.scenes(config, sft=6400, rl=800, evaluation=770)
