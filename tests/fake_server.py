"""A chat completions server that answers by rule and misbehaves on demand; a process of its own.

    python fake_server.py LOG --bad=0.2 --delay=0.1

With --answers=FILE, a JSON list, it says the n-th to whoever asks about "thing n", and else what a
stage of the trajectories is answered with.

Prints its port. A line in LOG for every request, as it comes: its Idempotency-Key, what it will
get, and when.
"""

import argparse
import asyncio
import collections
import json
import random
import re
import time

# What may go wrong: with the transport, and with the answer.
TRANSPORT = ("429", "429 wait", "500", "slow", "cut", "malformed", "text", "null")
ANSWERS = ("empty", "refusal", "filtered", "length", "prose", "wrong ids", "off the grid", "leak")


def answer(prompt: str, flaw: str) -> str:
    """A good answer to any stage's prompt, or one with a flaw."""
    if "The correct answer is: " in prompt:
        truth = re.search(r"The correct answer is: (.*)", prompt)[1]
        truth = truth if truth.startswith("Image-") else f"Image-1: {truth}"
        if flaw == "off the grid":
            truth = re.sub(r"\((\d+),", r"(2\g<1>00,", truth)
        image = truth.split(":")[0]
        corners = "-".join(re.findall(r"\d+", truth)[1:])
        known = "which is the ground truth" if flaw == "leak" else "which nothing else resembles"
        text = (
            f"<think>{image} shows, among the other things that one can make out in it, "
            f"thing {corners}, {known}, so it is the one.</think><answer>{truth}</answer>"
        )
    elif "Locate every thing" in prompt:
        image, *corners = re.search(
            r"(Image-\d+) shows.*thing (\d+)-(\d+)-(\d+)-(\d+)", prompt
        ).groups()
        if flaw == "off the grid":
            corners[2] = "2000"
        x1, y1, x2, y2 = corners
        name = "-".join(corners)
        text = (
            f"{image}: <|object_ref_start|>thing {name}<|object_ref_end|>"
            f"<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"
        )
    else:
        line = re.search(r"<bbox_id>.*<\|box_end\|>", prompt)[0]
        name = re.search(r"<bbox_id>.*?</bbox_id>", line)[0]
        box = re.search(r"<\|box_start\|>.*<\|box_end\|>", line)[0]
        if flaw == "wrong ids":
            line = line.replace(name, "<bbox_id>[9-9]</bbox_id>")
        if flaw == "off the grid":
            box = box.replace(")<|", "0)<|")
        known = ", as given" if flaw == "leak" else ""
        text = (
            f"<think>Among the other things that one can make out in it there is {line}, which "
            f"nothing else resembles{known}, so {name} is the one.</think>"
            f"<answer>{name}{box}</answer>"
        )
    return f"Sure, here it is:\n{text}" if flaw == "prose" else text


class Server:
    def __init__(self, flags):
        self.flags = flags
        self.times = collections.Counter()
        self.log = open(flags.log, "a", buffering=1)

    def answers(self, prompt: str) -> str:
        return self.flags.answers and self.flags.answers[int(re.search(r"thing (\d+)", prompt)[1])]

    async def serve(self, reader, writer):
        try:
            while await self.one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def one(self, reader, writer) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(re.findall(r"^([\w-]+): *(.*?)\r$", head.lower(), re.M))
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        content = body["messages"][0]["content"]
        assert sum(part["type"] == "image_url" for part in content) >= 1
        # By what is asked, not by when: the same in every run.
        key = headers.get("idempotency-key")
        self.times[key] += 1
        chance = random.Random(f"{key} {self.times[key]}")
        flaw = chance.choice(self.flags.flaws) if chance.random() < self.flags.bad else "good"
        self.log.write(f"{key}\t{flaw}\t{time.time()}\n")
        if flaw not in TRANSPORT or flaw in ("slow", "cut"):
            await asyncio.sleep(self.flags.delay)
        if self.flags.status:
            said = f"no: {headers.get('authorization')}"
            body = {"detail": said} if self.flags.status == 422 else {"error": {"message": said}}
            return await self.send(writer, self.flags.status, body)
        if flaw.startswith("429"):
            wait = {"429 wait": {"Retry-After": "0.05"}, "429 long": {"Retry-After": "600"}}
            wait = wait.get(flaw)
            return await self.send(writer, 429, {"error": {"message": "slow down"}}, wait)
        if flaw in ("400", "500"):
            return await self.send(writer, int(flaw), {"error": {"message": "oh"}})
        if flaw == "text":
            return await self.send(writer, 200, "<html>a proxy's page</html>", kind="text/html")
        if flaw == "null":
            return await self.send(writer, 200, {"choices": [None], "usage": 3})
        said = self.answers(content[-1]["text"]) or answer(content[-1]["text"], flaw)
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        if flaw == "refusal":
            choice["message"] = {
                "role": "assistant",
                "content": None,
                "refusal": "I can't do that.",
            }
        if flaw in ("filtered", "length"):
            choice["finish_reason"] = {"filtered": "content_filter"}.get(flaw, flaw)
        completion = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": self.flags.model or body["model"],
            "choices": [] if flaw == "empty" else [choice],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
        }
        if flaw.startswith("as "):
            completion = self.dialect(flaw, said, completion)
        text = json.dumps(completion)
        if flaw == "malformed":
            text = text[: len(text) // 2]
        if flaw in ("slow", "cut"):
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                + f"Content-Length: {len(text)}\r\n\r\n{text[:40]}".encode()
            )
            await writer.drain()
            if flaw == "cut":
                return False
            for letter in text[40:]:  # never long without a byte
                await asyncio.sleep(0.05)
                writer.write(letter.encode())
                await writer.drain()
            return True
        return await self.send(writer, 200, text)

    def dialect(self, flaw, said, completion):
        """A completion as other servers write it."""
        message = completion["choices"][0]["message"]
        thoughts, _, rest = said.removeprefix("<think>").partition("</think>")
        if "reasoning" in flaw and not rest:  # no parser would find any
            return completion
        if flaw == "as reasoning":
            message |= {"content": rest, "reasoning": thoughts}
        elif flaw == "as thoughts alone":
            message |= {"content": None, "reasoning": thoughts}
        elif flaw == "as all reasoning":
            message |= {"content": None, "reasoning_content": said}
        elif flaw == "as parts":
            message["content"] = [{"type": "text", "text": said}]
        elif flaw == "as end tokens":
            message["content"] = "<|im_end|>\n<|endoftext|>"
        elif flaw == "as aborted":
            completion["choices"][0]["finish_reason"] = "abort"
        elif flaw == "as error":
            return {"error": {"message": "the engine is dead", "code": 500}}
        return completion

    async def send(self, writer, status, content, headers=None, kind="application/json") -> bool:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        lines = [f"HTTP/1.1 {status} x", f"Content-Type: {kind}", f"Content-Length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + data)
        await writer.drain()
        return True


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("log")
    parser.add_argument("--bad", type=float, default=0.0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--status", type=int, default=0)
    parser.add_argument("--model", default="")  # which it says that it has asked
    parser.add_argument("--answers", type=lambda path: json.load(open(path)), default=[])
    parser.add_argument("--flaws", type=lambda text: text.split(","), default=TRANSPORT + ANSWERS)
    server = Server(parser.parse_args())
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, limit=2**26, backlog=256)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
