// segfast::_crf_*: the kernels of the dense CRF on CUDA, as segfast/ops/_dense_crf_lattice_cuda.py
// calls them. Sizes are checked here, since kernels trust them; an empty tensor stands for none.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "csrc/check.h"
#include "csrc/cuda/stream.h"
#include "kernels/dense_crf/dense_crf_cuda.h"

namespace segfast {
namespace {

// Tensors of one call: contiguous, on one device; T stands for the dtype of the first.
class Call {
 public:
  explicit Call(const Tensor& first, ScalarType scalar)
      : first_(first), scalar_(scalar), launch_(first) {
    STD_TORCH_CHECK(scalar == ScalarType::Float || scalar == ScalarType::Double,
                    "tensors must be float32 or float64");
  }
  explicit Call(const Tensor& first) : Call(first, first.scalar_type()) {}

  Dtype dtype() const { return dtype_of(scalar_, "tensors"); }
  ScalarType real() const { return scalar_; }
  CUstream_st* stream() const { return launch_.stream(); }
  int row(int64_t labels) const {
    const int64_t lanes = scalar_ == ScalarType::Float ? 4 : 2;
    return static_cast<int>((labels + lanes - 1) / lanes * lanes);
  }

  void check(const Tensor& t, ScalarType dtype, int64_t numel, const char* name) const {
    STD_TORCH_CHECK(t.get_device_index() == first_.get_device_index() && t.is_contiguous(), name,
                    " must be contiguous and on the device of the others");
    check_dtype(t, dtype, name);
    STD_TORCH_CHECK(t.numel() == numel, name, " must have ", numel, " elements, got ", t.numel());
  }
  // Of T.
  const void* read(const Tensor& t, int64_t numel, const char* name) const {
    check(t, scalar_, numel, name);
    return t.const_data_ptr();
  }
  void* write(const Tensor& t, int64_t numel, const char* name) const {
    check(t, scalar_, numel, name);
    return t.mutable_data_ptr();
  }
  // Null where there is none.
  const void* read_if(const Tensor& t, int64_t numel, const char* name) const {
    return t.numel() == 0 ? nullptr : read(t, numel, name);
  }
  void* write_if(const Tensor& t, int64_t numel, const char* name) const {
    return t.numel() == 0 ? nullptr : write(t, numel, name);
  }
  template <typename I>
  const I* integers(const Tensor& t, int64_t numel, const char* name) const {
    check(t, sizeof(I) == 4 ? ScalarType::Int : ScalarType::Long, numel, name);
    return data<I>(t);
  }

  Tensor make(std::vector<int64_t> size, ScalarType dtype) const {
    return torch::stable::new_empty(first_, size, dtype);
  }

 private:
  const Tensor& first_;
  ScalarType scalar_;
  Launch launch_;
};

void check_dims(const Tensor& t, int64_t dims, const char* name) {
  STD_TORCH_CHECK(t.dim() == dims, name, " must have ", dims, " dimensions, got ", t.dim());
}

LatticeSize make_size(int64_t images, int64_t pixels, int64_t dims, int64_t words, Dtype dtype) {
  STD_TORCH_CHECK(images > 0 && pixels > 0 && dims >= 1 && dims <= kMaxFeatures && words >= 1 &&
                      words <= kMaxFeatures + 1,
                  "a lattice needs images, pixels and 1 to ", kMaxFeatures, " features");
  STD_TORCH_CHECK(images * pixels < (int64_t{1} << 31) / (dims + 1),
                  "a lattice must have fewer than 2^31 entries");
  return {images, pixels, static_cast<int>(dims), static_cast<int>(words), dtype};
}

// The images of a lattice, from its state.
int64_t images_of(const Tensor& state) { return state.numel() - kFinite; }

// ------------------------------------------------------------------------------------- building

Tensor features(const Tensor& image, std::vector<double> sigma) {
  check_dims(image, 4, "image");
  const Call call(image);
  FeatureSize s{image.size(0), image.size(2), image.size(3), 0, call.dtype(), {}};
  const int64_t dims = image.size(1) + 2;
  STD_TORCH_CHECK(dims <= kMaxFeatures && static_cast<int64_t>(sigma.size()) == dims,
                  "there must be a deviation for each of at most ", kMaxFeatures, " features");
  s.channels = static_cast<int>(image.size(1));
  for (int64_t i = 0; i < dims; ++i) s.sigma[i] = sigma[i];
  Tensor out = call.make({s.images, dims, s.height * s.width}, call.real());
  check_cuda(lattice_features_cuda(s, call.read(image, image.numel(), "image"),
                                   out.mutable_data_ptr(), call.stream()));
  return out;
}

// features [B, d, N] -> keys [words, M], weight [B N, K], plan, state
std::vector<Tensor> embed(const Tensor& features, int64_t words) {
  check_dims(features, 3, "features");
  const Call call(features);
  const LatticeSize s =
      make_size(features.size(0), features.size(2), features.size(1), words, call.dtype());
  const void* from = call.read(features, features.numel(), "features");
  Tensor ranges = call.make({range_scalars(s)}, call.real());
  Tensor plan = call.make({int64_t{sizeof(KeyPlan)}}, ScalarType::Byte);
  Tensor state = call.make({kFinite + s.images}, ScalarType::Long);
  Tensor keys = call.make({words, lattice_entries(s)}, ScalarType::Long);
  Tensor weight = call.make({lattice_points(s), s.dims + 1}, call.real());
  auto* layout = static_cast<KeyPlan*>(plan.mutable_data_ptr());
  check_cuda(lattice_plan_cuda(s, from, ranges.mutable_data_ptr(), layout,
                               mutable_data<int64_t>(state), call.stream()));
  check_cuda(lattice_embed_cuda(s, from, layout, data<int64_t>(state), mutable_data<int64_t>(keys),
                                weight.mutable_data_ptr(), call.stream()));
  return {keys, weight, plan, state};
}

// sorted keys [words, M] -> heads, base [tiles]; completes the state
std::vector<Tensor> number(const Tensor& keys, const Tensor& state, int64_t dims,
                           int64_t capacity) {
  check_dims(keys, 2, "keys");
  const Call call(keys, ScalarType::Float);  // any
  const int64_t images = images_of(state), points = keys.size(1) / (dims + 1);
  STD_TORCH_CHECK(images > 0 && points * (dims + 1) == keys.size(1) && points % images == 0,
                  "keys must be those of whole images");
  const LatticeSize s = make_size(images, points / images, dims, keys.size(0), Dtype::f32);
  const int64_t tiles = images * tiles_per_image(s);
  call.integers<int64_t>(state, kFinite + images, "state");
  Tensor heads = call.make({tiles}, ScalarType::Long);
  Tensor base = call.make({tiles}, ScalarType::Int);
  check_cuda(lattice_number_cuda(s, capacity, call.integers<int64_t>(keys, keys.numel(), "keys"),
                                 static_cast<uint64_t*>(heads.mutable_data_ptr()),
                                 mutable_data<int32_t>(base),
                                 static_cast<int64_t*>(state.mutable_data_ptr()), call.stream()));
  return {heads, base};
}

struct TileArrays {
  const uint64_t* heads;
  const int32_t* base;

  TileArrays(const Call& call, const LatticeSize& s, const Tensor& of_heads,
             const Tensor& of_base) {
    const int64_t count = s.images * tiles_per_image(s);
    heads = reinterpret_cast<const uint64_t*>(call.integers<int64_t>(of_heads, count, "heads"));
    base = call.integers<int32_t>(of_base, count, "base");
  }
};

// -> vertex [B N, K], pixel [M], list_weight [M], neighbours [K, 2, capacity]
std::vector<Tensor> link(const Tensor& keys, const Tensor& order, const std::vector<Tensor>& tiles,
                         const Tensor& weight, const Tensor& plan, const Tensor& state,
                         int64_t capacity) {
  check_dims(keys, 2, "keys");
  check_dims(weight, 2, "weight");
  STD_TORCH_CHECK(tiles.size() == 2 && images_of(state) > 0, "lattice tensors are malformed");
  const Call call(weight);
  const int64_t points = weight.size(0), corners = weight.size(1), images = images_of(state);
  STD_TORCH_CHECK(points % images == 0, "weight must be that of whole images");
  const LatticeSize s = make_size(images, points / images, corners - 1, keys.size(0), call.dtype());
  const int64_t entries = lattice_entries(s);
  STD_TORCH_CHECK(capacity >= 1 && capacity <= entries, "capacity must be 1 to ", entries, ", got ",
                  capacity);
  const TileArrays of(call, s, tiles[0], tiles[1]);
  call.check(plan, ScalarType::Byte, sizeof(KeyPlan), "plan");
  Tensor vertex_keys = call.make({keys.size(0), capacity}, ScalarType::Long);
  Tensor vertex = call.make({points, corners}, ScalarType::Int);
  Tensor pixel = call.make({entries}, ScalarType::Int);
  Tensor list_weight = call.make({entries}, call.real());
  Tensor neighbours = call.make({corners, 2, capacity}, ScalarType::Int);
  check_cuda(lattice_link_cuda(
      s, capacity, call.integers<int64_t>(keys, keys.size(0) * entries, "keys"),
      call.integers<int64_t>(order, entries, "order"), of.heads, of.base,
      call.read(weight, entries, "weight"), static_cast<const KeyPlan*>(plan.const_data_ptr()),
      call.integers<int64_t>(state, kFinite + images, "state"), mutable_data<int64_t>(vertex_keys),
      mutable_data<int32_t>(vertex), mutable_data<int32_t>(pixel), list_weight.mutable_data_ptr(),
      mutable_data<int32_t>(neighbours), call.stream()));
  return {vertex, pixel, list_weight, neighbours};
}

// ------------------------------------------------------------------------------------ filtering

// lattice: Lattice.tensors()
void deliver(const std::vector<Tensor>& lattice, const Tensor& scale, const Tensor& values,
             const Tensor& partial, const Tensor& tables, bool reverse) {
  STD_TORCH_CHECK(lattice.size() == 6, "lattice tensors are malformed");
  const Tensor &pixel = lattice[0], &list_weight = lattice[1], &neighbours = lattice[2];
  const Tensor& state = lattice[5];
  check_dims(values, 2, "values");
  check_dims(neighbours, 3, "neighbours");
  const Call call(values);
  const int64_t points = values.size(0), row = values.size(1), images = images_of(state);
  const int64_t corners = neighbours.size(0), capacity = neighbours.size(2);
  STD_TORCH_CHECK(images > 0 && points % images == 0 && row == call.row(row),
                  "values must be rows of whole 16 bytes, of whole images");
  const LatticeSize s = make_size(images, points / images, corners - 1, 1, call.dtype());
  const TileArrays of(call, s, lattice[3], lattice[4]);
  const int64_t entries = lattice_entries(s);
  check_cuda(lattice_deliver_cuda(
      s, capacity, static_cast<int>(row), reverse,
      call.integers<int64_t>(state, kFinite + images, "state"), of.heads, of.base,
      call.integers<int32_t>(pixel, entries, "pixel"),
      call.read(list_weight, entries, "list_weight"), call.read_if(scale, points, "scale"),
      call.integers<int32_t>(neighbours, 2 * corners * capacity, "neighbours"),
      call.read(values, points * row, "values"),
      call.write(partial, 2 * images * tiles_per_image(s) * row, "partial"),
      call.write(tables, 2 * capacity * row, "tables"), call.stream()));
}

// axes: taps, what multiplies before, and after, each for y and x; values [B H W, row];
// between, out [B, H, W, row]
void convolve(const std::vector<Tensor>& axes, const Tensor& values, const Tensor& between,
              const Tensor& out) {
  STD_TORCH_CHECK(axes.size() == 6, "there must be taps and two scales for each axis");
  check_dims(out, 4, "out");
  const Call call(values);
  const int64_t height = out.size(1), width = out.size(2), count = out.numel();
  const ConvSize s{out.size(0),
                   height,
                   width,
                   axes[0].numel() - 1,
                   axes[1].numel() - 1,
                   static_cast<int>(out.size(3)),
                   call.dtype()};
  STD_TORCH_CHECK(s.radius_y >= 0 && s.radius_x >= 0 && s.row == call.row(s.row),
                  "out must have rows of whole 16 bytes, and there must be taps");
  check_cuda(spatial_conv_cuda(
      s, call.read(axes[0], s.radius_y + 1, "taps"), call.read(axes[1], s.radius_x + 1, "taps"),
      call.read(axes[2], height, "before_y"), call.read(axes[3], width, "before_x"),
      call.read(axes[4], height, "after_y"), call.read(axes[5], width, "after_x"),
      call.read(values, count, "values"), call.write(between, count, "between"),
      call.write(out, count, "out"), call.stream()));
}

// ----------------------------------------------------------------------------------- mean field

// Tensors of a term, in the order in which _dense_crf_lattice_cuda.py lists them.
constexpr size_t kTermTensors = 7;

UpdateSize update_size(const Call& call, int64_t images, int64_t labels, int64_t pixels) {
  STD_TORCH_CHECK(labels >= 1 && labels <= max_labels(call.dtype()), "labels must be 1 to ",
                  max_labels(call.dtype()), ", got ", labels);
  return {images, pixels, static_cast<int>(labels), call.row(labels), call.dtype()};
}

int read_terms(const Call& call, const UpdateSize& s, const std::vector<Tensor>& tensors,
               const std::vector<double>& gains, MessageTerm* terms) {
  STD_TORCH_CHECK(tensors.size() == gains.size() * kTermTensors && gains.size() <= kMaxTerms,
                  "terms are malformed");
  const int64_t points = s.images * s.pixels;
  for (size_t i = 0; i < gains.size(); ++i) {
    const Tensor* t = &tensors[i * kTermTensors];
    const Tensor &vertex = t[0], &rows = t[3], &state = t[4], &mixing = t[5];
    MessageTerm& term = terms[i];
    term.gain = gains[i];
    if (vertex.numel() > 0) {
      check_dims(vertex, 2, "vertex");
      check_dims(rows, 2, "rows");
      STD_TORCH_CHECK(rows.size(1) == s.row, "tables must have rows of ", s.row);
      term.corners = static_cast<int>(vertex.size(1));
      term.vertex = call.integers<int32_t>(vertex, points * term.corners, "vertex");
      term.weight = call.read(t[1], points * term.corners, "weight");
      term.rows = call.read(rows, rows.numel(), "rows");
      term.state = call.integers<int64_t>(state, kFinite + s.images, "state");
    } else {
      term.rows = call.read(rows, points * s.row, "rows");
    }
    term.scale = call.read_if(t[2], points, "scale");
    const bool is_matrix = mixing.dim() == 2, is_scalar = mixing.numel() == 1;
    term.kind = is_matrix   ? MixingKind::matrix
                : is_scalar ? MixingKind::scalar
                            : MixingKind::vector;
    const int64_t columns = is_scalar && !is_matrix ? 1 : s.row;
    term.mixing = call.read(mixing, is_matrix ? s.labels * columns : columns, "mixing");
    term.kept = call.write_if(t[6], points * s.row, "kept");
  }
  return static_cast<int>(gains.size());
}

// logits, scores, result [B, L, N], belief [B N, row]; any may be none. size: B, L, N.
void update(const Tensor& logits, const Tensor& scores, const Tensor& result, const Tensor& belief,
            std::vector<int64_t> size, bool normalize, const std::vector<Tensor>& terms,
            std::vector<double> gains) {
  STD_TORCH_CHECK(size.size() == 3, "size must be B, L, N");
  const Call call(logits);
  BatchUpdate u{};
  u.size = update_size(call, size[0], size[1], size[2]);
  const int64_t points = size[0] * size[2], count = points * size[1];
  u.logits = call.read_if(logits, count, "logits");
  u.scores = call.write_if(scores, count, "scores");
  u.result = call.write_if(result, count, "result");
  u.belief = call.write_if(belief, points * u.size.row, "belief");
  u.normalize = normalize;
  u.terms = read_terms(call, u.size, terms, gains, u.term);
  check_cuda(mean_field_update_cuda(u, call.stream()));
}

// belief, gradient [B N, row], upstream, total [B, L, N]; belief and upstream may be none.
void update_backward(const Tensor& belief, const Tensor& upstream, const Tensor& gradient,
                     const Tensor& total, const std::vector<Tensor>& terms,
                     std::vector<double> gains) {
  check_dims(total, 3, "total");
  const Call call(total);
  BatchUpdateBackward r{};
  r.size = update_size(call, total.size(0), total.size(1), total.size(2));
  const int64_t points = total.size(0) * total.size(2);
  r.belief = call.read_if(belief, points * r.size.row, "belief");
  r.upstream = call.read_if(upstream, total.numel(), "upstream");
  r.gradient = call.write(gradient, points * r.size.row, "gradient");
  r.total = call.write(total, total.numel(), "total");
  r.terms = read_terms(call, r.size, terms, gains, r.term);
  check_cuda(mean_field_update_backward_cuda(r, call.stream()));
}

// a, b [B N, row]; partial [chunks, L, L], or [chunks, L]: the diagonal
void products(const Tensor& a, const Tensor& b, const Tensor& partial, int64_t labels) {
  check_dims(a, 2, "a");
  const Call call(a);
  const int64_t points = a.size(0), chunks = partial.dim() > 0 ? partial.size(0) : 0;
  STD_TORCH_CHECK(chunks >= 1, "partial must have a chunk");
  const ProductSize s{
      points, chunks, static_cast<int>(labels), call.row(labels), partial.dim() == 2, call.dtype()};
  STD_TORCH_CHECK(labels >= 1 && a.size(1) == s.row, "a must have rows for ", labels, " labels");
  check_cuda(mixing_gradient_cuda(
      s, call.read(a, points * s.row, "a"), call.read(b, points * s.row, "b"),
      call.write(partial, chunks * labels * (s.diagonal ? 1 : labels), "partial"), call.stream()));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segfast, CUDA, m) {
  m.impl("_crf_features", TORCH_BOX(&features));
  m.impl("_crf_embed", TORCH_BOX(&embed));
  m.impl("_crf_number", TORCH_BOX(&number));
  m.impl("_crf_link", TORCH_BOX(&link));
  m.impl("_crf_deliver", TORCH_BOX(&deliver));
  m.impl("_crf_convolve", TORCH_BOX(&convolve));
  m.impl("_crf_update", TORCH_BOX(&update));
  m.impl("_crf_update_backward", TORCH_BOX(&update_backward));
  m.impl("_crf_products", TORCH_BOX(&products));
}

}  // namespace segfast
