// From sorted keys to the lattice: vertices in the order of their keys, the entries of each, and
// its neighbours.
#include "dense_crf.cuh"

namespace segfast {
namespace {

// One warp for each tile: lane j looks at entries j and j + 32.
__global__ void heads_kernel(Tiles tiles, int words, int64_t total,
                             const int64_t* __restrict__ keys,  // [words, M]
                             uint64_t* __restrict__ heads) {    // [tiles]
  const int64_t tile = thread_index() / 32;
  if (tile >= tiles.count) return;
  const int64_t image = tiles.by_image(tile);
  const int64_t start = (tile - image * tiles.per_image) * kEntryTile;
  uint64_t mask = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t in_image = start + half * 32 + threadIdx.x % 32;
    bool head = in_image == 0;
    if (in_image > 0 && in_image < tiles.entries) {
      const int64_t i = image * tiles.entries + in_image;
      for (int w = 0; w < words; ++w) head |= keys[w * total + i] != keys[w * total + i - 1];
    }
    mask |= static_cast<uint64_t>(__ballot_sync(kAllLanes, head)) << half * 32;
  }
  if (threadIdx.x % 32 == 0) heads[tile] = mask;
}

constexpr int kScanThreads = 1024;

// One block: base[tile] = heads in the tiles before, less 1.
__global__ void scan_kernel(int64_t count, int64_t capacity,
                            const uint64_t* __restrict__ heads,  // [tiles]
                            int32_t* __restrict__ base,          // [tiles]
                            int64_t* __restrict__ state) {       // [kFinite + B]
  __shared__ int64_t of_warp[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t each = ceil_div(count, kScanThreads), first = threadIdx.x * each;
  const int64_t end = first + each < count ? first + each : count;
  int64_t sum = 0;
  for (int64_t i = first; i < end; ++i) sum += count_bits(heads[i]);
  int64_t before = sum;  // inclusive scan
  for (int step = 1; step < 32; step *= 2) {
    const int64_t left = __shfl_up_sync(kAllLanes, before, step);
    if (lane >= step) before += left;
  }
  if (lane == 31) of_warp[warp] = before;
  __syncthreads();
  int64_t earlier = 0;
  for (int w = 0; w < warp; ++w) earlier += of_warp[w];
  before += earlier - sum;
  if (threadIdx.x == kScanThreads - 1) {
    state[kVertices] = before + sum;
    if (capacity > 0 && before + sum > capacity) state[kStatus] |= kFull;
  }
  for (int64_t i = first; i < end; ++i) {
    base[i] = static_cast<int32_t>(before - 1);
    before += count_bits(heads[i]);
  }
}

// One entry, in the order of the keys; also clears what neighbours_kernel fills by its mirror.
template <typename T>
__global__ void lists_kernel(Tiles tiles, int64_t total, int corners, int words, int64_t capacity,
                             Divider by_entries, Divider by_corners,
                             const int64_t* __restrict__ keys,    // [words, M]
                             const int64_t* __restrict__ order,   // [M]
                             const uint64_t* __restrict__ heads,  // [tiles]
                             const int32_t* __restrict__ base,    // [tiles]
                             const T* __restrict__ weight,        // [B N, K]
                             const int64_t* __restrict__ state,   // [kFinite + B]
                             int64_t* __restrict__ vertex_keys,   // [words, capacity]
                             int32_t* __restrict__ vertex,        // [B N, K]
                             int32_t* __restrict__ pixel,         // [M]
                             T* __restrict__ list_weight,         // [M]
                             int32_t* __restrict__ neighbours) {  // [K, 2, capacity]
  const int64_t i = thread_index();
  if (i >= total || state[kStatus] != 0) return;
  const int64_t image = by_entries(i), in_image = i - image * tiles.entries;
  const int64_t tile = image * tiles.per_image + in_image / kEntryTile;
  const int j = static_cast<int>(in_image % kEntryTile);
  const uint64_t mask = heads[tile];
  const int32_t v = base[tile] + count_bits(mask << (kEntryTile - 1 - j));
  const int64_t entry = order[i];
  vertex[entry] = v;
  pixel[i] = static_cast<int32_t>(by_corners(entry));
  list_weight[i] = weight[entry];
  if ((mask >> j & 1) && v < capacity) {
    for (int w = 0; w < words; ++w) vertex_keys[w * capacity + v] = keys[w * total + i];
  }
  if (i < capacity) {
    for (int k = 0; k < corners; ++k) neighbours[(2 * k + 1) * capacity + i] = -1;
  }
}

// ----------------------------------------------------------------------------------- neighbours

// The key one step before `of` along an axis: 1 less everywhere, d + 1 more there.
struct Step {
  const KeyPlan* plan;
  int axis;

  __device__ int64_t operator()(int64_t key, int w) const {
    const KeyLayout& layout = plan->layout;
    uint64_t to = static_cast<uint64_t>(key);
    for (int i = 0; i < layout.dims; ++i) {
      if (layout.word[i] == w) to -= uint64_t{1} << layout.shift[i];
    }
    if (axis < layout.dims && layout.word[axis] == w) {
      to += uint64_t(layout.dims + 1) << layout.shift[axis];
    }
    return static_cast<int64_t>(to);
  }
};

// One vertex and axis. The vertex before is looked up; that one's vertex after is this one.
__global__ void neighbours_kernel(int words, int corners, int64_t capacity, Divider by_capacity,
                                  const KeyPlan* __restrict__ plan,
                                  const int64_t* __restrict__ state,   // [kFinite + B]
                                  const int64_t* __restrict__ keys,    // [words, capacity], sorted
                                  int32_t* __restrict__ neighbours) {  // [K, 2, capacity]
  const int64_t thread = thread_index();
  if (thread >= corners * capacity || state[kStatus] != 0) return;
  const int64_t axis = by_capacity(thread), v = thread - axis * capacity;
  const int64_t vertices = state[kVertices];
  if (v >= vertices) return;
  const Step step{plan, static_cast<int>(axis)};
  int64_t low = 0, high = vertices;  // the first key that is not below lies in [low, high]
  bool found = false;
  const int64_t wanted = step(keys[(words - 1) * capacity + v], words - 1);
  while (low < high && !found) {
    const int64_t middle = low + (high - low) / 2;
    int64_t key = keys[(words - 1) * capacity + middle], target = wanted;
    for (int w = words - 2; w >= 0 && key == target; --w) {
      key = keys[w * capacity + middle];
      target = step(keys[w * capacity + v], w);
    }
    found = key == target;
    if (found || key > target) high = middle;
    if (!found && key < target) low = middle + 1;
  }
  neighbours[2 * axis * capacity + v] = found ? static_cast<int32_t>(high) : -1;
  if (found) neighbours[(2 * axis + 1) * capacity + high] = static_cast<int32_t>(v);
}

}  // namespace

int lattice_number_cuda(const LatticeSize& s, int64_t capacity, const int64_t* keys,
                        uint64_t* heads, int32_t* base, int64_t* state, CUstream_st* stream) {
  const Tiles tiles(s);
  const int error = launch(heads_kernel, blocks_for(tiles.count * 32, kBlock), kBlock, 0, stream,
                           tiles, s.words, lattice_entries(s), keys, heads);
  if (error != cudaSuccess) return error;
  return launch(scan_kernel, {1}, kScanThreads, 0, stream, tiles.count, capacity, heads, base,
                state);
}

int lattice_link_cuda(const LatticeSize& s, int64_t capacity, const int64_t* keys,
                      const int64_t* order, const uint64_t* heads, const int32_t* base,
                      const void* weight, const KeyPlan* plan, const int64_t* state,
                      int64_t* vertex_keys, int32_t* vertex, int32_t* pixel, void* list_weight,
                      int32_t* neighbours, CUstream_st* stream) {
  const int64_t total = lattice_entries(s);
  if (total == 0) return cudaSuccess;
  if (capacity < 1 || capacity > total) return cudaErrorInvalidValue;
  const Tiles tiles(s);
  const int corners = s.dims + 1;
  const int error = for_real(s.dtype, [&](auto real) {
    using T = decltype(real);
    return launch(lists_kernel<T>, blocks_for(total, kBlock), kBlock, 0, stream, tiles, total,
                  corners, s.words, capacity, Divider(tiles.entries), Divider(corners), keys, order,
                  heads, base, static_cast<const T*>(weight), state, vertex_keys, vertex, pixel,
                  static_cast<T*>(list_weight), neighbours);
  });
  if (error != cudaSuccess) return error;
  return launch(neighbours_kernel, blocks_for(corners * capacity, kBlock), kBlock, 0, stream,
                s.words, corners, capacity, Divider(capacity), plan, state, vertex_keys,
                neighbours);
}

}  // namespace segfast
