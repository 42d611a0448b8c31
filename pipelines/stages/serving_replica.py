"""A replica of the model, as Ray Serve runs it: decodes in threads, computes in one, off the event loop."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import torch

from ops import image
from ops.recipe import reason
from ops.training.step import set_precision
from pipelines.stages import serving_drawing
from pipelines.stages.serving_model import Classifier, Floats, Served

BAD = (ValueError, OSError, cv2.error, MemoryError)
HEALTHY = 5.0  # seconds after a forward in which nothing is tried
WARM_UP = 3  # forwards before the first request: the first ones are slow


class Replica:
    """Takes many pictures in one call; a bad one gets a reason in its place."""

    def __init__(self, served: Served, threads: int, gpu: bool):
        torch.set_num_threads(threads)
        set_precision("fp32")
        self.served = served
        self.classifier = Classifier(served, device=torch.device("cuda", 0) if gpu else torch.device("cpu"))
        self.decoders = ThreadPoolExecutor(threads, "decode")
        self.computing = ThreadPoolExecutor(1, "forward")
        self.blank = np.zeros((self.served.setup.crops, *served.setup.shape), np.float32)
        self.worked, self.busy = time.monotonic(), 0  # when it last computed; what is being computed or waits for it
        for _ in range(WARM_UP):
            self.classifier.answers([self.blank], 1)
        gc.collect()
        gc.freeze()  # what is there now stays: looking through it again takes 0.1 s each time

    async def classify(self, pictures: Sequence[bytes], top: int) -> list[dict[str, Any]]:
        """labels, scores and hedged of each picture, or its error; with the seconds that it took."""
        if len(pictures) == 1 and not self.busy:  # nothing to do beside it: one thread for all of it
            return await self.compute(self.one, pictures[0], top)
        looks, out, decoding = await self.looked(pictures)
        good = [one for one in looks if one is not None]
        began = time.perf_counter()
        found = await self.compute(self.classifier.answers, good, top) if good else []
        forward = time.perf_counter() - began
        answers = iter(found)
        for one, look in zip(out, looks, strict=True):
            if look is not None:
                answer = next(answers)
                one |= {"labels": answer.labels, "scores": answer.scores, "hedged": answer.hedged}
        return self.timed(out, decoding, forward, len(good))

    def one(self, encoded: bytes, top: int) -> list[dict[str, Any]]:
        """The same for a picture alone, in the thread that computes."""
        began = time.perf_counter()
        look, told = self.look(encoded)
        decoded = time.perf_counter()
        if look is not None:
            (answer,) = self.classifier.answers([look], top)
            told |= {"labels": answer.labels, "scores": answer.scores, "hedged": answer.hedged}
        return self.timed([told], decoded - began, time.perf_counter() - decoded, int(look is not None))

    async def features(self, pictures: Sequence[bytes], blobs: Sequence[str]) -> list[dict[str, Any]]:
        """The blobs of each picture as arrays, or its error."""
        looks, out, decoding = await self.looked(pictures)
        good = [one for one in looks if one is not None]
        began = time.perf_counter()
        found = await self.compute(self.classifier.forward, good, list(blobs)) if good else {}
        forward = time.perf_counter() - began
        places = iter(range(len(good)))
        for one, look in zip(out, looks, strict=True):
            if look is not None:
                place = next(places)
                one["blobs"] = {name: values[place] for name, values in found.items()}
        return self.timed(out, decoding, forward, len(good))

    async def maps(self, pictures: Sequence[bytes], words: Sequence[str]) -> list[dict[str, Any]]:
        """A blob of each picture as a picture, a PNG file and what is on it, or its error. Words: the blob, how many
        tiles."""
        blob, most = words
        answers = await self.features(pictures, [blob])
        loop = asyncio.get_running_loop()
        for one in answers:
            if "blobs" in one:
                values = one.pop("blobs")[blob]
                seen = await loop.run_in_executor(self.decoders, serving_drawing.maps, values, blob, int(most))
                one |= {"png": seen.png, "told": seen.told}
        return answers

    async def looks(self, pictures: Sequence[bytes], words: Sequence[str]) -> list[dict[str, Any]]:
        """What the net looks like, in place of an answer: its table, card, filters or samples."""
        told = await asyncio.get_running_loop().run_in_executor(self.decoders, self.tell, *words)
        return [{"told": told}]

    def tell(self, what: str, *words: str) -> Any:
        net = self.classifier.net
        if what == "table":
            return serving_drawing.table(self.served.setup, net)
        if what == "filters":
            return serving_drawing.filters(net, words[0], int(words[1]))
        if what == "card":
            return self.served.trained
        return [one for one in self.served.samples if self.look(one.encoded)[0] is not None]

    async def looked(self, pictures: Sequence[bytes]) -> tuple[list[Floats | None], list[dict[str, Any]], float]:
        """What each picture becomes, None for a bad one; the answers so far; seconds."""
        loop, began = asyncio.get_running_loop(), time.perf_counter()
        tasks = [loop.run_in_executor(self.decoders, self.look, encoded) for encoded in pictures]
        found = await asyncio.gather(*tasks)
        return [one for one, _ in found], [told for _, told in found], time.perf_counter() - began

    def look(self, encoded: bytes) -> tuple[Floats | None, dict[str, Any]]:
        try:
            look = self.classifier.look(encoded)
        except BAD as error:
            return None, {"error": reason(error)}
        warning = image.defect(encoded)
        return look, {"warning": warning} if warning else {}

    async def compute(self, work: Any, *arguments: Any) -> Any:
        self.busy += 1
        try:
            found = await asyncio.get_running_loop().run_in_executor(self.computing, work, *arguments)
        finally:
            self.busy -= 1
        self.worked = time.monotonic()
        return found

    def timed(self, out: list[dict[str, Any]], decoding: float, forward: float, batch: int) -> list[dict[str, Any]]:
        for one in out:
            one |= {"decoding": decoding, "forward": forward, "batch": batch}
        return out

    async def describe(self) -> dict[str, Any]:
        """What the model is."""
        return self.served.facts()

    async def check_health(self) -> None:
        """A forward of one blank picture where there was none lately; where it fails three times, Ray Serve replaces
        the replica."""
        if time.monotonic() - self.worked > HEALTHY:
            await self.compute(self.classifier.answers, [self.blank], 1)
