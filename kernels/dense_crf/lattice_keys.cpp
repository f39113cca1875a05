#include "lattice_keys.h"

namespace segfast {

using namespace SEGFAST_ISA;

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
  WordPacker packer{64};
  for (int j = 0; j < dims; ++j) {
    const CoordinateRange range = coordinate_range(low, high, dims, j);
    if (!(range.low > -limit && range.high < limit)) return false;
    const CoordinateBits field = coordinate_bits(range, dims);
    layout->origin[j] = field.origin;
    packer.put(field.bits, &layout->word[j], &layout->shift[j]);
  }
  layout->dims = dims;
  layout->words = packer.words;
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
