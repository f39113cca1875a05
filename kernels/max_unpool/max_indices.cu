// PyTorch's indices, h * W + w: to packed offsets and back, and unpooling and gathering by them.
//
// Arbitrary indices may name a position twice. Which output is the last to do so is found first, by
// a maximum over the outputs' numbers: the same in whatever order they come.
#include "windows.cuh"

namespace segfast {
namespace {

__global__ void unpack_kernel(Maps m, Items items, const uint8_t* __restrict__ packed,
                              int64_t* __restrict__ indices) {
  const int64_t thread = thread_index();
  if (thread >= items.count) return;
  const Item item = items.at(thread);
  const uint8_t byte = packed[m.at_packed(item.image, item.row, item.column, item.lane)];
  const int64_t offset = m.offset(byte, item.column);
  const int64_t i = m.by_kernel(offset), j = offset - i * m.columns.kernel;
  const int64_t h = m.rows.start(item.row) + i * m.rows.dilation;
  const int64_t w = m.columns.start(item.column) + j * m.columns.dilation;
  indices[thread] = h * m.columns.input + w;
}

// A byte, and the outputs that share it.
__global__ void pack_kernel(Maps m, Items items, Divider by_width,
                            const int64_t* __restrict__ indices, uint8_t* __restrict__ packed,
                            unsigned long long* outside) {
  const int64_t thread = thread_index();
  if (thread >= items.count) return;
  const Item item = items.at(thread);
  const int outputs = 8 / m.bits;
  int byte = 0;
  for (int k = 0; k < outputs; ++k) {
    const int64_t column = item.column * outputs + k;
    if (column >= m.columns.output) break;
    const int64_t index = indices[m.at_y(item.image, item.row, column, item.lane)];
    const bool inside = index >= 0 && index < m.rows.input * m.columns.input;
    const int64_t h = inside ? by_width(index) : 0;
    const int64_t i = m.rows.tap(h, item.row);
    const int64_t j = m.columns.tap(inside ? index - h * m.columns.input : 0, column);
    if (inside && i >= 0 && j >= 0) {
      byte |= static_cast<int>(i * m.columns.kernel + j) << k * m.bits;
    } else if (outside != nullptr) {
      atomicAdd(outside, 1ULL);
    }
  }
  packed[thread] = static_cast<uint8_t>(byte);
}

// ------------------------------------------------------------------------- arbitrary indices

// Maps of which only sizes and layout count: element `thread` of [outer, size, inner].
struct Flat {
  int64_t count;
  Divider by_inner, by_size;

  Flat(int64_t outer, int64_t size, int64_t inner)
      : count(outer * size * inner),
        by_inner(count > 0 ? inner : 1),
        by_size(count > 0 ? size : 1) {}
  __device__ Item at(int64_t thread) const {  // column: the position
    const int64_t pixel = by_inner(thread);
    const int64_t image = by_size(pixel);
    return {image, 0, pixel - image * by_size.divisor, thread - pixel * by_inner.divisor};
  }
  __device__ int64_t element(int64_t image, int64_t position, int64_t lane) const {
    return (image * by_size.divisor + position) * by_inner.divisor + lane;
  }
};

__global__ void clear_kernel(int64_t count, uint4* memory) {
  const int64_t thread = thread_index();
  if (thread < count) memory[thread] = make_uint4(0, 0, 0, 0);
}

template <typename Winner>
__global__ void claim_kernel(Flat y, Flat x, const int64_t* __restrict__ indices,
                             Winner* __restrict__ winners) {
  const int64_t thread = thread_index();
  if (thread >= y.count) return;
  const int64_t index = indices[thread];
  if (index < 0 || index >= x.by_size.divisor) return;
  const Item item = y.at(thread);
  atomicMax(winners + x.element(item.image, index, item.lane),
            static_cast<Winner>(item.column + 1));
}

template <typename T, typename Winner>
__global__ void settle_kernel(Flat y, Flat x, const T* __restrict__ values,
                              const Winner* __restrict__ winners, T* __restrict__ result) {
  const int64_t thread = thread_index();
  if (thread >= x.count) return;
  const Winner winner = winners[thread];
  if (winner == 0) {
    result[thread] = 0;
  } else {
    const Item item = x.at(thread);
    result[thread] = values[y.element(item.image, static_cast<int64_t>(winner - 1), item.lane)];
  }
}

// winners: null for all.
template <typename T, typename Winner>
__global__ void gather_indices_kernel(Flat y, Flat x, const T* __restrict__ values,
                                      const int64_t* __restrict__ indices,
                                      const Winner* __restrict__ winners, T* __restrict__ result) {
  const int64_t thread = thread_index();
  if (thread >= y.count) return;
  const int64_t index = indices[thread];
  T value = 0;
  if (index >= 0 && index < x.by_size.divisor) {
    const Item item = y.at(thread);
    const int64_t from = x.element(item.image, index, item.lane);
    if (winners == nullptr || winners[from] == static_cast<Winner>(item.column + 1)) {
      value = values[from];
    }
  }
  result[thread] = value;
}

Grid grid_of(int64_t threads) { return Grid{ceil_div(threads, kBlock)}; }

struct Flats {
  Flat y, x;

  explicit Flats(const Pooling& p)
      : y(outer(p), p.rows.output * p.columns.output, inner(p)),
        x(outer(p), p.rows.input * p.columns.input, inner(p)) {}
  static int64_t outer(const Pooling& p) {
    return p.channels_last ? p.batch : p.batch * p.channels;
  }
  static int64_t inner(const Pooling& p) { return p.channels_last ? p.channels : 1; }
};

template <typename Winner>
int find_winners(const Pooling& p, const Flats& flats, const int64_t* indices, Winner* winners,
                 CUstream_st* stream) {
  const int64_t units = index_winners_bytes(p) / 16;
  const int error = launch(clear_kernel, grid_of(units), dim3(kBlock), 0, stream, units,
                           reinterpret_cast<uint4*>(winners));
  if (error != 0) return error;
  return launch(claim_kernel<Winner>, grid_of(flats.y.count), dim3(kBlock), 0, stream, flats.y,
                flats.x, indices, winners);
}

// f(a Winner) of the width that the outputs' numbers need.
template <typename F>
int for_winner(const Pooling& p, const F& f) {
  return wide_index_winners(p) ? f(0ULL) : f(0U);
}

}  // namespace

int max_unpack_cuda(const Pooling& p, const uint8_t* packed, int64_t* indices,
                    CUstream_st* stream) {
  const Maps m(p);
  const Items items(m.outer, p.rows.output, p.columns.output, m.inner, 1);
  return launch_items(unpack_kernel, items, stream, m, items, packed, indices);
}

int max_pack_cuda(const Pooling& p, const int64_t* indices, uint8_t* packed,
                  unsigned long long* outside, CUstream_st* stream) {
  const Maps m(p);
  const Items items(m.outer, p.rows.output, m.bytes, m.inner, 1);
  const Divider by_width(p.columns.input > 0 ? p.columns.input : 1);
  return launch_items(pack_kernel, items, stream, m, items, by_width, indices, packed, outside);
}

int max_unpool_indices_cuda(const Pooling& p, const void* y, const int64_t* indices, void* x,
                            void* winners, CUstream_st* stream) {
  const Flats flats(p);
  return for_winner(p, [&](auto number) {
    using Winner = decltype(number);
    Winner* last = static_cast<Winner*>(winners);
    if (const int error = find_winners(p, flats, indices, last, stream)) return error;
    return for_word(p.dtype, [&](auto word) {
      using T = decltype(word);
      return launch(settle_kernel<T, Winner>, grid_of(flats.x.count), dim3(kBlock), 0, stream,
                    flats.y, flats.x, static_cast<const T*>(y), last, static_cast<T*>(x));
    });
  });
}

int max_gather_indices_cuda(const Pooling& p, const void* x, const int64_t* indices, void* y,
                            void* winners, CUstream_st* stream) {
  const Flats flats(p);
  return for_winner(p, [&](auto number) {
    using Winner = decltype(number);
    Winner* last = static_cast<Winner*>(winners);
    if (last != nullptr) {
      if (const int error = find_winners(p, flats, indices, last, stream)) return error;
    }
    return for_word(p.dtype, [&](auto word) {
      using T = decltype(word);
      return launch(gather_indices_kernel<T, Winner>, grid_of(flats.y.count), dim3(kBlock), 0,
                    stream, flats.y, flats.x, static_cast<const T*>(x), indices, last,
                    static_cast<T*>(y));
    });
  });
}

}  // namespace segfast
