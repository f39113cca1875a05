// PyTorch's indices, h * W + w: to packed offsets and back, and unpooling and gathering by them.
//
// Arbitrary indices may name a position twice. Which output is the last to do so is found first, by
// a maximum over the outputs' numbers: the same in whatever order they come.
#include "windows.cuh"

namespace segfast {
namespace {

__global__ void unpack_kernel(Maps m, Items items,
                              const uint8_t* __restrict__ packed,  // [outer, Ho, Wp, inner]
                              int64_t* __restrict__ indices) {     // [outer, Ho, Wo, inner]
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
                            const int64_t* __restrict__ indices,  // [outer, Ho, Wo, inner]
                            uint8_t* __restrict__ packed,         // [outer, Ho, Wp, inner]
                            unsigned long long* outside) {        // [1], or null
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
    const int64_t i = m.rows.offset(h, item.row);
    const int64_t j = m.columns.offset(inside ? index - h * m.columns.input : 0, column);
    if (inside && i >= 0 && j >= 0) {
      byte |= static_cast<int>(i * m.columns.kernel + j) << k * m.bits;
    } else if (outside != nullptr) {
      atomicAdd(outside, 1ULL);
    }
  }
  packed[thread] = static_cast<uint8_t>(byte);
}

// ------------------------------------------------------------------------- arbitrary indices

// Planes as single rows of positions, of which indices are the numbers.
Pooling flat(const Pooling& p) {
  Pooling flat = p;
  flat.rows = {1, 1};
  flat.columns = {p.rows.input * p.columns.input, p.rows.output * p.columns.output};
  return flat;
}
// A thread for each element of y, or of x.
Items items_of_y(const Maps& m) { return Items(m.outer, 1, m.columns.output, m.inner, 1); }
Items items_of_x(const Maps& m) { return Items(m.outer, 1, m.columns.input, m.inner, 1); }

// Winners [x]: the number, from 1, of the last output that names a position; 0 without one.

__global__ void clear_kernel(int64_t count, uint4* memory) {  // [count]
  const int64_t thread = thread_index();
  if (thread < count) memory[thread] = make_uint4(0, 0, 0, 0);
}

template <typename Winner>
__global__ void find_winners_kernel(Maps m, Items of_y,
                                    const int64_t* __restrict__ indices,  // [outer, Ho Wo, inner]
                                    Winner* __restrict__ winners) {       // [outer, H W, inner]
  const int64_t thread = thread_index();
  if (thread >= of_y.count) return;
  const int64_t index = indices[thread];
  if (index < 0 || index >= m.columns.input) return;
  const Item item = of_y.at(thread);
  atomicMax(winners + m.at_x(item.image, 0, index, item.lane),
            static_cast<Winner>(item.column + 1));
}

template <typename T, typename Winner>
__global__ void unpool_indices_kernel(Maps m, Items of_x,
                                      const T* __restrict__ y,             // [outer, Ho Wo, inner]
                                      const Winner* __restrict__ winners,  // [outer, H W, inner]
                                      T* __restrict__ x) {                 // [outer, H W, inner]
  const int64_t thread = thread_index();
  if (thread >= of_x.count) return;
  const Winner winner = winners[thread];
  if (winner == 0) {
    x[thread] = 0;
  } else {
    const Item item = of_x.at(thread);
    x[thread] = y[m.at_y(item.image, 0, static_cast<int64_t>(winner - 1), item.lane)];
  }
}

template <typename T, typename Winner>
__global__ void gather_indices_kernel(
    Maps m, Items of_y,
    const T* __restrict__ x,              // [outer, H W, inner]
    const int64_t* __restrict__ indices,  // [outer, Ho Wo, inner]
    const Winner* __restrict__ winners,   // [outer, H W, inner], null for all
    T* __restrict__ y) {                  // [outer, Ho Wo, inner]
  const int64_t thread = thread_index();
  if (thread >= of_y.count) return;
  const int64_t index = indices[thread];
  T value = 0;
  if (index >= 0 && index < m.columns.input) {
    const Item item = of_y.at(thread);
    const int64_t from = m.at_x(item.image, 0, index, item.lane);
    if (winners == nullptr || winners[from] == static_cast<Winner>(item.column + 1)) {
      value = x[from];
    }
  }
  y[thread] = value;
}

template <typename Winner>
int find_winners(const Pooling& p, const Maps& m, const int64_t* indices, Winner* winners,
                 CUstream_st* stream) {
  const int64_t units = index_winners_bytes(p) / 16;
  const int error = launch(clear_kernel, Grid{ceil_div(units, kBlock)}, dim3(kBlock), 0, stream,
                           units, reinterpret_cast<uint4*>(winners));
  if (error != 0) return error;
  const Items of_y = items_of_y(m);
  return launch_items(find_winners_kernel<Winner>, of_y, stream, m, of_y, indices, winners);
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
  const Maps m(flat(p));
  const Items of_x = items_of_x(m);
  return for_winner(p, [&](auto number) {
    using Winner = decltype(number);
    Winner* last = static_cast<Winner*>(winners);
    if (const int error = find_winners(p, m, indices, last, stream)) return error;
    return for_word(p.dtype, [&](auto word) {
      using T = decltype(word);
      return launch_items(unpool_indices_kernel<T, Winner>, of_x, stream, m, of_x,
                          static_cast<const T*>(y), last, static_cast<T*>(x));
    });
  });
}

int max_gather_indices_cuda(const Pooling& p, const void* x, const int64_t* indices, void* y,
                            void* winners, CUstream_st* stream) {
  const Maps m(flat(p));
  const Items of_y = items_of_y(m);
  return for_winner(p, [&](auto number) {
    using Winner = decltype(number);
    Winner* last = static_cast<Winner*>(winners);
    if (last != nullptr) {
      if (const int error = find_winners(p, m, indices, last, stream)) return error;
    }
    return for_word(p.dtype, [&](auto word) {
      using T = decltype(word);
      return launch_items(gather_indices_kernel<T, Winner>, of_y, stream, m, of_y,
                          static_cast<const T*>(x), indices, last, static_cast<T*>(y));
    });
  });
}

}  // namespace segfast
