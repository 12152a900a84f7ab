// What the linear layers in 16 and in 8 bits share: weights in panels of 16 outputs, and AMX tiles.
//
// A panel holds, for each group of neighbouring inputs, the 16 outputs beside each other: [out / 16][in / GROUP][16][GROUP].
// With groups of 4 bytes, one group of a panel is a register of AVX-512, and 16 of them are an AMX tile. Panels come in
// pairs, padded with zeros, and inputs are padded to whole tiles.

#pragma once

#include "cpu_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AMX_TILE__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t PANEL = 16, LINE = 64;      // outputs of a panel; bytes of one group
constexpr int64_t PARALLEL_MACS = 1 << 17;    // below so many products a parallel region costs more than it saves
constexpr int64_t CACHED_BYTES = 768 << 10;   // rows of x that stay in L2 beside a panel while the panels pass

constexpr int64_t panel_outputs(int64_t out) { return padded(out, 2 * PANEL); }

#if defined(__x86_64__)
inline void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0); }
#else
inline void prefetch(const void* at) { __builtin_prefetch(at); }
#endif

#if defined(__AMX_TILE__)

constexpr int64_t TILE_ROWS = 16;

// A process may use tiles after it has asked for them (arch_prctl(2), ARCH_REQ_XCOMP_PERM of XTILEDATA).
const bool has_amx = syscall(SYS_arch_prctl, 0x1023, 18) == 0;

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 to 3: sums of `upper` and of `lower` rows by two panels. 4 and 5: those rows of x. 6 and 7: the panels.
inline void shape_tiles(int64_t upper, int64_t lower) {
  TileShapes shapes;
  const int64_t rows[8] = {upper, upper, lower, lower, upper, lower, TILE_ROWS, TILE_ROWS};
  for (int t = 0; t < 8; ++t) {
    shapes.rows[t] = uint8_t(std::max<int64_t>(rows[t], 1));
    shapes.bytes[t] = LINE;
  }
  _tile_loadconfig(&shapes);
}

// Calls block(first row, upper, lower) for every ROWS rows, with the tiles shaped for them: 32 different ones, or 16 whose
// other part is the lower ones.
template <int64_t ROWS, class Block>
void for_tiles(int64_t rows, Block block) {
  int64_t shaped = 0;
  for (int64_t row = 0; row < rows; row += ROWS) {
    const int64_t count = std::min(ROWS, rows - row), upper = std::min(count, TILE_ROWS);
    const int64_t lower = ROWS == TILE_ROWS ? upper : count - upper;
    if (count != shaped) shape_tiles(upper, lower);
    shaped = count;
    block(row, upper, lower);
  }
  _tile_release();
}

template <class Sum>
void store_sums(Sum sums[4][TILE_ROWS * PANEL], bool is_lower) {
  _tile_stored(0, sums[0], LINE);
  _tile_stored(1, sums[1], LINE);
  if (!is_lower) return;
  _tile_stored(2, sums[2], LINE);
  _tile_stored(3, sums[3], LINE);
}

inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Two panels' next tiles, `ahead` lines before they are needed.
inline void prefetch_tiles(const void* first, const void* second, int64_t ahead) {
  for (int64_t line = ahead; line < ahead + TILE_ROWS; ++line) {
    prefetch(static_cast<const char*>(first) + line * LINE);
    prefetch(static_cast<const char*>(second) + line * LINE);
  }
}

#endif

// Calls tile<ROWS>(first row) until all rows are done, in tiles of nearly equal height, at most MAX_ROWS.
template <int MAX_ROWS, class Tile>
void for_rows(int64_t rows, Tile tile) {
  const int64_t tiles = (rows + MAX_ROWS - 1) / MAX_ROWS;
  for (int64_t t = 0, row = 0; t < tiles; ++t) {
    const int64_t count = (rows - row + tiles - t - 1) / (tiles - t);
    tile(row, count);
    row += count;
  }
}

// How many rows of x, each of `bytes`, are taken at once: whole pairs of tiles.
inline int64_t row_block(int64_t bytes) { return std::max<int64_t>(32, CACHED_BYTES / bytes / 32 * 32); }

}  // namespace
