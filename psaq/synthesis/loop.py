"""The optimisation loop (Li et al. 2022, section 3): Adam on pixels, from noise or leaves."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F

from psaq.distributed import gather_dealt, own_share, together
from psaq.errors import PsaqError
from psaq.images.batches import Images
from psaq.images.synthetic import NO_CLASS, SyntheticImages, true_colours
from psaq.losses import patch_similarity_entropy, pixel_class_loss, reference_smoothness_loss, smoothness_loss
from psaq.models.borrowing import borrowed, evaluating
from psaq.models.calling import logits_of, run
from psaq.models.data import network_data
from psaq.models.features import PatchFeatureRecorder, example_image, record_patch_features
from psaq.models.fingerprint import fingerprint
from psaq.models.image_format import fitted, renormalised
from psaq.models.precision import autocast
from psaq.models.wrappers import unwrapped
from psaq.models.zoo import DataConfig, classes_or_none, data_config, model_source
from psaq.progress import count_as_done, note, progress_bar
from psaq.runs import device_name, versions
from psaq.settings import as_json
from psaq.synthesis.adam import adam_step
from psaq.synthesis.config import DEFAULT_STARTS, PIXEL_CLASS_WEIGHT, SynthesisConfig
from psaq.synthesis.noise import start_noise
from psaq.synthesis.randomness import generator
from psaq.synthesis.state import LOSSES, BatchState, load_batch
from psaq.tasks.find import task_of
from psaq.tasks.segmentation import pixel_probabilities

FILM_IMAGES = 8
_RESULTS = ("pixels", "labels", "history", "film")
_REPORT_EVERY = 5  # steps: reading a loss waits for the device
_TARGET_VARIATION = (2500.0, 3000.0)  # of 32 images of 224×224 in ImageNet's normalisation, as one norm


def synthesize(
    model: nn.Module,
    config: SynthesisConfig | None = None,
    *,
    checkpoint: Path | str | None = None,
    progress: bool = False,
) -> SyntheticImages:
    """Make images whose patch similarities are as diverse as a real image's, from the model alone.

    Minimises −Σ_l H_l + class loss + smoothness over the pixels (Li et al. 2022, eq. 4 and section 3). A segmenter's
    class loss knows no labels: it asks for pixels that tell of their classes (`psaq.losses.pixel_class_loss`).

    Args:
        model: a trained vision transformer; its weights, mode and gradients are left as they were.
        config: the schedule and the losses' weights.
        checkpoint: a folder that receives each batch's state every ``config.checkpoint_every`` steps. Where it holds
            one, the batch goes on from it: on a CPU to the same bits as if it had never stopped.
        progress: show a bar with losses, throughput and time left on standard error; by default nothing.

    Raises:
        PsaqError: a model without attention blocks or classes, a checkpoint of another run, or a loss that is
            no longer finite.
    """
    return synthesize_all(model, [config or SynthesisConfig()], [checkpoint], progress=progress)[0]


def synthesize_all(
    model: nn.Module,
    configs: Sequence[SynthesisConfig],
    checkpoints: Sequence[Path | str | None],
    *,
    progress: bool = False,
) -> list[SyntheticImages]:
    """Several syntheses from one model, as `synthesize` makes each: under torchrun their batches are dealt out to the
    ranks, and every rank gets all images. A batch has the same bits whichever rank of its kind makes it."""
    runs = [
        Synthesis(model, config, None if folder is None else Path(folder))
        for config, folder in zip(configs, checkpoints, strict=True)
    ]
    batches = [(run, index) for run in runs for index in range(len(run.batch_sizes))]
    own = own_share(batches)
    finished: list[list[Tensor]] = []
    steps = sum(run.total_steps for run, _ in own)
    with together(), progress_bar(description="synthesising", total=steps, unit="step", enabled=progress) as bar:
        finished = [run.finish_batch(index, bar) for run, index in own]
    gathered = [gather_dealt([batch[part] for batch in finished], len(batches)) for part in range(len(_RESULTS))]
    results = iter(zip(*gathered, strict=True))
    return [run.result(list(islice(results, len(run.batch_sizes)))) for run in runs]


@dataclass(frozen=True)
class Aim:
    """What images are made for: diverse patches, and whatever else is asked of them."""

    entropy_weight: float = 1.0
    """Of the patch-similarity entropy."""
    further_loss: Callable[[Images, Any], Float[Tensor, ""]] | None = None
    """What is minimised as well, of the images as the model takes them and of its output."""


class Synthesis:
    """What stays fixed during a run: the model, the configuration and what follows from both."""

    def __init__(
        self, model: nn.Module, config: SynthesisConfig, checkpoint: Path | None = None, aim: Aim | None = None
    ):
        self.model = model = unwrapped(model)
        self.classes = _classes(model)
        self.has_pixel_classes = self.classes is None and _has_pixel_classes(model)
        class_weight = self._class_weight(config)
        start = config.start or DEFAULT_STARTS[bool(class_weight)]
        self.config = replace(config, class_weight=class_weight, start=start)
        self.checkpoint = checkpoint
        self.aim = aim or Aim()
        self.taken: DataConfig = data_config(model)
        self.data: DataConfig = network_data(model)  # what the steps' size and the smoothness are made for
        like = next(model.parameters())
        self.device, self.dtype = like.device, like.dtype
        self.batch_sizes = _batch_sizes(config.num_images, config.batch_size)
        self.class_token: Any = "drop" if config.class_token == "sound" else "reference"
        self.learning_rate = config.learning_rate or (0.25 if "swin" in type(model).__name__.lower() else 0.20)
        self.black, self.white = self._pixel_range()

    def _class_weight(self, config: SynthesisConfig) -> float:
        name = type(self.model).__name__
        if self.classes is not None:
            return 1.0 if config.class_weight is None else config.class_weight
        if self.has_pixel_classes:
            return PIXEL_CLASS_WEIGHT if config.class_weight is None else config.class_weight
        if config.class_weight:
            raise PsaqError(
                f"class_weight {config.class_weight}: {name} tells no classes apart; leave it out, or give 0"
            )
        note(f"{name} tells no classes apart: its images are synthesised without a class loss")
        return 0.0

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What tells this run from another: only a checkpoint with the same identity may be continued."""
        return {"config": as_json(self.config), "model": fingerprint(self.model)}

    @property
    def total_steps(self) -> int:
        return self.config.rounds * self.config.steps

    def finish_batch(self, index: int, bar: Any) -> list[Tensor]:
        """Take a batch from its start, or its checkpoint, to its last step: what `_RESULTS` names, on the CPU."""
        batch = self._restored(index, bar) or self.start(index, self.batch_sizes[index])
        with frozen(self.model), record_patch_features(self.model, self.config.heads, self.class_token) as recorder:
            while not batch.finished():
                self.advance(recorder, batch, index)
                self._check_finite(recorder, batch)
                bar.update()
                self._after_step(batch, index, bar)
        return [getattr(batch, name).cpu() for name in _RESULTS]

    def result(self, batches: Sequence[tuple[Tensor, ...]]) -> SyntheticImages:
        """The finished images with their labels, history and provenance. ``batches``: what `_RESULTS` names."""
        source = model_source(self.model)
        images, labels, histories, films = zip(*batches, strict=True)
        history = torch.stack(histories)
        return SyntheticImages(
            images=torch.cat(images),
            labels=torch.cat(labels),
            mean=self.data.mean,
            std=self.data.std,
            history={name: history[..., column] for column, name in enumerate(LOSSES)},
            film=films[0] if self.config.film_frames else None,
            provenance={
                "model": source.name if source else type(self.model).__name__,
                "weights": fingerprint(self.model),
                "config": as_json(self.config),
                "versions": versions(),
                "device": device_name(self.device),
            },
        )

    def start(self, index: int, size: int) -> BatchState:
        """Batch ``index`` before its first step: noise and labels."""
        seed, config = self.config.seed, self.config
        assert config.start is not None
        pixels = start_noise(config.start, size, self.data, seed, index).to(self.device)
        draw = generator(seed, index, "labels")
        labels = torch.randint(self.classes, (size,), generator=draw) if self.classes else torch.full((size,), NO_CLASS)
        shown = min(size, FILM_IMAGES) if index == 0 else 0
        batch = BatchState(
            pixels=pixels,
            labels=labels.to(self.device),
            mean_gradient=pixels.new_zeros(config.resolutions, *pixels.shape),
            mean_square=pixels.new_zeros(config.resolutions, *pixels.shape),
            history=torch.zeros(self.total_steps, len(LOSSES), device=self.device),
            film=torch.zeros(len(config.film_steps), shown, 3, *pixels.shape[2:], dtype=torch.uint8),
        )
        self._film(batch)
        return batch

    def advance(self, recorder: PatchFeatureRecorder, batch: BatchState, index: int) -> None:
        """Take one step: forward, losses, backward to the pixels, update, clip."""
        batch.pixels.requires_grad_(True)
        losses = self._losses(recorder, batch, index)
        (gradient,) = torch.autograd.grad(losses["loss"], batch.pixels)
        batch.pixels = batch.pixels.detach()
        batch.history[batch.step] = torch.stack([losses[name].detach().float() for name in LOSSES])
        batch.step += 1
        adam_step(batch, gradient, self._rate(batch.step - 1))
        batch.pixels.clamp_(self.black, self.white)
        self._film(batch)

    def _losses(self, recorder: PatchFeatureRecorder, batch: BatchState, index: int) -> Mapping[str, Tensor]:
        config = self.config
        jittered = self._jitter(batch.pixels, index, batch.step)
        shown = renormalised(self._noisy(jittered, index, batch.step), self.data, self.taken).to(self.dtype)
        with autocast(self.device, self.config.precision):
            output = run(recorder.model, shown)
            further = None if self.aim.further_loss is None else self.aim.further_loss(shown, output)
        entropy = patch_similarity_entropy(recorder.features, config.bandwidth, config.grid).mean(dim=1).sum()
        class_loss = self._class_loss(output, batch)
        rough = smoothness_loss if config.smoothness == "sound" else reference_smoothness_loss
        smooth = rough(jittered, self._target_variation(index))
        loss = -self.aim.entropy_weight * entropy
        loss = loss + (config.class_weight or 0.0) * class_loss + config.smoothness_weight * smooth
        loss = loss if further is None else loss + further
        return {"entropy": entropy, "class_loss": class_loss, "smoothness_loss": smooth, "loss": loss}

    def _class_loss(self, output: Any, batch: BatchState) -> Tensor:
        if self.has_pixel_classes:
            probabilities = pixel_probabilities(output)
            assert probabilities is not None
            return pixel_class_loss(probabilities)
        if self.classes is None:
            return batch.pixels.new_zeros(())
        logits = logits_of(output)
        if logits is None or logits.shape[1] != self.classes:
            found = "no row of logits" if logits is None else f"{logits.shape[1]} numbers"
            raise PsaqError(
                f"{type(self.model).__name__}: counts {self.classes} classes and answers with {found} for each image; "
                'say what it is for, psaq.describe(model, task="features")'
            )
        return F.cross_entropy(logits.float(), batch.labels)

    def _jitter(self, pixels: Tensor, index: int, step: int) -> Tensor:
        """One circular shift, the same on both axes, and a horizontal flip of the batch every other time."""
        draw = generator(self.config.seed, index, "jitter", step)
        reach = self.config.jitter * (1 + step // self.config.steps) * self.data.image_size[0] // 224
        shift = int(torch.randint(-reach, reach + 1, (), generator=draw))
        shifted = pixels.roll((shift, shift), dims=(2, 3))
        return shifted.flip(3) if torch.rand((), generator=draw) < 0.5 else shifted

    def _noisy(self, pixels: Tensor, index: int, step: int) -> Tensor:
        """The images under fresh noise: it drowns what is too fine to be seen and would move the model all the same."""
        if not self.config.noise:
            return pixels
        drawn = torch.randn(pixels.shape, generator=generator(self.config.seed, index, "noise", step))
        return pixels + self.config.noise * drawn.to(pixels)

    def _rate(self, step: int) -> float:
        """Learning rate: linear warm-up, then a cosine to zero, in every round."""
        within, warmup = step % self.config.steps, round(self.config.warmup * self.config.steps)
        if within < warmup:
            return self.learning_rate * (within + 1) / warmup
        phase = (within - warmup) / (self.config.steps - warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * phase))

    def _target_variation(self, index: int) -> float:
        """The total variation asked for: the authors' draw, carried over to one image of this size and scale."""
        low, high = _TARGET_VARIATION
        draw = float(torch.rand((), generator=generator(self.config.seed, index, "variation")))
        target = self.config.variation * (low + (high - low) * draw)
        if self.config.smoothness == "reference":
            return target
        height, width = self.data.image_size
        channels = self.data.channels
        contrast = sum(fitted(IMAGENET_DEFAULT_STD, channels)) / sum(self.data.std) * math.sqrt(channels / 3)
        return target / math.sqrt(32) * math.sqrt(height * width) / 224 * contrast

    def _pixel_range(self) -> tuple[Tensor, Tensor]:
        sound = self.config.pixel_range == "sound"
        mean, std = (self.data.mean, self.data.std) if sound else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        mean, std = (
            torch.tensor(fitted(values, self.data.channels), device=self.device)[:, None, None]
            for values in (mean, std)
        )
        return -mean / std, (1 - mean) / std

    def _film(self, batch: BatchState) -> None:
        """Keep the images as they look now, if this is one of the moments to keep."""
        shown = batch.film.shape[1]
        if shown and batch.step in self.config.film_steps:
            pictures = true_colours(batch.pixels[:shown], self.data.mean, self.data.std)
            batch.film[self.config.film_steps.index(batch.step)] = pictures

    def _after_step(self, batch: BatchState, index: int, bar: Any) -> None:
        due = batch.step % self.config.checkpoint_every == 0 or batch.finished()
        if due or batch.step % _REPORT_EVERY == 0:
            self._report(batch, bar)
        if self.checkpoint is not None and due:
            batch.save(self._checkpoint_file(self.checkpoint, index), self.identity | {"batch": index})

    def _check_finite(self, recorder: PatchFeatureRecorder, batch: BatchState) -> None:
        """Raise PsaqError, with the step and the layer, where NaN or infinity came up: before a state with it would be
        kept. On a GPU the look waits for the device, so that it is taken only where a state or a loss is due."""
        due = batch.step % self.config.checkpoint_every == 0 or batch.finished()
        if self.device.type != "cpu" and not due and batch.step % _REPORT_EVERY:
            return
        wrong = (~batch.history[: batch.step].isfinite().all(1)).nonzero()
        state = (batch.pixels, batch.mean_gradient, batch.mean_square)
        if not len(wrong) and all(bool(tensor.isfinite().all()) for tensor in state):
            return
        step = int(wrong[0]) + 1 if len(wrong) else batch.step
        loss = float(batch.history[step - 1, LOSSES.index("loss")])
        raise PsaqError(
            f"synthesis: the loss is {loss} at step {step}, {_first_not_finite(recorder)}; lower the learning rate or "
            f"check the weights{'' if self.checkpoint is None else '; the last good state is kept'}"
        )

    def _restored(self, index: int, bar: Any) -> BatchState | None:
        """The batch as its checkpoint has it."""
        if self.checkpoint is None or not self._checkpoint_file(self.checkpoint, index).exists():
            return None
        file = self._checkpoint_file(self.checkpoint, index)
        batch = load_batch(file, self.identity | {"batch": index}, self.device)
        count_as_done(bar, batch.step)
        return batch

    @staticmethod
    def _checkpoint_file(folder: Path, index: int) -> Path:
        return folder / f"batch{index:04d}.safetensors"

    def _report(self, batch: BatchState, bar: Any) -> None:
        last = dict(zip(LOSSES, batch.history[batch.step - 1].tolist(), strict=True))
        rate = bar.format_dict.get("rate")
        speed = {"images·steps/s": f"{rate * len(batch.pixels):.1f}"} if rate else {}
        bar.set_postfix({name: f"{value:.3g}" for name, value in last.items()} | speed, refresh=False)


def _first_not_finite(recorder: PatchFeatureRecorder) -> str:
    """Which attention's features of the latest run are no longer finite."""
    for site, features in zip(recorder.sites, recorder.features, strict=False):
        if not features.isfinite().all():
            return f"not finite from {site.attention} on"
    return "with finite features in every layer, so behind the last or in the gradients"


def _batch_sizes(images: int, batch_size: int) -> list[int]:
    return [min(batch_size, images - start) for start in range(0, images, batch_size)]


@torch.no_grad()
def _classes(model: nn.Module) -> int | None:
    """How many classes the model's logits tell apart; None where it has none."""
    classes = classes_or_none(model)
    with frozen(model):
        return classes if classes and logits_of(run(model, example_image(model))) is not None else None


@torch.no_grad()
def _has_pixel_classes(model: nn.Module) -> bool:
    if task_of(model).name != "segmentation":
        return False
    with frozen(model):
        return pixel_probabilities(run(model, example_image(model))) is not None


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no weight gradients inside the block; afterwards everything as it was."""
    with borrowed(model), evaluating(model):
        wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
        try:
            model.requires_grad_(False)
            yield
        finally:
            for parameter, gradient in wanted.items():
                parameter.requires_grad_(gradient)
