// Taps along one direction, for a convolution and for its input's gradient alike.
//
//   position m of a line reads source m * step + first, for m in [begin, end)
//
// A convolution is one line per direction. Its input's gradient is one line per phase of the
// stride: inputs q = phase + m * stride read output (q + padding - t * dilation) / stride for the
// taps t that make this a whole number. `first` rises from tap to tap, so begin and end fall: the
// taps that are live for a position are consecutive.
#pragma once

#include "dilated_conv.h"
#include "direct_elements.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

struct LineTap {
  int64_t tap, first, begin, end;
};

// Positions with one set of live taps.
struct Span {
  int64_t begin, end;
  int64_t first_tap, last_tap;  // [first_tap, last_tap) of the line's; perhaps none
};

// A span as vectors of `width` lanes: at begin, begin + width, ..., and the last one at `last`, of
// which only lanes [keep, keep_end) belong to the span and were not in the vector before.
struct Piece {
  int64_t begin, last, vectors;
  int width, keep, keep_end;
  int64_t first_tap, last_tap;
};

struct Line {
  int64_t count, step;  // positions; sources from one to the next
  int64_t taps, spans, pieces;
  LineTap* tap;
  Span* span;
  Piece* piece;  // those with few taps first: see cut_into_vectors
};

struct Lines {
  int64_t count;  // phases
  Line* line;
};

void add_span(Line* line, int64_t begin) {
  Span s{begin, line->count, 0, 0};
  for (int64_t k = 0; k < line->taps; ++k) {
    const LineTap& t = line->tap[k];
    if (t.begin > begin) s.end = smaller(s.end, t.begin);
    if (t.end > begin) s.end = smaller(s.end, t.end);
    if (t.begin <= begin && begin < t.end) {
      if (s.last_tap == 0) s.first_tap = k;
      s.last_tap = k + 1;
    }
  }
  line->span[line->spans++] = s;
}

// Whether every tap of the span is live in all of [begin, end).
bool live_within(const Line& line, const Span& s, int64_t begin, int64_t end) {
  if (begin < 0 || end > line.count) return false;
  for (int64_t k = s.first_tap; k < s.last_tap; ++k) {
    if (line.tap[k].begin > begin || line.tap[k].end < end) return false;
  }
  return true;
}

// A span shorter than a vector may reach into a neighbour for which its taps are live, too: that
// one has more taps, comes later in the order of pieces and overwrites what is wrong there.
Piece piece_of(const Line& line, const Span& s, int lanes) {
  const int64_t length = s.end - s.begin;
  Piece p{s.begin, s.begin, 1, lanes, 0, lanes, s.first_tap, s.last_tap};
  if (length < lanes && live_within(line, s, s.begin, s.begin + lanes)) {
    p.keep_end = static_cast<int>(length);
    return p;
  }
  if (length < lanes && live_within(line, s, s.end - lanes, s.end)) {
    p.begin = p.last = s.end - lanes;
    p.keep = lanes - static_cast<int>(length);
    return p;
  }
  while (p.width > length) p.width /= 2;
  p.vectors = divide_up(length, p.width);
  p.last = s.end - p.width;
  p.keep = static_cast<int>(s.begin + (p.vectors - 1) * p.width - p.last);
  p.keep_end = p.width;
  return p;
}

void cut_into_vectors(Line* line, int lanes) {
  for (int64_t begin = 0; begin < line->count; begin = line->span[line->spans - 1].end) {
    add_span(line, begin);
  }
  for (int64_t taps = 0; taps <= line->taps; ++taps) {
    for (int64_t k = 0; k < line->spans; ++k) {
      const Span& s = line->span[k];
      if (s.last_tap - s.first_tap != taps) continue;
      line->piece[line->pieces++] = piece_of(*line, s, lanes);
    }
  }
}

// The lines of one direction, in memory of the arena.
class LineMaker {
 public:
  LineMaker(Arena* arena, const Axis& axis, int lanes, bool of_gradient)
      : axis_(axis), lanes_(lanes) {
    lines_.count = of_gradient ? larger(1, smaller(axis.stride, axis.input)) : 1;
    lines_.line = arena->take<Line>(lines_.count);
    tap_ = arena->take<LineTap>(axis.taps);  // a tap belongs to one phase
    span_ = arena->take<Span>(2 * axis.taps + lines_.count);
    piece_ = arena->take<Piece>(2 * axis.taps + lines_.count);
    if (arena->counts()) return;
    for (int64_t phase = 0; phase < lines_.count; ++phase) {
      Line line{0, 1, 0, 0, 0, tap_, span_, piece_};
      if (of_gradient) {
        backward(phase, &line);
      } else {
        forward(&line);
      }
      cut_into_vectors(&line, lanes_);
      tap_ += line.taps;
      span_ += line.spans;
      piece_ += line.pieces;
      lines_.line[phase] = line;
    }
  }

  Lines lines() const { return lines_; }

 private:
  void forward(Line* line) const {
    line->count = axis_.output;
    line->step = axis_.stride;
    for (int64_t t = 0; t < axis_.taps; ++t) {
      const Range r = live(axis_, t);
      if (r.begin == r.end) continue;
      line->tap[line->taps++] = {t, t * axis_.dilation - axis_.padding, r.begin, r.end};
    }
  }

  void backward(int64_t phase, Line* line) const {
    if (phase >= axis_.input) return;
    line->count = (axis_.input - 1 - phase) / axis_.stride + 1;
    for (int64_t t = axis_.taps - 1; t >= 0; --t) {
      const int64_t reach = phase + axis_.padding - t * axis_.dilation;
      const int64_t first = floor_divide(reach, axis_.stride);
      if (first * axis_.stride != reach) continue;
      const int64_t begin = larger(0, -first), end = smaller(line->count, axis_.output - first);
      if (begin < end) line->tap[line->taps++] = {t, first, begin, end};
    }
  }

  Axis axis_;
  int lanes_;
  Lines lines_{};
  LineTap* tap_;
  Span* span_;
  Piece* piece_;
};

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
