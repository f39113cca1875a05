// One mean-field update and one step back, fused: slice, mixing, unary, softmax.
#include "dense_crf.cuh"

namespace segfast {
namespace {

// Blocks of pixels; `group` lanes of a warp share the labels of one. Labels come and go in
// [L, N], so that neighbouring threads touch neighbouring pixels, through rows in shared memory.
struct Blocks {
  UpdateSize size;
  int group, pixels, pitch, threads;  // pixels: of a block; pitch: of a row in shared memory
  bool mixes;                         // a matrix wants a second row
  int64_t per_image;
  Divider by_image;

  Blocks(const UpdateSize& s, int lanes, bool mixes)
      : size(s), group(1), pitch(s.row + lanes), threads(kBlock), mixes(mixes), by_image(1) {
    while (group < 32 && s.row / lanes > 4 * group) group *= 2;
    if (bytes(lanes) > kSharedWithoutAsking) threads = 32;
    pixels = threads / group;
    per_image = ceil_div(s.pixels, pixels);
    by_image = Divider(per_image > 0 ? per_image : 1);
  }
  size_t bytes(int lanes) const {
    return size_t(threads / group) * pitch * (mixes ? 2 : 1) * (kUnit / lanes);
  }
};

template <typename T>
class Pixels {
 public:
  const Blocks& blocks;
  int64_t image, first;  // of the block
  int lane, here;        // here: of this group, in the block
  int64_t point;         // of this group, among all; the last of the image where it has none
  bool exists;
  T *row, *message;  // of this group, in shared memory

  __device__ explicit Pixels(const Blocks& b) : blocks(b) {
    image = b.by_image(blockIdx.x);
    first = (blockIdx.x - image * b.per_image) * b.pixels;
    lane = threadIdx.x % b.group;
    here = threadIdx.x / b.group;
    exists = first + here < b.size.pixels;
    point = image * b.size.pixels + (exists ? first + here : b.size.pixels - 1);
    row = dynamic_shared<T>() + here * b.pitch;
    message = row + b.pixels * b.pitch;
  }

  // f(shared element, its place in [B, L, N]) for the labels of the block's pixels.
  template <typename F>
  __device__ void for_labels(const F& f) const {
    T* rows = dynamic_shared<T>();
    const UpdateSize& s = blocks.size;
    for (int i = threadIdx.x; i < s.labels * blocks.pixels; i += blocks.threads) {
      const int l = i / blocks.pixels, p = i % blocks.pixels;
      if (first + p >= s.pixels) continue;
      f(rows[p * blocks.pitch + l], (image * s.labels + l) * s.pixels + first + p);
    }
  }
  // f(label) for the vectors of labels that are this lane's.
  template <typename F>
  __device__ void for_vectors(const F& f) const {
    for (int l = lane * kLanes<T>; l < blocks.size.row; l += blocks.group * kLanes<T>) f(l);
  }
  __device__ void clear() const {
    for_vectors([&](int l) { store(row + l, Vector<T>{}); });
    __syncthreads();
  }
  __device__ T sum(T v) const {
    for (int step = blocks.group / 2; step > 0; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
    return v;
  }

  // row += sum_m M_m message_m
  __device__ void receive(const MessageTerm* terms, int count) const {
    for (int t = 0; t < count; ++t) {
      const MessageTerm& term = terms[t];
      const T* mixing = static_cast<const T*>(term.mixing);
      if (is_undefined(term)) {
        for_vectors([&](int l) {
          const Vector<T> nan = filled(static_cast<T>(NAN));
          store(row + l, nan);
          keep(term, l, nan);
        });
        continue;
      }
      if (term.kind != MixingKind::matrix) {
        for_vectors([&](int l) {
          const Vector<T> y = slice(term, l);
          Vector<T> s = load_vector(row + l);
#pragma unroll
          for (int i = 0; i < kLanes<T>; ++i) {
            s.at[i] += y.at[i] * mixing[term.kind == MixingKind::scalar ? 0 : l + i];
          }
          store(row + l, s);
        });
        continue;
      }
      for_vectors([&](int l) { store(message + l, slice(term, l)); });
      __syncwarp();
      for_vectors([&](int l) {
        Vector<T> s = load_vector(row + l);
        for (int k = 0; k < blocks.size.labels; ++k) {
          add_times(s, message[k], load_vector(mixing + int64_t{k} * blocks.size.row + l));
        }
        store(row + l, s);
      });
      __syncwarp();
    }
  }

 private:
  static __device__ Vector<T> filled(T value) {
    Vector<T> v;
#pragma unroll
    for (int i = 0; i < kLanes<T>; ++i) v.at[i] = value;
    return v;
  }
  __device__ void keep(const MessageTerm& term, int l, const Vector<T>& y) const {
    if (term.kept == nullptr || !exists) return;
    store(static_cast<T*>(term.kept) + point * blocks.size.row + l, y);
  }
  __device__ bool is_undefined(const MessageTerm& term) const {
    return term.state != nullptr && (term.state[kStatus] != 0 || !term.state[kFinite + image]);
  }
  __device__ Vector<T> slice(const MessageTerm& term, int l) const {
    const T* rows = static_cast<const T*>(term.rows);
    Vector<T> y = {};
    if (term.corners == 0) {
      y = load_vector(rows + point * blocks.size.row + l);
    } else {
      const int32_t* vertex = term.vertex + point * term.corners;
      const T* weight = static_cast<const T*>(term.weight) + point * term.corners;
#pragma unroll 6
      for (int k = 0; k < term.corners; ++k) {
        add_times(y, weight[k], load_vector(rows + int64_t{vertex[k]} * blocks.size.row + l));
      }
    }
    T scale = static_cast<T>(term.gain);
    if (term.scale != nullptr) scale *= static_cast<const T*>(term.scale)[point];
#pragma unroll
    for (int i = 0; i < kLanes<T>; ++i) y.at[i] *= scale;
    keep(term, l, y);
    return y;
  }
};

template <typename T>
__global__ void update_kernel(const __grid_constant__ BatchUpdate u, Blocks blocks) {
  const Pixels<T> p(blocks);
  const int labels = u.size.labels;
  p.clear();
  if (u.logits != nullptr) {
    const T* logits = static_cast<const T*>(u.logits);
    p.for_labels([&](T& here, int64_t at) { here = logits[at]; });
    __syncthreads();
  }
  p.receive(u.term, u.terms);
  if (u.scores != nullptr) {
    __syncthreads();
    T* scores = static_cast<T*>(u.scores);
    p.for_labels([&](T& here, int64_t at) { scores[at] = here; });
    __syncthreads();
  }
  if (u.result == nullptr && u.belief == nullptr) return;
  if (u.normalize) {
    T top = -static_cast<T>(INFINITY), sum = 0;
    p.for_vectors([&](int l) {
      for (int i = l; i < l + kLanes<T> && i < labels; ++i) top = p.row[i] > top ? p.row[i] : top;
    });
    for (int step = blocks.group / 2; step > 0; step /= 2) {
      const T other = __shfl_xor_sync(kAllLanes, top, step);
      top = other > top ? other : top;
    }
    p.for_vectors([&](int l) {
      for (int i = l; i < l + kLanes<T> && i < labels; ++i) sum += p.row[i] = exp(p.row[i] - top);
    });
    const T inverse = T(1) / p.sum(sum);
    p.for_vectors([&](int l) {
      for (int i = l; i < l + kLanes<T>; ++i) p.row[i] = i < labels ? p.row[i] * inverse : T(0);
    });
  }
  if (u.belief != nullptr && p.exists) {
    T* belief = static_cast<T*>(u.belief) + p.point * u.size.row;
    p.for_vectors([&](int l) { store(belief + l, load_vector(p.row + l)); });
  }
  if (u.result != nullptr) {
    __syncthreads();
    T* result = static_cast<T*>(u.result);
    p.for_labels([&](T& here, int64_t at) { result[at] = here; });
  }
}

template <typename T>
__global__ void update_backward_kernel(const __grid_constant__ BatchUpdateBackward r,
                                       Blocks blocks) {
  const Pixels<T> p(blocks);
  p.clear();
  if (r.belief != nullptr) {
    p.receive(r.term, r.terms);
    const T* belief = static_cast<const T*>(r.belief) + p.point * r.size.row;
    T dot = 0;
    p.for_vectors([&](int l) {
      const Vector<T> q = load_vector(belief + l);
      for (int i = 0; i < kLanes<T> && l + i < r.size.labels; ++i) dot += q.at[i] * p.row[l + i];
    });
    dot = p.sum(dot);
    p.for_vectors([&](int l) {
      const Vector<T> q = load_vector(belief + l);
      for (int i = 0; i < kLanes<T>; ++i) {
        p.row[l + i] = l + i < r.size.labels ? q.at[i] * (p.row[l + i] - dot) : T(0);
      }
    });
    __syncthreads();
  }
  const T* upstream = static_cast<const T*>(r.upstream);
  T* total = static_cast<T*>(r.total);
  p.for_labels([&](T& here, int64_t at) {
    if (upstream != nullptr) here += upstream[at];
    total[at] += here;
  });
  __syncthreads();
  if (!p.exists) return;
  T* gradient = static_cast<T*>(r.gradient) + p.point * r.size.row;
  p.for_vectors([&](int l) { store(gradient + l, load_vector(p.row + l)); });
}

template <typename T, typename Problem>
int run(void (*kernel)(Problem, Blocks), const Problem& problem, CUstream_st* stream) {
  if (problem.size.images * problem.size.pixels == 0) return cudaSuccess;
  if (problem.size.labels > max_labels(problem.size.dtype) || problem.terms > kMaxTerms)
    return cudaErrorInvalidValue;
  bool mixes = false;
  for (int t = 0; t < problem.terms; ++t) mixes |= problem.term[t].kind == MixingKind::matrix;
  const Blocks blocks(problem.size, kLanes<T>, mixes);
  return launch(kernel, {problem.size.images * blocks.per_image}, blocks.threads,
                blocks.bytes(kLanes<T>), stream, problem, blocks);
}

}  // namespace

int mean_field_update_cuda(const BatchUpdate& update, CUstream_st* stream) {
  return for_real(update.size.dtype, [&](auto real) {
    return run<decltype(real)>(update_kernel<decltype(real)>, update, stream);
  });
}

int mean_field_update_backward_cuda(const BatchUpdateBackward& update, CUstream_st* stream) {
  return for_real(update.size.dtype, [&](auto real) {
    return run<decltype(real)>(update_backward_kernel<decltype(real)>, update, stream);
  });
}

}  // namespace segfast
