// y = S B_d ... B_0 S^T v without the slice: values are summed onto vertices and blurred.
#include "dense_crf.cuh"

namespace segfast {
namespace {

// What the kernels of one call share; vectors: of a row.
struct Rows {
  Tiles tiles;
  int vectors, row;
  int64_t capacity;
  const int64_t* state;   // [kFinite + B]
  const uint64_t* heads;  // [tiles]
  const int32_t* base;    // [tiles]

  // Whether the last vertex of a tile goes on in the next one.
  __device__ bool continues(int64_t tile, int64_t in_image) const {
    return in_image + 1 < tiles.per_image && !(heads[tile + 1] & 1);
  }
};

// One tile and one vector of labels. Vertices that begin and end in the tile are done; what belongs
// to a vertex of an earlier tile goes to partial[0], to one that goes on in the next to partial[1].
template <typename T>
__global__ void splat_kernel(Rows r, Divider by_vectors,
                             const int32_t* __restrict__ pixel,  // [M]
                             const T* __restrict__ weight,       // [M]
                             const T* __restrict__ scale,        // [B N] or null
                             const T* __restrict__ values,       // [B N, row]
                             T* __restrict__ partial,            // [2, tiles, row]
                             T* __restrict__ table) {            // [capacity, row]
  const int64_t tile = by_vectors(thread_index());
  if (tile >= r.tiles.count || r.state[kStatus] != 0) return;
  const int column = static_cast<int>(thread_index() - tile * r.vectors) * kLanes<T>;
  const int64_t image = r.tiles.by_image(tile), in_image = tile - image * r.tiles.per_image;
  const int64_t first = image * r.tiles.entries + in_image * kEntryTile;
  const int64_t left = (image + 1) * r.tiles.entries - first;
  const int count = left < kEntryTile ? static_cast<int>(left) : kEntryTile;
  const uint64_t heads = r.heads[tile];
  T* to = partial + tile * r.row + column;
  T* next = table + (int64_t{r.base[tile]} + 1) * r.row + column;
  Vector<T> sum = {};
  constexpr int kAhead = 4;  // loads in flight
  for (int start = 0; start < count; start += kAhead) {
    Vector<T> v[kAhead];
    T w[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int64_t i = first + (start + u < count ? start + u : count - 1);
      const int64_t p = pixel[i];
      w[u] = scale ? weight[i] * scale[p] : weight[i];
      v[u] = load_vector(values + p * r.row + column);
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int j = start + u;
      if (j >= count) break;
      if (heads >> j & 1) {
        if (j > 0) store(to, sum);
        sum = {};
        to = next;
        next += r.row;
      }
      add_times(sum, w[u], v[u]);
    }
  }
  if (heads != 0 && r.continues(tile, in_image)) {
    to = partial + (r.tiles.count + tile) * r.row + column;
  }
  store(to, sum);
}

constexpr int kMergeWarps = kBlock / 32;

// One warp for each tile whose last vertex goes on: sums its parts. Groups of lanes take every
// so-manieth tile, and are added in their order.
template <typename T>
__global__ void merge_kernel(Rows r, const T* __restrict__ partial,  // [2, tiles, row]
                             T* __restrict__ table) {                // [capacity, row]
  __shared__ Vector<T> sums[kMergeWarps][32];
  const int64_t tile = thread_index() / 32;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (tile >= r.tiles.count || r.state[kStatus] != 0) return;
  const int64_t image = r.tiles.by_image(tile), in_image = tile - image * r.tiles.per_image;
  const uint64_t heads = r.heads[tile];
  if (heads == 0 || !r.continues(tile, in_image)) return;
  const int64_t v = r.base[tile] + count_bits(heads);
  // base[t] is the vertex before tile t: v goes on until the last tile with base v.
  int64_t low = tile + 1, high = (image + 1) * r.tiles.per_image;
  while (low < high) {  // the first tile with another base
    const int64_t middle = low + (high - low) / 2;
    if (r.base[middle] == v)
      low = middle + 1;
    else
      high = middle;
  }
  const int64_t end = r.heads[low - 1] & 1 ? low - 1 : low;
  const int groups = r.vectors < 32 ? 32 / r.vectors : 1, group = lane / r.vectors;
  const int each = groups > 1 ? r.vectors : 32;
  for (int first = 0; first < r.vectors; first += each) {
    const int vector = first + (groups > 1 ? lane - group * r.vectors : lane);
    const bool works = (groups == 1 || group < groups) && vector < r.vectors;
    const T* column = partial + vector * kLanes<T>;
    Vector<T> sum = {};
    if (works) {
      if (groups == 1 || group == 0) {
        sum = load_vector(column + (r.tiles.count + tile) * r.row);
      }
#pragma unroll 4
      for (int64_t t = tile + 1 + (groups > 1 ? group : 0); t < end; t += groups) {
        add_times(sum, T(1), load_vector(column + t * r.row));
      }
    }
    if (groups > 1) {
      sums[warp][lane] = sum;
      __syncwarp();
      if (works && group == 0) {
        for (int g = 1; g < groups; ++g) {
          add_times(sum, T(1), sums[warp][g * r.vectors + lane]);
        }
      }
    }
    if (works && (groups == 1 || group == 0)) {
      store(table + v * r.row + vector * kLanes<T>, sum);
    }
  }
}

// out[v] = in[v] + (in[before] + in[after]) / 2: one vertex and one vector of labels.
template <typename T>
__global__ void blur_kernel(int64_t capacity, int vectors, int row, Divider by_vectors,
                            const int64_t* __restrict__ state,       // [kFinite + B]
                            const int32_t* __restrict__ neighbours,  // [2, capacity]
                            const T* __restrict__ in,                // [capacity, row]
                            T* __restrict__ out) {                   // [capacity, row]
  const int64_t v = by_vectors(thread_index());
  if (state[kStatus] != 0 || v >= state[kVertices]) return;
  const int64_t column = (thread_index() - v * vectors) * kLanes<T>;
  const int64_t before = neighbours[v], after = neighbours[capacity + v];
  Vector<T> around = {}, other = {};
  if (before >= 0) around = load_vector(in + before * row + column);
  if (after >= 0) other = load_vector(in + after * row + column);
  Vector<T> sum = load_vector(in + v * row + column);
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) sum.at[i] += (around.at[i] + other.at[i]) * T(0.5);
  store(out + v * row + column, sum);
}

}  // namespace

int lattice_deliver_cuda(const LatticeSize& s, int64_t capacity, int row, bool reverse,
                         const int64_t* state, const uint64_t* heads, const int32_t* base,
                         const int32_t* pixel, const void* list_weight, const void* scale,
                         const int32_t* neighbours, const void* values, void* partial, void* tables,
                         CUstream_st* stream) {
  if (lattice_entries(s) == 0) return cudaSuccess;
  return for_real(s.dtype, [&](auto real) {
    using T = decltype(real);
    const int vectors = row / kLanes<T>, corners = s.dims + 1;
    const Rows r{Tiles(s), vectors, row, capacity, state, heads, base};
    const Divider by_vectors(vectors);
    T* table = static_cast<T*>(tables);
    int error =
        launch(splat_kernel<T>, blocks_for(r.tiles.count * vectors, kBlock), kBlock, 0, stream, r,
               by_vectors, pixel, static_cast<const T*>(list_weight), static_cast<const T*>(scale),
               static_cast<const T*>(values), static_cast<T*>(partial), table);
    if (error != cudaSuccess) return error;
    error = launch(merge_kernel<T>, blocks_for(r.tiles.count * 32, kBlock), kBlock, 0, stream, r,
                   static_cast<const T*>(partial), table);
    for (int k = 0; k < corners && error == cudaSuccess; ++k) {
      const int64_t axis = reverse ? corners - 1 - k : k;
      error = launch(blur_kernel<T>, blocks_for(capacity * vectors, kBlock), kBlock, 0, stream,
                     capacity, vectors, row, by_vectors, state, neighbours + 2 * axis * capacity,
                     static_cast<const T*>(table) + (k % 2) * capacity * row,
                     table + ((k + 1) % 2) * capacity * row);
    }
    return error;
  });
}

}  // namespace segfast
