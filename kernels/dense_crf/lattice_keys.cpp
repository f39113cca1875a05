#include "lattice_keys.h"

#include <cmath>

namespace segfast {

using namespace SEGFAST_ISA;

template <typename T>
T lattice_scale(int dims, int i) {
  const double step = static_cast<T>(std::sqrt(2.0 / 3.0) * (dims + 1));
  return static_cast<T>(step * (1 / std::sqrt((i + 1.0) * (i + 2.0))));
}
template float lattice_scale<float>(int dims, int i);
template double lattice_scale<double>(int dims, int i);

int64_t band_count(int64_t pixels, int64_t width) {
  constexpr int64_t kMostBands = 16, kLeastPixels = 8192;
  const int64_t lines = (pixels + width - 1) / width;
  int64_t bands = pixels / kLeastPixels;
  if (bands > kMostBands) bands = kMostBands;
  if (bands > lines) bands = lines;
  return bands < 1 ? 1 : bands;
}

int64_t band_begin(int64_t band, int64_t pixels, int64_t width) {
  const int64_t lines = (pixels + width - 1) / width;
  const int64_t first = lines * band / band_count(pixels, width) * width;
  return first < pixels ? first : pixels;
}

bool plan_keys(const double* low, const double* high, int dims, double limit, KeyLayout* layout) {
  layout->dims = dims;
  layout->words = 1;
  int used = 0;  // bits of the current word
  for (int j = 0; j < dims; ++j) {
    // e_j = sum_{k > j} c_k - j c_j by interval arithmetic, c_k = f_{k-1} scale_{k-1}
    double e_low = 0, e_high = 0;
    for (int k = j < 1 ? 1 : j; k <= dims; ++k) {
      const double factor = lattice_scale<double>(dims, k - 1) * (k == j ? -j : 1);
      const double a = low[k - 1] * factor, b = high[k - 1] * factor;
      e_low += std::fmin(a, b);
      e_high += std::fmax(a, b);
    }
    if (!(e_low > -limit && e_high < limit)) return false;
    // Rounding moves a coordinate by up to d + 1, a neighbour's is d further.
    const int margin = 3 * (dims + 1);
    const int64_t first = static_cast<int64_t>(std::floor(e_low)) - margin;
    const int64_t last = static_cast<int64_t>(std::ceil(e_high)) + margin;
    int bits = 1;
    while ((last - first) >> bits) ++bits;
    if (used + bits > 64) {
      ++layout->words;
      used = 0;
    }
    layout->origin[j] = first;
    layout->word[j] = layout->words - 1;
    layout->shift[j] = used;
    used += bits;
  }
  return true;
}

void rehash(VertexTable* table, int words) {
  for (int64_t i = 0; i < table->capacity; ++i) table->slots[i] = -1;
  for (int64_t v = 0; v < table->count; ++v) {
    table->slots[find_slot(*table, table->keys + v * words, words)] = static_cast<int32_t>(v);
  }
}

void merge_vertices(const uint64_t* keys, int64_t count, int words, VertexTable* table,
                    int32_t* global) {
  for (int64_t i = 0; i < count; ++i) global[i] = find_or_insert(table, keys + i * words, words);
}

}  // namespace segfast
