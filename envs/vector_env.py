"""``BMVTrack-v0`` vectorised: N clips stepped together on one device."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import error
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from bmvtrack import geometry, motion
from bmvtrack.bundled import DEFAULT_WEIGHTS
from bmvtrack.cuda_graphs import RowGraphs
from bmvtrack.data.frame_cache import make_frame_cache
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.data.synthetic import synthetic_sequence
from bmvtrack.devices import to_device
from bmvtrack.errors import UserError
from bmvtrack.iou import bounds_iou, rotated_iou_torch
from bmvtrack.models import Template
from bmvtrack.motion import Coordinates
from bmvtrack.perception import Perception
from envs.clips import Clip, ClipSource, assign_clips
from envs.encoders import encoder_of
from envs.observer import BatchObserver, Observations, View
from envs.state import (
    OVERLAP_OF_LOST,
    Reward,
    action_space,
    check_choices,
    check_count,
    move,
    observation_space,
)


class BMVTrackVectorEnv(VectorEnv[Any, Any, Any]):
    """N clips of ``BMVTrack-v0`` stepped together, encoded in batches, with everything on the device.

    The environments are those of :class:`~envs.bmvtrack_env.BMVTrackEnv` (which documents the spaces, the
    reward and the end of an episode): equal seeds and actions give equal observations and rewards up to
    rounding. Observations, rewards, ``terminated`` and ``truncated`` are torch tensors on the
    device; actions may be tensors or arrays. In ``info`` boxes and IoU are tensors too; ``sequence``,
    ``frame`` and the marks ``_…`` are arrays.

    Autoreset is ``SAME_STEP``: where an episode ends, the observation returned is the first of the
    next clip, and ``info["final_obs"]`` holds the observations that the step led to (of all N; those of the
    ended episodes are marked in ``info["_final_obs"]``), ``info["final_info"]`` their info.

    A step waits for the device twice: for masks, whose boxes OpenCV finds on the host
    (:class:`~envs.observer.BatchObserver`), and to learn which episodes have ended. On a GPU everything is
    launched as CUDA graphs (:class:`~bmvtrack.cuda_graphs.RowGraphs`).

    Args:
        num_envs: N.
        sequences: ``VideoSequence``s, or data by name (``davis16:FOLDER``); None: synthetic, always
            new.
        weights: of the encoder, see the single environment.
        device: of encoder, frames and everything returned.
        clip_length: maximum steps of an episode.
        coordinates: of the action: ``frame`` or ``object``.
        reward: IoU of ``rotated`` boxes or of ``axis_aligned`` bounds.
        lost_after: number of scored frames in a row without overlap that ends an episode.
        cache_bytes: memory for frames on the device; the least recently used ones are evicted. None: 4 GiB,
            or a quarter of a GPU's free memory if that is more.
        clips: play these in order instead of random ones, starting over at each :meth:`reset`; each
            environment plays a part of them, see :func:`~envs.clips.assign_clips`.

    Raises:
        UserError: on invalid arguments, before memory is allocated.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        sequences: Sequence[VideoSequence] | str | None = None,
        weights: str | Perception = DEFAULT_WEIGHTS,
        device: str = "cpu",
        clip_length: int = 32,
        coordinates: Coordinates = "frame",
        reward: Reward = "rotated",
        lost_after: float = 10,
        cache_bytes: float | None = None,
        clips: Sequence[Clip] | None = None,
    ) -> None:
        check_count("num_envs", num_envs)
        if clips is not None and sequences is not None:
            raise UserError("give sequences to draw clips from, or the clips themselves, not both")
        if clips is not None and len(clips) < num_envs:
            raise UserError(
                f"{len(clips)} clips for {num_envs} environments: each plays at least one"
            )
        check_choices(coordinates, reward, lost_after)
        self.source = ClipSource(sequences, clip_length)
        self.perception = encoder_of(weights, device)
        self.num_envs = num_envs
        self.single_observation_space = observation_space(self.perception.feature_count)
        self.single_action_space = action_space(coordinates)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.coordinates: Coordinates = coordinates
        self.reward: Reward = reward
        self.lost_after = lost_after
        self.clips = None if clips is None else list(clips)
        self.frames = make_frame_cache(
            self._all_sequences(), 2 * num_envs, cache_bytes, self.perception.device
        )
        self._observer = BatchObserver(
            self.perception, self.frames, coordinates, varying=num_envs > 1
        )
        self._generators: list[np.random.Generator] = []
        self._clips: list[Clip] = []
        self._assigned: list[deque[Clip]] = []  # each played from the left
        self._index: NDArray[np.intp]  # of the present frame; what the host must know is an array
        self._last: NDArray[np.intp]  # of the clip
        self._final: NDArray[np.intp]  # of its sequence
        self._rows: torch.Tensor  # (N,) 0, 1, …
        self._steps: torch.Tensor  # (N,) since the clip's start
        self._missed: torch.Tensor  # (N,) scored frames without overlap, in a row
        self._sizes: torch.Tensor  # (N, 2) of the frames
        self._truths: torch.Tensor  # (N, L + 2, 5) true boxes of the clip and of the frame after it
        self._boxes: torch.Tensor  # (N, 5)
        self._previous: torch.Tensor  # (N, 5) motion that led there
        self._at_rest: torch.Tensor  # (5,)
        self._iou: torch.Tensor  # (N,)
        self._template: Template | None = None
        self._moves = RowGraphs()  # on a GPU

    @property
    def device(self) -> torch.device:
        """The device that holds everything."""
        return self.perception.device

    @property
    def frame_bytes(self) -> int:
        """Bytes that frames hold on the device."""
        return self.frames.nbytes

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observations, dict[str, Any]]:
        """Start N clips.

        Args:
            seed: of environment 0, the others counting up from it; or a list with one for each. None: the
                environment's random generator goes on; at the first reset it gets a random seed.
            options: none are supported.

        Raises:
            UserError: if there are options, or the number of seeds is not N.
        """
        if options:
            raise UserError(f"unknown options of reset: {', '.join(options)}; there are none")
        seeds = self._seeds(seed)
        if seeds is not None and len(seeds) != self.num_envs:
            raise UserError(f"{len(seeds)} seeds for {self.num_envs} environments")
        before = self._generators
        self._generators = [
            before[i] if number is None and before else seeding.np_random(number)[0]
            for i, number in enumerate(seeds or [None] * self.num_envs)
        ]
        if self.clips is not None:
            self._assigned = assign_clips(self.clips, self.num_envs)
        self._allocate()
        everyone = np.arange(self.num_envs)
        self._start(everyone, [self._next_clip(i) for i in range(self.num_envs)])
        looks = [self._observer.look(self._view(everyone))]
        return self._observer.observations(looks), self._info()

    def step(
        self, actions: torch.Tensor | ArrayLike
    ) -> tuple[Observations, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Move every box by its action, ``(N, 5)``, and go to the next frames.

        Raises:
            ValueError: if the actions have another shape or contain NaN; no box has moved then.
            gymnasium.error.ResetNeeded: before the first reset.
        """
        if not self._clips:
            raise error.ResetNeeded("call reset() before step()")
        if not isinstance(actions, torch.Tensor):
            actions = np.ascontiguousarray(actions)  # torch takes no negative strides
        chosen = torch.as_tensor(actions, device=self.device).detach().double()
        if chosen.shape != (self.num_envs, 5):
            raise ValueError(
                f"actions are ({self.num_envs}, 5) numbers, not of shape {tuple(chosen.shape)}"
            )
        truth = self._truths[self._rows, self._steps + 1]
        state = self._boxes, chosen, self._sizes, truth, self._missed
        rules = self.coordinates, self.reward, self.lost_after
        boxes, previous, iou, missed, rewards, terminated, ends = self._moves(
            self._moved, state, constants=rules
        )
        lost, diverged = ends.T.cpu().numpy()
        if diverged.any():
            raise ValueError(
                f"the actions of environments {np.flatnonzero(diverged).tolist()} contain NaN; "
                "the policy that made them has diverged"
            )
        self._boxes, self._previous, self._missed, self._iou = boxes, previous, missed, iou
        self._steps += 1
        self._index += 1
        ended = self._index >= self._last
        truncated = self._uploaded(ended)
        observations, info = self._observe_and_restart(np.flatnonzero(lost | ended))
        return observations, rewards, terminated, truncated, info

    def _moved(
        self,
        boxes: torch.Tensor,
        actions: torch.Tensor,
        sizes: torch.Tensor,
        truth: torch.Tensor,
        missed: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """The part of a step that needs no frames, as a function of rows on the device.

        Returns:
            Boxes, motion to them, IoU, frames missed, reward, whether the object is lost; and ``(N, 2)``: the
            latter, and whether the action contains NaN.
        """
        width, height = sizes.unbind(-1)
        after, previous = move(boxes, actions, width, height, self.coordinates)
        iou = self._overlap(after, truth)
        scored = iou.isfinite()
        counted = torch.where(iou < OVERLAP_OF_LOST, missed + 1, 0)
        counted = torch.where(scored, counted, missed)
        lost = counted >= self.lost_after
        ends = torch.stack([lost, actions.isnan().any(-1)], dim=-1)
        return after, previous, iou, counted, torch.where(scored, iou, 0).float(), lost, ends

    def _observe_and_restart(self, done: NDArray[np.intp]) -> tuple[Observations, dict[str, Any]]:
        """Observe the next frames and, where episodes have ended, the first ones of new clips too."""
        looks = [self._observer.look(self._view(np.arange(self.num_envs)))]
        if not done.size:
            return self._observer.observations(looks), self._info()
        final_info = self._info()
        self._start(done, [self._next_clip(i) for i in done.tolist()])
        looks.append(self._observer.look(self._view(done)))
        final: Observations = {}
        observations: Observations = {}
        rows = self._uploaded(done)
        for name, values in self._observer.observations(looks).items():
            final[name] = values[: self.num_envs]
            observations[name] = final[name].index_copy(0, rows, values[self.num_envs :])
        marked = np.zeros(self.num_envs, dtype=bool)
        marked[done] = True
        ends = {"final_obs": final, "final_info": final_info}
        return observations, self._info() | ends | {f"_{name}": marked for name in ends}

    def true_motion(self) -> torch.Tensor:
        """``(N, 5)`` actions that move the current boxes to the true ones; NaN where there is no object."""
        if not self._clips:
            raise error.ResetNeeded("call reset() before true_motion()")
        truth = self._truths[self._rows, self._steps + 1]
        width, height = self._sizes.unbind(-1)
        target = geometry.nearest_label(truth, self._boxes)
        result: torch.Tensor = motion.solve(self._boxes, target, width, height, self.coordinates)
        return result

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None] | None:
        """One seed per environment; None if no seed was given."""
        if seed is None:
            return None
        if isinstance(seed, (int, np.integer)):
            return [int(seed) + i for i in range(self.num_envs)]
        return [None if one is None else int(one) for one in seed]

    def _all_sequences(self) -> Sequence[VideoSequence]:
        """All sequences that frames can come from; one represents all synthetic ones."""
        if self.clips is not None:
            return list(dict.fromkeys(clip.sequence for clip in self.clips))
        return self.source.sequences or [synthetic_sequence(0)]

    def _next_clip(self, i: int) -> Clip:
        if not self._assigned:
            return self.source.draw(self._generators[i])
        self._assigned[i].rotate(-1)
        return self._assigned[i][-1]

    def _allocate(self) -> None:
        """Allocate the state of N environments."""
        count, device = self.num_envs, self.device
        if self.clips is None:
            longest = max(len(sequence) for sequence in self._all_sequences())
            length = min(self.source.length, longest)
        else:
            length = max(clip.last - clip.start for clip in self.clips)
        self._clips = [None] * count  # type: ignore[list-item]
        self._index, self._last, self._final = np.zeros((3, count), np.intp)
        self._rows = torch.arange(count, device=device)
        self._steps = torch.zeros(count, dtype=torch.long, device=device)
        self._missed = torch.zeros(count, dtype=torch.long, device=device)
        self._sizes = torch.ones(count, 2, dtype=torch.float64, device=device)
        self._truths = torch.full((count, length + 2, 5), torch.nan, device=device).double()
        self._boxes = torch.zeros(count, 5, dtype=torch.float64, device=device)
        self._previous = torch.zeros(count, 5, dtype=torch.float64, device=device)
        self._at_rest = torch.tensor(motion.AT_REST, dtype=torch.float64, device=device)
        self._iou = torch.ones(count, dtype=torch.float64, device=device)

    def _start(self, which: NDArray[np.intp], clips: Sequence[Clip]) -> None:
        """Put environments at the start of clips."""
        truths = torch.full((len(clips), *self._truths.shape[1:]), torch.nan).double()
        for k, (i, clip) in enumerate(zip(which.tolist(), clips, strict=True)):
            self._clips[i] = clip
            self._index[i], self._last[i] = clip.start, clip.last
            self._final[i] = len(clip.sequence) - 1
            boxes = clip.sequence.boxes[clip.start : clip.last + 2]
            truths[k, : len(boxes)] = torch.from_numpy(boxes)
        sizes = torch.tensor([clip.sequence.size for clip in clips], dtype=torch.float64)
        rows = self._uploaded(which)
        self._truths.index_copy_(0, rows, to_device(truths, self.device))
        self._steps.index_fill_(0, rows, 0)
        self._missed.index_fill_(0, rows, 0)
        # Not in place: these have been returned to the caller, or a view still needs them.
        self._sizes = self._sizes.index_copy(0, rows, to_device(sizes, self.device))
        self._boxes = self._boxes.index_copy(0, rows, self._truths[rows, 0])
        self._previous = self._previous.index_copy(0, rows, self._at_rest.expand(len(clips), 5))
        self._iou = self._iou.index_fill(0, rows, 1.0)
        if self.perception.uses_template:
            self._memorize(clips, rows)

    def _memorize(self, clips: Sequence[Clip], rows: torch.Tensor) -> None:
        """Keep the first frames of clips as the templates of these environments."""
        first = [(clip.sequence, clip.start) for clip in clips]
        new = self._observer.memorize(first, self._boxes[rows], self._sizes[rows])
        started = len(rows) == self.num_envs
        old = self._template
        self._template = new if started or old is None else old.with_rows(rows, new)

    def _view(self, which: NDArray[np.intp]) -> View:
        """The next frame of environments (the same one again at the end of a sequence)."""
        following = np.minimum(self._index + 1, self._final)[which]
        frames = zip(which.tolist(), following.tolist(), strict=True)
        wanted = [(self._clips[i].sequence, t) for i, t in frames]
        if len(which) == self.num_envs:  # in order
            return View(wanted, self._boxes, self._previous, self._sizes, self._template)
        rows = self._uploaded(which)
        template = None if self._template is None else self._template.rows(rows)
        return View(wanted, self._boxes[rows], self._previous[rows], self._sizes[rows], template)

    def _uploaded(self, values: NDArray[Any]) -> torch.Tensor:
        """An array on the device, without waiting for that."""
        return to_device(torch.from_numpy(values), self.device)

    def _overlap(self, boxes: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        if self.reward == "rotated":
            return rotated_iou_torch(boxes, truth)
        overlap: torch.Tensor = bounds_iou(geometry.bounds(boxes), geometry.bounds(truth))
        return overlap

    def _info(self) -> dict[str, Any]:
        """As of the single environment, with an axis more; ``_key`` marks who has it: everyone."""
        info = {
            "sequence": np.array([clip.sequence.name for clip in self._clips], dtype=object),
            "frame": self._index.copy(),
            "rbbox": self._boxes.clone(),  # not what the next step goes on from
            "truth": self._truths[self._rows, self._steps],
            "iou": self._iou,
        }
        return info | {f"_{name}": np.ones(self.num_envs, dtype=bool) for name in info}
