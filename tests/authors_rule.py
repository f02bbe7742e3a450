"""An independent reading of the rule of MIG-Bench's authors, and responses in all forms."""

# Templates walked character by character.
# i: digits, f: digits with a point between, _: optional blanks, +: blanks, else the character.
TEMPLATES = (
    "(i,_i),_(i,_i)",
    "[f,_f,_f,_f]",
    "(f,f),(f,f)",
    "(f,_f,_f,_f)",
    "[i,_i,_i,_i]",
    "<box>i+i+i+i</box>",
)


def digits(text, start):
    end = start
    while end < len(text) and text[end].isdecimal():
        end += 1
    return end


def walk(template, text, position):
    """Numbers and end of the template at a position, or None."""
    numbers = []
    for symbol in template:
        start = position
        if symbol in "if":
            position = digits(text, start)
            if position == start:
                return None
            if symbol == "f":
                if text[position : position + 1] != ".":
                    return None
                point = position + 1
                position = digits(text, point)
                if position == point:
                    return None
            numbers.append(float(text[start:position]))
        elif symbol in "_+":
            while position < len(text) and text[position].isspace():
                position += 1
            if symbol == "+" and position == start:
                return None
        elif text[position : position + 1] == symbol:
            position += 1
        else:
            return None
    return numbers, position


def reference_box(text):
    for template in TEMPLATES:
        found, position = [], 0
        while position < len(text):
            if text[position] == template[0] and (match := walk(template, text, position)):
                found.append(match[0])
                position = match[1]
            else:
                position += 1
        if len(found) == 1:
            return [v / 1000 if v >= 1 else v for v in found[0]], True
        if found:
            return [v / 1000 if v > 1 else v for v in found[0]], False
    return None, False


def reference_iou(truth, box):
    if box is None:
        return 0.0
    width = min(truth[2], box[2]) - max(truth[0], box[0])
    height = min(truth[3], box[3]) - max(truth[1], box[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (truth, box))
    return overlap / (areas - overlap)


def qwen(b):
    return "<|box_start|>({},{}),({},{})<|box_end|>".format(*b)


def fractions(b):
    return ["0." + f"{min(v, 999):03d}" for v in b]


# A box in every form that a response may have it, and in some that no pattern finds.
FORMS = (
    qwen,
    lambda b: "({}, {}),  ({}, {})".format(*b),
    lambda b: "<box>[[{}, {}, {}, {}]]</box>".format(*b),
    lambda b: "<box>{} {} {} {}</box>".format(*b),
    lambda b: "<box>[{}, {}, {}, {}]</box>".format(*fractions(b)),
    lambda b: "It is at [{},{},{},{}].".format(*fractions(b)),
    lambda b: "({},{}),({},{})".format(*fractions(b)),
    lambda b: "({}, {}),({}, {})".format(*fractions(b)),  # blanks that no pattern allows
    lambda b: "({}, {}, {}, {})".format(*fractions(b)),
    lambda b: "In the third image, 2 dogs. " + qwen(b) + " and not " + qwen((0, 1, 2, 3)),
    lambda b: qwen((1, 0, 1, 1000)) + qwen(b),
    lambda b: "<box>[1, 1, 1, 1]</box> or [{}, {}, {}, {}]".format(*b),
    lambda b: qwen((b[2], b[3], b[0], b[1])),
    lambda b: "I cannot see any difference between these two images.",
    lambda b: "",
    lambda b: f"<think>{qwen((1, 2, 900, 900))}</think><answer>{qwen(b)}</answer>",
    lambda b: "[{}, {}, {}, {}]".format(*(9 * 10**400 + v for v in b)),
)


def answer_box(row):
    x1, y1, x2, y2 = (min(round(1000 * v), 1000) for v in row.answer)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
