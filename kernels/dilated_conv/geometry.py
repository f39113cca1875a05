"""Where a convolution's taps fall: which outputs a tap is live for, and the rectangles that follow.

    tap t of output o reads input o * stride - padding + t * dilation

A tap that falls outside reads a zero: it is not live there. Along an axis the taps that are live
for an output are consecutive, and so are the outputs that a tap is live for. Cutting both axes
wherever the set of live taps changes leaves rectangles of outputs with one list of taps each: no
masks, and no products with padding.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple


class Axis(NamedTuple):
    input: int  # positions
    output: int
    taps: int
    stride: int
    padding: int  # before the first position; what lies behind the last is zero, however much
    dilation: int

    def live(self, tap: int) -> range:
        """The outputs whose tap reads an input."""
        shift = self.padding - tap * self.dilation  # o * stride >= shift, < shift + input
        begin = max(0, -(-shift // self.stride))
        end = min(self.output, -(-(shift + self.input) // self.stride))
        return range(begin, max(begin, end))

    def first_input(self, tap: int, output: int) -> int:
        return output * self.stride - self.padding + tap * self.dilation

    def live_pairs(self) -> int:
        """How many (output, tap) pairs are live."""
        return sum(len(self.live(tap)) for tap in range(self.taps))

    def spans(self) -> list[Span]:
        """The outputs, cut where the live taps change; those without any are left out."""
        live = [self.live(tap) for tap in range(self.taps)]
        cuts = sorted({0, self.output} | {end for r in live if r for end in (r.start, r.stop)})
        spans = []
        for begin, end in itertools.pairwise(cuts):
            taps = [tap for tap, outputs in enumerate(live) if begin in outputs]
            if taps:
                spans.append(Span(range(begin, end), range(taps[0], taps[-1] + 1)))
        return spans


class Span(NamedTuple):
    outputs: range
    taps: range


class Geometry(NamedTuple):
    """The axes of a map of two dimensions."""

    rows: Axis
    columns: Axis

    @classmethod
    def of(
        cls,
        input_size: tuple[int, int],
        output_size: tuple[int, int],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> Geometry:
        facts = (input_size, output_size, kernel, stride, padding, dilation)
        rows, columns = (Axis(*axis) for axis in zip(*facts, strict=True))
        return cls(rows, columns)

    @classmethod
    def same(cls, size: tuple[int, int], kernel: tuple[int, int], dilation: int) -> Geometry:
        """Of a convolution that keeps a map's size; an even kernel has the odd zero behind."""
        before = dilation * (kernel[0] - 1) // 2, dilation * (kernel[1] - 1) // 2
        return cls.of(size, size, kernel, (1, 1), before, (dilation, dilation))

    def rectangles(self) -> list[tuple[Span, Span]]:
        """(rows, columns) with one set of live taps each, none empty."""
        return [(r, c) for r in self.rows.spans() for c in self.columns.spans()]

    def pairs(self) -> int:
        """(output, tap) pairs, those in the padding included."""
        rows, columns = self
        return rows.output * rows.taps * columns.output * columns.taps

    def live_pairs(self) -> int:
        return self.rows.live_pairs() * self.columns.live_pairs()
