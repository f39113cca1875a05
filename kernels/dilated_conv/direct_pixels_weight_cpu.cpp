// The weight's gradient for maps [N, H, W, C], one channel per group: products of pixels, summed in
// registers over a run of a row, then over the rows of a chunk; chunks are added up in double.
#include "direct_products.h"
#include "direct_typed.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

// Rows of all maps, cut by the problem's size alone.
struct Chunks {
  int64_t rows, count;

  explicit Chunks(const DilatedConv& p) {
    const int64_t all = p.batch * p.rows.output;
    const int64_t wanted =
        larger(divide_up(kItems, channel_blocks(p)), divide_up(all * p.columns.output, kMostAdded));
    rows = larger(1, divide_up(all, wanted));
    count = larger(1, divide_up(all, rows));
  }
};

template <typename, typename T>
using Scratch = ProductLines<T>;

// Items are (chunk of rows, block of channels).
template <typename S, typename T>
void grad_weight_of(const DilatedConv& p, const S* grads, const S* maps, T* parts, int64_t begin,
                    int64_t end, Arena* arena) {
  const ProductLines<T> lines(p, arena);
  const Chunks chunks(p);
  const int64_t blocks = channel_blocks(p), x_row = p.columns.input * p.groups;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t chunk = item / blocks;
    const Channels channels = channels_of(p, item % blocks);
    const int64_t at = channels.begin;
    T* part = parts + chunk * taps(p) * p.groups + at;
    clear(p, channels.count, part);
    const int64_t last = smaller(p.batch * p.rows.output, (chunk + 1) * chunks.rows);
    for (int64_t k = chunk * chunks.rows; k < last; ++k) {
      const int64_t map = k / p.rows.output, position = k % p.rows.output;
      const S* x = maps + map * p.rows.input * x_row + at;
      const S* g = grads + (map * p.rows.output + position) * p.columns.output * p.groups + at;
      add_row(p, lines, position, g, x, 0, p.groups, channels.count, part);
    }
  }
}

}  // namespace

int64_t pixels_parts(const DilatedConv& p) { return Chunks(p).count; }

int64_t pixels_grad_weight_items(const DilatedConv& p) {
  return Chunks(p).count * channel_blocks(p);
}

int64_t pixels_grad_weight_scratch(const DilatedConv& p) { return bytes_of<Scratch>(p); }

void pixels_grad_weight(const DilatedConv& p, const void* grad, const void* x, void* sums,
                        int64_t begin, int64_t end, void* memory) {
  with_sums(p.dtype, grad, x, sums, [&](auto grad, auto x, auto sums) {
    Arena arena(memory);
    grad_weight_of(p, grad, x, sums, begin, end, &arena);
  });
}

void pixels_merge(const DilatedConv& p, void* sums, void* weight) {
  merge_parts(p, pixels_parts(p), sums, weight);
}

void merge_parts(const DilatedConv& p, int64_t parts, void* sums, void* weight) {
  constexpr int64_t kSome = 64;
  by_dtype(p.dtype, [&](auto element, auto sum) {
    using T = decltype(sum);
    T* total = static_cast<T*>(sums);  // [kh kw, G], as each part
    auto* to = static_cast<decltype(element)*>(weight);
    const int64_t part = taps(p) * p.groups;
    for (int64_t i = 0; i < part; i += kSome) {
      const int64_t some = smaller(kSome, part - i);
      double exact[kSome] = {};
      for (int64_t k = 0; k < parts; ++k) {
        for (int64_t j = 0; j < some; ++j) exact[j] += total[k * part + i + j];
      }
      for (int64_t j = 0; j < some; ++j) total[i + j] = static_cast<T>(exact[j]);
    }
    for (int64_t t = 0; t < taps(p); ++t) {
      for (int64_t g = 0; g < p.groups; ++g) narrow(total[t * p.groups + g], to + g * taps(p) + t);
    }
  });
}

}  // namespace SEGFAST_ISA
}  // namespace segfast
