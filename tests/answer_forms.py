"""What models of each family say: a box, written in their way."""


def grid(form):
    return lambda box, size: (form.format(*box), [n / 1000 for n in box])


def fractions(form):
    def write(box, size):
        said = [n / 1000 for n in box]
        return form.format(*(f"{n:.3f}" for n in said)), said

    return write


def pixels(form):
    def write(box, size):
        corners = [round(n / 1000 * side) for n, side in zip(box, size * 2, strict=True)]
        read = [round(1000 * c / side) / 1000 for c, side in zip(corners, size * 2, strict=True)]
        return form.format(*corners), [min(n, 1.0) for n in read]

    return write


# What models of each family say.
SAID = {
    "mirg": grid(
        "<think>There is a dog.</think><answer><bbox_id>[1-1]</bbox_id><|box_start|>({},{}),({},{})"
        "<|box_end|></answer>"
    ),
    "qwen2_vl": grid("<|box_start|>({},{}),({},{})<|box_end|>"),
    "qwen2_5_vl": pixels('```json\n[\n\t{{"bbox_2d": [{}, {}, {}, {}], "label": "dog"}}\n]\n```'),
    "qwen3_vl": grid('```json\n[\n\t{{"bbox_2d": [{}, {}, {}, {}], "label": "dog"}}\n]\n```'),
    "migician": grid("<|object_ref_start|>a dog<|object_ref_end|><|box_start|>({},{}),({},{})"),
    "univg_r1": grid("<think>There is a dog, so 2, 3.</think>\n<answer>({},{}),({},{})</answer>"),
    "internvl2": grid("<ref>dog</ref><box>[[{}, {}, {}, {}]]</box>"),
    "minicpm_v": grid("<box>{} {} {} {}</box>"),
    "mantis": fractions("The dog is at <box>[{}, {}, {}, {}]</box>."),
    "llava_onevision": fractions("[{}, {}, {}, {}]"),
    "mplug_owl3": fractions("<box>[{}, {}, {}, {}]</box>"),
}
