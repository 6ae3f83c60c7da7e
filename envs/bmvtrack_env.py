"""``BMVTrack-v0``: tracking one object through a clip as a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from bmvtrack import geometry, motion
from bmvtrack.arrays import ByteArray, FloatArray
from bmvtrack.bundled import DEFAULT_WEIGHTS
from bmvtrack.data.sequence import VideoSequence
from bmvtrack.errors import UserError
from bmvtrack.iou import bounds_iou, rotated_iou
from bmvtrack.masks import mask_in_frame
from bmvtrack.motion import Coordinates
from bmvtrack.percept import Percept
from bmvtrack.perception import Perception
from bmvtrack.visualization import draw_overlay
from envs.clips import ClipSource
from envs.encoders import encoder_of
from envs.state import (
    OVERLAP_OF_LOST,
    Observation,
    Reward,
    action_space,
    check_choices,
    checked_action,
    move,
    observation_space,
    observe_one,
)

_OVERLAPS: dict[Reward, Callable[[FloatArray, FloatArray], FloatArray]] = {
    "rotated": rotated_iou,
    "axis_aligned": lambda a, b: bounds_iou(geometry.bounds(a), geometry.bounds(b)),
}


class BMVTrackEnv(gym.Env[Observation, NDArray[np.float32]]):
    r"""Track one object through a video clip by moving a rotated box from frame to frame.

    ## Description
    A sequence and a starting frame are drawn; the box starts at the true box. At every step the frozen
    encoder looks at the *next* frame through the *current* box and predicts a mask and a full-covariance
    Gaussian over the motion to the next box. The action is that motion.

    ## Action space
    `Box(5,)` float32: the motion $v$ from box t to box t+1 (paper Eq. 4–5).

    | index | parameter | `frame` (default) | `object` |
    |---|---|---|---|
    | 0 | Δs_x: scale factor of the side w | 0.1 … 4.6 | 0.1 … 4.6 |
    | 1 | Δs_y: scale factor of the side h | 0.1 … 4.6 | 0.1 … 4.6 |
    | 2 | sin θ: rotation | ±0.8 | ±0.8 |
    | 3 | Δx: translation | ±0.9 (of the frame's width) | ±1.8 (of √(w·h)) |
    | 4 | Δy: translation | ±1.4 (of the frame's height) | ±0.9 (of √(w·h)) |

    In `frame` coordinates the origin is the frame's corner, so scaling and rotation move the box as well; in
    `object` coordinates it is the box's centre. Actions outside the bounds are clipped; NaN raises an error.
    `envs.state.ACTION_BOUNDS` documents how the bounds were chosen.

    The box stays in place with (1, 1, 0, 0, 0), which is neither 0 nor the middle of the bounds, where
    agents without the prior start. After one step of such an agent the IoU is mostly 0 in `frame` coordinates
    and mostly below 0.2 in `object` ones. The wrapper `envs.WhitenedActions` takes actions $u$ in units of
    the encoder's Gaussian instead, $v = m + L u$; u = 0 is its mean.

    ## Observation space
    A flat `Dict` of float32 boxes that describe the next frame seen through the current box:

    | key | shape | content |
    |---|---|---|
    | `features` | F | pooled encoder features |
    | `prior_mean` | 5 | mean of the encoder's Gaussian, in the action's coordinates |
    | `prior_cholesky` | 15 | lower Cholesky factor of its covariance, row by row |
    | `mask_geometry` | 8 | moments of the predicted mask (`bmvtrack.masks.GEOMETRY`) |
    | `mask_residual` | 5 | motion to the mask's box in units of the Gaussian, L⁻¹(v − m), clipped to ±10 |
    | `box` | 6 | x/W, y/H, w/W, h/H, sin α, cos α of the current box |
    | `previous_motion` | 5 | last motion, in `object` coordinates; (1, 1, 0, 0, 0) after a reset |

    ## Reward
    The IoU of the new box with the true box, in [0, 1]: that of the rotated rectangles, or of their
    axis-aligned bounds. A frame without an object gives 0 and is not scored.

    ## Starting state
    A random sequence, and a random frame of it with an object and at least one frame after it. Choose them
    with `reset(options={"sequence": index or name, "start": frame})`.

    ## Episode end
    - *Truncated* after `clip_length` steps, or at the end of the sequence.
    - *Terminated* when the target is lost for good: `lost_after` consecutive scored frames with IoU 0.

    ## Arguments

    | argument | default | meaning |
    |---|---|---|
    | `sequences` | None | `VideoSequence`s, or data by name (`davis16:FOLDER`); None: synthetic, always new |
    | `weights` | `"davis16-duts-small"` | encoder: name of bundled weights, a folder, or a `Perception` |
    | `device` | `"cpu"` | device of the encoder; a `Perception` keeps its own |
    | `clip_length` | 32 | maximum number of steps per episode |
    | `coordinates` | `"frame"` | coordinates of the action: `frame` or `object` |
    | `reward` | `"rotated"` | IoU of the `rotated` boxes or of their `axis_aligned` bounds |
    | `lost_after` | 10 | consecutive scored frames without overlap that end an episode; `math.inf`: never |
    | `render_mode` | None | `rgb_array`, or `human` (a window) |

    A `Perception` (`from bmvtrack.perception import Perception`) can be shared by several environments.

    ## Info
    `sequence` (name), `frame` (index), `rbbox` and `truth` (`(5,)`), `iou` (NaN if not scored).

    ## Own frames
    Use `VideoSequence("cup", len(frames), frames.__getitem__, None, boxes)` from `bmvtrack.data.sequence`.
    Frames are `(H, W, 3)` uint8 RGB, all of the same size; boxes are `(T, 5)`: centre, width and height in
    pixels, angle in radians, NaN where there is no object. Instead of None and boxes, you can pass a function
    that maps t to a boolean mask.

    ## Example
    ```python
    import gymnasium as gym
    import bmvtrack

    env = gym.make("BMVTrack-v0")
    observation, info = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(observation["prior_mean"])
    ```
    """

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 12}  # noqa: RUF012

    def __init__(
        self,
        sequences: Sequence[VideoSequence] | str | None = None,
        weights: str | Perception = DEFAULT_WEIGHTS,
        device: str = "cpu",
        clip_length: int = 32,
        coordinates: Coordinates = "frame",
        reward: Reward = "rotated",
        lost_after: float = 10,
        render_mode: str | None = None,
    ) -> None:
        check_choices(coordinates, reward, lost_after)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UserError(
                f"render_mode must be one of {self.metadata['render_modes']}, not {render_mode!r}"
            )
        self.source = ClipSource(sequences, clip_length)
        self.perception = encoder_of(weights, device)
        self.lost_after = lost_after
        self.coordinates: Coordinates = coordinates
        self._overlap = _OVERLAPS[reward]
        self.render_mode = render_mode
        self.action_space: gym.spaces.Box = action_space(coordinates)  # type: ignore[assignment]
        self.observation_space: gym.spaces.Dict = observation_space(  # type: ignore[assignment]
            self.perception.feature_count
        )
        self.sequence: VideoSequence | None = None
        self._window: Any = None
        self._clock: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start a clip; ``options`` may hold ``sequence`` (index or name) and ``start`` (frame).

        Raises:
            UserError: if there are other options, or the chosen sequence or start does not exist or has no
                object.
        """
        options = options or {}
        unknown = options.keys() - {"sequence", "start"}
        if unknown:
            raise UserError(
                f"unknown options of reset: {', '.join(sorted(unknown))}; it takes sequence and start"
            )
        super().reset(seed=seed)
        clip = self.source.draw(self.np_random, options.get("sequence"), options.get("start"))
        self.sequence, self.frame_index, self.last_index = clip.sequence, clip.start, clip.last
        self.rbbox = self.sequence.boxes[self.frame_index].copy()
        self._previous_motion: FloatArray = np.array(motion.AT_REST)
        self._frames_lost = 0
        self._template = self.perception.remember(clip.sequence.frame(clip.start), self.rbbox)
        self._seen: Percept | None = None
        self._iou = 1.0
        observation = self._look()
        if self.render_mode == "human":
            self.render()
        return observation, self._info()

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move the box by ``action`` and advance to the next frame.

        Raises:
            ValueError: if the action has another shape or contains NaN.
            gymnasium.error.ResetNeeded: before the first reset, and after the sequence's last frame.
        """
        sequence = self._current()
        if self.frame_index + 1 >= len(sequence):
            raise gym.error.ResetNeeded("the sequence has ended: call reset() before step()")
        width, height = sequence.size
        self.rbbox, self._previous_motion = move(
            self.rbbox, checked_action(action), width, height, self.coordinates
        )
        self.frame_index += 1
        truth = sequence.boxes[self.frame_index]
        self._iou = float(self._overlap(self.rbbox, truth))
        scored = bool(np.isfinite(self._iou))
        if scored:
            self._frames_lost = self._frames_lost + 1 if self._iou < OVERLAP_OF_LOST else 0
        terminated = self._frames_lost >= self.lost_after
        truncated = self.frame_index >= self.last_index
        self._seen = self._percept
        observation = self._look()
        if self.render_mode == "human":
            self.render()
        reward = self._iou if scored else 0.0
        return observation, reward, terminated, truncated, self._info()

    def render(self) -> ByteArray | None:
        """Render the current frame with the true box, the predicted box, its mask and the IoU.

        Raises:
            UserError: if no window can be opened in ``human`` mode.
        """
        if self.render_mode is None:
            gym.logger.warn("render() needs render_mode; gym.make(..., render_mode='rgb_array')")
            return None
        sequence = self._current()
        width, height = sequence.size
        mask = None
        if self._seen is not None:
            seen = self._seen
            mask = mask_in_frame(seen.probabilities[0], seen.windows[0], width, height)
        picture = draw_overlay(
            sequence.frame(self.frame_index),
            true_box=sequence.boxes[self.frame_index],
            predicted_box=self.rbbox,
            mask=mask,
            text=f"{sequence.name} {self.frame_index}  IoU {self._iou:.2f}",
        )
        if self.render_mode == "rgb_array":
            return picture
        self._show(picture)
        return None

    def close(self) -> None:
        """Close the window, if one is open."""
        if self._window is not None:
            import pygame

            pygame.display.quit()
            self._window = self._clock = None

    def _look(self) -> Observation:
        """Observe the next frame (at the end of the sequence, the last one again)."""
        sequence = self._current()
        next_index = min(self.frame_index + 1, len(sequence) - 1)
        frame = sequence.frame(next_index)
        self._percept = self.perception.look(frame, self.rbbox, self._template).cpu()
        return observe_one(
            self._percept, self.rbbox, self._previous_motion, sequence.size, self.coordinates
        )

    def _current(self) -> VideoSequence:
        if self.sequence is None:
            raise gym.error.ResetNeeded("call reset() before step() or render()")
        return self.sequence

    def _info(self) -> dict[str, Any]:
        sequence = self._current()
        return {
            "sequence": sequence.name,
            "frame": self.frame_index,
            "rbbox": self.rbbox.copy(),
            "truth": sequence.boxes[self.frame_index].copy(),
            "iou": self._iou,
        }

    def _show(self, picture: ByteArray) -> None:
        import pygame  # only human mode needs it

        height, width = picture.shape[:2]
        try:
            # pygame has one display: closing one environment's window closes those of all.
            if self._window is None or not pygame.display.get_init():
                self._window = None
                pygame.display.init()
                pygame.display.set_caption("BMVTrack-v0")
                self._clock = pygame.time.Clock()
            if self._window is None or self._window.get_size() != (width, height):
                self._window = pygame.display.set_mode((width, height))
        except pygame.error as error:
            raise UserError(
                f"render_mode='human' cannot open a window here ({error}); "
                "use render_mode='rgb_array'"
            ) from error
        surface = pygame.image.frombuffer(picture.tobytes(), (width, height), "RGB")
        self._window.blit(surface, (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self.metadata["render_fps"])
