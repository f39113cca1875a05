// Keys of lattice vertices and the hash table that numbers them.
#pragma once

#include "dense_crf.h"
#include "simd.h"

namespace segfast {
namespace SEGFAST_ISA {
namespace {

constexpr int kMaxWords = kMaxFeatures;

SEGFAST_INLINE uint64_t hash_key(const uint64_t* key, int words) {
  uint64_t h = key[0] * 0x9e3779b97f4a7c15ull;
  for (int w = 1; w < words; ++w) h = ((h ^ (h >> 29)) + key[w]) * 0xbf58476d1ce4e5b9ull;
  return h ^ (h >> 32);
}

SEGFAST_INLINE bool same_key(const uint64_t* a, const uint64_t* b, int words) {
  for (int w = 0; w < words; ++w) {
    if (a[w] != b[w]) return false;
  }
  return true;
}

// The slot that holds the key, or the empty one where it belongs.
SEGFAST_INLINE int64_t find_slot(const VertexTable& table, const uint64_t* key, int words) {
  const int64_t mask = table.capacity - 1;
  int64_t slot = static_cast<int64_t>(hash_key(key, words)) & mask;
  while (table.slots[slot] >= 0 &&
         !same_key(table.keys + int64_t{table.slots[slot]} * words, key, words)) {
    slot = (slot + 1) & mask;
  }
  return slot;
}

// The number of the key, which is inserted if new; the table must have room.
SEGFAST_INLINE int32_t find_or_insert(VertexTable* table, const uint64_t* key, int words) {
  const int64_t slot = find_slot(*table, key, words);
  if (table->slots[slot] < 0) {
    for (int w = 0; w < words; ++w) table->keys[table->count * words + w] = key[w];
    table->slots[slot] = static_cast<int32_t>(table->count++);
  }
  return table->slots[slot];
}

}  // namespace
}  // namespace SEGFAST_ISA
}  // namespace segfast
