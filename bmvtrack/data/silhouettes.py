"""Outlines of synthetic objects: many families of shapes, some with swinging limbs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from bmvtrack import geometry
from bmvtrack.arrays import FloatArray


@dataclass(frozen=True, eq=False)
class Part:
    """One piece of an outline, which may swing about a pivot.

    Args:
        contours: ``(N, 2)`` each; a contour inside another one is a hole.
        pivot: ``(2,)`` point that the piece turns about.
        swing: largest turn, radians.
        lag: phase lag behind the object's own phase, radians.
        accent: whether it is painted with the object's second texture.
    """

    contours: tuple[FloatArray, ...]
    pivot: tuple[float, float] = (0.0, 0.0)
    swing: float = 0.0
    lag: float = 0.0
    accent: bool = False


@dataclass(frozen=True, eq=False)
class Silhouette:
    """An outline in unit box coordinates: at rest its smallest rotated rectangle is ±½ × ±½.

    Args:
        parts: in raw coordinates, y down.
        rbbox: ``(5,)`` smallest rotated rectangle of the parts at rest, in raw coordinates.
        upright: whether it has an up and a down (an animal, a car), so that it should not tumble.
        ripple: amplitude of a wave that runs through the outline, in units of the box's sides.
    """

    parts: tuple[Part, ...]
    rbbox: FloatArray
    upright: bool
    ripple: float

    def outline(self, phase: float) -> list[tuple[Part, list[FloatArray]]]:
        """The parts with their contours ``(N, 2)`` in unit box coordinates.

        Args:
            phase: of the movement, radians; the outline is at rest at 0.
        """
        centre, size, angle = self.rbbox[:2], self.rbbox[2:4], self.rbbox[4]
        result = []
        for part in self.parts:
            swung = part.swing * (math.sin(phase - part.lag) - math.sin(-part.lag))
            pivot = np.array(part.pivot)
            turned = [(c - pivot) @ _turn(swung).T + pivot for c in part.contours]
            units = [(c - centre) @ _turn(-angle).T / size for c in turned]
            result.append((part, [self._rippled(c, phase) for c in units]))
        return result

    @property
    def fill(self) -> float:
        """Area of the outline at rest relative to that of its box."""
        canvas = np.zeros((64, 64), np.uint8)
        for _, contours in self.outline(0.0):
            cv2.fillPoly(canvas, [np.round(64 * (c + 0.5)).astype(np.int32) for c in contours], 1)
        return float(canvas.mean())

    def _rippled(self, points: FloatArray, phase: float) -> FloatArray:
        wave = np.sin(4.0 * points[:, ::-1] + phase) - np.sin(4.0 * points[:, ::-1])
        return np.asarray(points + self.ripple * wave)


def silhouette(generator: np.random.Generator, family: str | None = None) -> Silhouette:
    """A random outline.

    Args:
        generator: to draw from.
        family: one of :data:`FAMILIES`; None for any.
    """
    if family is None:
        family = FAMILIES[int(generator.integers(len(FAMILIES)))]
    build, upright = _BUILDERS[family]
    parts = tuple(build(generator))
    if upright and generator.random() < 0.5:
        parts = tuple(_mirrored(part) for part in parts)
    points = np.concatenate([c for part in parts for c in part.contours]).astype(np.float32)
    (x, y), (w, h), degrees = cv2.minAreaRect(points)
    rbbox = np.array([x, y, w, h, math.radians(degrees)])
    if upright:  # the label nearest to upright, so that the angle is the lean of the object
        rbbox = geometry.relabel(rbbox, geometry.turns_to_level(rbbox))
    ripple = generator.uniform(0.02, 0.07) if generator.random() < 0.4 else 0.0
    return Silhouette(parts, rbbox, upright, ripple)


def _turn(angle: float) -> FloatArray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def _mirrored(part: Part) -> Part:
    flip = np.array([-1.0, 1.0])
    contours = tuple(c * flip for c in part.contours)
    pivot = (-part.pivot[0], part.pivot[1])
    return Part(contours, pivot, -part.swing, part.lag, part.accent)


def _oval(
    x: float, y: float, a: float, b: float, angle: float = 0.0, power: float = 2.0
) -> FloatArray:
    """A superellipse of half axes a and b; ``(48, 2)``."""
    turns = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    cos, sin = np.cos(turns), np.sin(turns)
    points = np.stack(
        [
            a * np.sign(cos) * np.abs(cos) ** (2 / power),
            b * np.sign(sin) * np.abs(sin) ** (2 / power),
        ],
        axis=-1,
    )
    return np.asarray(points @ _turn(angle).T + [x, y])


def _limb(x: float, y: float, length: float, width: float, angle: float) -> FloatArray:
    """A tapered limb from (x, y); angle 0 points down; ``(6, 2)``."""
    points = np.array([[-1, 0], [1, 0], [0.7, 0.9], [0.9, 1], [-0.5, 1], [-0.7, 0.9]])
    return np.asarray((points * [width / 2, length]) @ _turn(angle).T + [x, y])


def _stretch(generator: np.random.Generator) -> FloatArray:
    """Half axes, never nearly equal, because the smallest rectangle around a disc has no angle."""
    return np.array([1.0, 1.0 / generator.uniform(1.15, 2.6)])


def _ellipse(generator: np.random.Generator) -> list[Part]:
    a, b = _stretch(generator)
    power = 2.0 if generator.random() < 0.5 else generator.uniform(0.9, 6.0)
    return [Part((_oval(0, 0, a, b, power=power),))]


def _polygon(generator: np.random.Generator) -> list[Part]:
    count = int(generator.integers(4, 9))  # all three rectangles along a triangle are equal
    turns = 2 * math.pi * (np.arange(count) + generator.uniform(-0.3, 0.3, count)) / count
    radius = generator.uniform(0.7, 1.0, count)[:, None]
    points = radius * np.stack([np.cos(turns), np.sin(turns)], -1) * _stretch(generator)
    return [Part((points,))]


def _star(generator: np.random.Generator) -> list[Part]:
    tips = int(generator.integers(4, 10))
    turns = math.pi * np.arange(2 * tips) / tips
    radius = np.where(np.arange(2 * tips) % 2 == 0, 1.0, generator.uniform(0.35, 0.75))
    points = np.stack([np.cos(turns), np.sin(turns)], -1) * radius[:, None] * _stretch(generator)
    return [Part((points,))]


def _blob(generator: np.random.Generator) -> list[Part]:
    turns = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    radius: FloatArray = np.ones(64)
    for order in range(2, 7):
        radius += generator.normal(0, 0.3 / order) * np.cos(order * turns + 6 * generator.random())
    radius = np.maximum(radius, 0.25)[:, None]
    return [Part((radius * np.stack([np.cos(turns), np.sin(turns)], -1) * _stretch(generator),))]


def _ring(generator: np.random.Generator) -> list[Part]:
    a, b = _stretch(generator)
    inner = generator.uniform(0.35, 0.65)
    shift = generator.uniform(-0.1, 0.1, 2)
    return [Part((_oval(0, 0, a, b), _oval(shift[0], shift[1] * b, inner * a, inner * b)))]


def _crescent(generator: np.random.Generator) -> list[Part]:
    opening = generator.uniform(0.3, 1.1)
    outer = np.linspace(opening, 2 * math.pi - opening, 40)
    depth = generator.uniform(0.4, 0.7)
    arc = np.stack([np.cos(outer), np.sin(outer)], -1)
    return [Part((np.concatenate([arc, arc[::-1] * [depth, 0.85]]),))]


def _quadruped(generator: np.random.Generator) -> list[Part]:
    body, leg = generator.uniform(0.3, 0.5), generator.uniform(0.5, 0.9)
    swing = generator.uniform(0.25, 0.55)
    neck = generator.uniform(0.3, 1.0)
    head = (1.15 + 0.2 * neck, -0.35 - 0.5 * neck)
    legs = [
        Part((_limb(x, 0.5 * body, leg, 0.24, 0),), (x, 0.5 * body), swing, lag, x > 0)
        for x, lag in ((-0.75, 0.0), (-0.55, math.pi), (0.55, math.pi), (0.75, 0.0))
    ]
    tail = Part((_limb(-0.95, -0.2 * body, 0.7, 0.12, 0.9),), (-0.95, -0.2 * body), 0.4, 1.0)
    torso = Part((_oval(0, 0, 1.0, body, power=2.6),))
    throat = Part((_limb(0.8, 0.0, math.hypot(0.5, 0.7 * neck), 0.4, math.pi + 0.6),))
    skull = Part((_oval(*head, 0.34, 0.22, 0.4),), (0.8, 0.0), 0.08, 0.5, generator.random() < 0.4)
    return [tail, *legs, torso, throat, skull]


def _biped(generator: np.random.Generator) -> list[Part]:
    width, swing = generator.uniform(0.22, 0.4), generator.uniform(0.3, 0.7)
    limb = generator.uniform(0.16, 0.24)
    legs = [
        Part((_limb(x, 0.45, 1.0, limb, 0),), (x, 0.45), swing, lag, True)
        for x, lag in ((-0.1, 0.0), (0.1, math.pi))
    ]
    arms = [
        Part((_limb(x, -0.45, 0.85, 0.8 * limb, turn),), (x, -0.45), swing, lag)
        for x, turn, lag in ((-0.8 * width, 0.2, math.pi), (0.8 * width, -0.2, 0.0))
    ]
    torso = Part((_oval(0, 0, width, 0.62, power=3.0),))
    head = Part((_oval(0.03, -0.85, 0.2, 0.25),), accent=generator.random() < 0.6)
    return [*legs, torso, *arms, head]


def _bird(generator: np.random.Generator) -> list[Part]:
    span, flap = generator.uniform(0.7, 1.2), generator.uniform(0.3, 0.7)
    wing = np.array([[-0.35, 0], [0.35, 0], [0.1, -span], [-0.3, -0.9 * span]])
    tail = np.array([[-0.7, 0], [-1.3, -0.3], [-1.15, 0], [-1.3, 0.3]])
    return [
        Part((wing * [1, -0.9],), (0.0, 0.0), -flap, 0.6, True),
        Part((tail,), (-0.7, 0.0), 0.3, 1.0, True),
        Part((_oval(0, 0, 0.95, generator.uniform(0.2, 0.4)),)),
        Part((wing,), (0.0, 0.0), flap, 0.0, generator.random() < 0.5),
    ]


def _vehicle(generator: np.random.Generator) -> list[Part]:
    front, back = generator.uniform(0.2, 0.7), generator.uniform(-0.9, -0.5)
    top = generator.uniform(-0.7, -0.4)
    cabin = np.array([[back - 0.1, 0], [back + 0.1, top], [front - 0.15, top], [front + 0.1, 0]])
    window = np.array([[back + 0.2, -0.08], [back + 0.25, top + 0.1], [front - 0.2, top + 0.1]])
    radius = generator.uniform(0.16, 0.26)
    wheels = [Part((_oval(x, 0.38, radius, radius),), accent=True) for x in (-0.6, 0.6)]
    body = Part((_oval(0, 0.18, 1.05, 0.24, power=5.0),))
    return [body, Part((cabin,)), Part((window,), accent=True), *wheels]


_Builder = Callable[[np.random.Generator], list[Part]]
_BUILDERS: dict[str, tuple[_Builder, bool]] = {
    "ellipse": (_ellipse, False),
    "polygon": (_polygon, False),
    "star": (_star, False),
    "blob": (_blob, False),
    "ring": (_ring, False),
    "crescent": (_crescent, False),
    "quadruped": (_quadruped, True),
    "biped": (_biped, True),
    "bird": (_bird, True),
    "vehicle": (_vehicle, True),
}
FAMILIES = tuple(_BUILDERS)
"""Names of the families of outlines."""
