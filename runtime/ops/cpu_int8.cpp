// Linear layers in int8 behind a C ABI; built and called by cpu_int8.py, defined and tested by runtime/ops/int8.py.
//
//     y[t][o] = (Σ_k q[t][k] · w[o][k]) · scale[t] · w_scale[o] + bias[o]        the sum in int32, so exact in any order
//
// The weight [out, in] is packed in panels of 16 outputs and groups of 4 inputs, [out / 16][in / 4][16][4], zero-padded to
// whole panels and to STEP inputs. One group is one register of AVX-512's dot product (VNNI), 16 groups are one tile of AMX,
// and AVX2 widens a quarter of a group to int16.
//
// VNNI and AMX multiply unsigned by signed: a token is stored as q + 128, and 128 · Σ_k w[o][k] is taken off at the end.

#include <immintrin.h>
#if defined(__AMX_INT8__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t PANEL = 16, GROUP = 4, STEP = 64, GROUP_BYTES = PANEL * GROUP;
constexpr int64_t PARALLEL_MACS = 1 << 17;  // below so many products a parallel region costs more than it saves

constexpr int64_t padded(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }

struct Layer {
  const int8_t* packed;
  const float *w_scale, *bias;  // [panels · 16]; bias may be null
  const int32_t* w_sum;         // [panels · 16]: Σ_k w[o][k]
  int64_t out, depth;           // depth: inputs with their padding
};

// y[0 .. columns) of one row and panel from its 16 sums.
void finish(const Layer& l, int64_t panel, const int32_t* sums, float scale, float* y) {
  const int64_t first = panel * PANEL, columns = std::min(PANEL, l.out - first);
  const float* s = l.w_scale + first;
  if (l.bias == nullptr) {
    for (int64_t c = 0; c < columns; ++c) y[first + c] = float(sums[c]) * (scale * s[c]);
  } else {
    const float* b = l.bias + first;
    for (int64_t c = 0; c < columns; ++c) y[first + c] = float(sums[c]) * (scale * s[c]) + b[c];
  }
}

#if defined(__AVX512VNNI__)

using Quant = uint8_t;
constexpr int OFFSET = 128;
constexpr int MAX_ROWS = 12;  // rows · 2 panels of accumulators in 32 registers

void finish_unsigned(const Layer& l, int64_t panel, __m512i sums, float scale, float* y) {
  const int64_t first = panel * PANEL;
  const __m512i exact = _mm512_sub_epi32(sums, _mm512_slli_epi32(_mm512_loadu_si512(l.w_sum + first), 7));
  const __m512 factor = _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_loadu_ps(l.w_scale + first));
  __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), factor);
  if (l.bias != nullptr) value = _mm512_add_ps(value, _mm512_loadu_ps(l.bias + first));
  const int64_t columns = std::min(PANEL, l.out - first);
  _mm512_mask_storeu_ps(y + first, __mmask16((1u << columns) - 1), value);
}

inline int32_t four(const Quant* x) {
  int32_t v;
  std::memcpy(&v, x, sizeof v);
  return v;
}

// ROWS rows of x [.., depth] times PANELS neighbouring panels.
template <int ROWS, int PANELS>
void rows_by_panels(const Layer& l, int64_t panel, const Quant* x, const float* scale, float* y) {
  const int8_t* w = l.packed + panel * PANEL * l.depth;
  const int64_t next = PANEL * l.depth;
  __m512i acc[ROWS][PANELS];
  for (int r = 0; r < ROWS; ++r)
    for (int p = 0; p < PANELS; ++p) acc[r][p] = _mm512_setzero_si512();
  for (int64_t k = 0; k < l.depth; k += GROUP) {
    __m512i weight[PANELS];
    for (int p = 0; p < PANELS; ++p) {
      const int8_t* at = w + p * next + k * PANEL;
      _mm_prefetch(reinterpret_cast<const char*>(at + 32 * GROUP_BYTES), _MM_HINT_T0);
      weight[p] = _mm512_loadu_si512(at);
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      const __m512i token = _mm512_set1_epi32(four(x + r * l.depth + k));
#pragma GCC unroll 4
      for (int p = 0; p < PANELS; ++p) acc[r][p] = _mm512_dpbusd_epi32(acc[r][p], token, weight[p]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int p = 0; p < PANELS; ++p) finish_unsigned(l, panel + p, acc[r][p], scale[r], y + r * l.out);
}

#elif defined(__AVX2__)

using Quant = int16_t;
constexpr int OFFSET = 0;
constexpr int MAX_ROWS = 3;  // rows · 4 quarters of a panel in 16 registers

template <int ROWS, int PANELS>
void rows_by_panels(const Layer& l, int64_t panel, const Quant* x, const float* scale, float* y) {
  static_assert(PANELS == 1);
  const int8_t* w = l.packed + panel * PANEL * l.depth;
  __m256i acc[ROWS][4];
  for (int r = 0; r < ROWS; ++r)
    for (int q = 0; q < 4; ++q) acc[r][q] = _mm256_setzero_si256();
  for (int64_t k = 0; k < l.depth; k += GROUP) {
    _mm_prefetch(reinterpret_cast<const char*>(w + (k + 32 * GROUP) * PANEL), _MM_HINT_T0);
    __m256i token[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      long long v;
      std::memcpy(&v, x + r * l.depth + k, sizeof v);
      token[r] = _mm256_set1_epi64x(v);
    }
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {  // four outputs: sums of the even and of the odd pair of inputs beside each other
      const void* at = w + k * PANEL + q * 16;
      const __m256i weight = _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(at)));
#pragma GCC unroll 3
      for (int r = 0; r < ROWS; ++r)
        acc[r][q] = _mm256_add_epi32(acc[r][q], _mm256_madd_epi16(token[r], weight));
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    int32_t pairs[2 * PANEL], sums[PANEL];
    std::memcpy(pairs, acc[r], sizeof pairs);
    for (int64_t c = 0; c < PANEL; ++c) sums[c] = pairs[2 * c] + pairs[2 * c + 1];
    finish(l, panel, sums, scale[r], y + r * l.out);
  }
}

#else

using Quant = int8_t;
constexpr int OFFSET = 0;
constexpr int MAX_ROWS = 4;

template <int ROWS, int PANELS>
void rows_by_panels(const Layer& l, int64_t panel, const Quant* x, const float* scale, float* y) {
  static_assert(PANELS == 1);
  const int8_t* w = l.packed + panel * PANEL * l.depth;
  int32_t sums[ROWS][PANEL] = {};
  for (int64_t k = 0; k < l.depth; k += GROUP)
    for (int r = 0; r < ROWS; ++r)
      for (int64_t c = 0; c < PANEL; ++c)
        for (int64_t i = 0; i < GROUP; ++i)
          sums[r][c] += int32_t(x[r * l.depth + k + i]) * w[k * PANEL + c * GROUP + i];
  for (int r = 0; r < ROWS; ++r) finish(l, panel, sums[r], scale[r], y + r * l.out);
}

#endif

// The rows of one panel, or of two where there are registers for it, in tiles of nearly equal height.
template <int PANELS, int ROWS = MAX_ROWS>
void tile(const Layer& l, int64_t panel, int64_t count, const Quant* x, const float* scale, float* y) {
  if constexpr (ROWS > 1)
    if (count < ROWS) return tile<PANELS, ROWS - 1>(l, panel, count, x, scale, y);
  rows_by_panels<ROWS, PANELS>(l, panel, x, scale, y);
}

template <int PANELS>
void all_rows(const Layer& l, int64_t panel, int64_t rows, const Quant* x, const float* scale, float* y) {
  const int64_t tiles = (rows + MAX_ROWS - 1) / MAX_ROWS;
  for (int64_t t = 0, row = 0; t < tiles; ++t) {
    const int64_t count = (rows - row + tiles - t - 1) / (tiles - t);
    tile<PANELS>(l, panel, count, x + row * l.depth, scale + row, y + row * l.out);
    row += count;
  }
}

#if defined(__AMX_INT8__)

constexpr int64_t AMX_ROWS = 5;  // from here on tiles beat vectors; below, most of a tile's rows would be empty
constexpr int64_t TILE_ROWS = 16;

// One process may use tiles after it has asked for them (arch_prctl(2), ARCH_REQ_XCOMP_PERM of XTILEDATA).
const bool has_amx = syscall(SYS_arch_prctl, 0x1023, 18) == 0;

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 to 3: sums of 2 · 16 rows by 2 panels. 4 and 5: rows of x. 6 and 7: panels.
void shape_tiles(int64_t upper, int64_t lower) {
  TileShapes shapes;
  const int64_t rows[8] = {upper, upper, lower, lower, upper, lower, TILE_ROWS, TILE_ROWS};
  for (int t = 0; t < 8; ++t) {
    shapes.rows[t] = uint8_t(std::max<int64_t>(rows[t], 1));
    shapes.bytes[t] = 64;
  }
  _tile_loadconfig(&shapes);
}

void finish_tile(const Layer& l, int64_t panel, const int32_t* sums, int64_t rows, const float* scale, float* y) {
  if (panel * PANEL >= l.out) return;  // the padding of an odd number of panels
  for (int64_t r = 0; r < rows; ++r)
    finish_unsigned(l, panel, _mm512_loadu_si512(sums + r * PANEL), scale[r], y + r * l.out);
}

// Up to 32 rows by two panels; tiles are shaped for `upper` and `lower` rows.
void amx_block(const Layer& l, int64_t panel, int64_t upper, int64_t lower, const Quant* x, const float* scale, float* y) {
  const int8_t *w0 = l.packed + panel * PANEL * l.depth, *w1 = w0 + PANEL * l.depth;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < l.depth; k += STEP) {
    for (int64_t line = 0; line < STEP * PANEL; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(w0 + (k + 2 * STEP) * PANEL + line), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(w1 + (k + 2 * STEP) * PANEL + line), _MM_HINT_T0);
    }
    _tile_loadd(6, w0 + k * PANEL, 64);
    _tile_loadd(7, w1 + k * PANEL, 64);
    _tile_loadd(4, x + k, l.depth);
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    if (lower > 0) {
      _tile_loadd(5, x + TILE_ROWS * l.depth + k, l.depth);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
  }
  alignas(64) int32_t sums[4][TILE_ROWS * PANEL];
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  finish_tile(l, panel, sums[0], upper, scale, y);
  finish_tile(l, panel + 1, sums[1], upper, scale, y);
  if (lower > 0) {
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
    finish_tile(l, panel, sums[2], lower, scale + TILE_ROWS, y + TILE_ROWS * l.out);
    finish_tile(l, panel + 1, sums[3], lower, scale + TILE_ROWS, y + TILE_ROWS * l.out);
  }
}

void amx_pair(const Layer& l, int64_t pair, int64_t rows, const Quant* x, const float* scale, float* y) {
  int64_t shaped = -1;
  for (int64_t row = 0; row < rows; row += 2 * TILE_ROWS) {
    const int64_t count = std::min(2 * TILE_ROWS, rows - row);
    const int64_t upper = std::min(count, TILE_ROWS), lower = count - upper;
    if (count != shaped) shape_tiles(upper, lower);
    shaped = count;
    amx_block(l, 2 * pair, upper, lower, x + row * l.depth, scale + row, y + row * l.out);
  }
  _tile_release();
}

#endif

// The scale of a row is its absolute maximum over 127; of a row that is not finite, NaN, so that this is seen in the result.
float quantize_row(const float* x, int64_t size, int64_t depth, Quant* q) {
  float largest = 0.0f, poison = 0.0f;
#pragma omp simd reduction(max : largest) reduction(+ : poison)
  for (int64_t k = 0; k < size; ++k) {
    largest = std::max(largest, std::fabs(x[k]));
    poison += x[k] * 0.0f;
  }
  const float scale = largest / 127.0f, inverse = largest > 0.0f && poison == 0.0f ? 127.0f / largest : 0.0f;
#pragma omp simd
  for (int64_t k = 0; k < size; ++k) q[k] = Quant(int32_t(std::nearbyint(x[k] * inverse)) + OFFSET);
  std::fill(q + size, q + depth, Quant(OFFSET));
  return scale + poison;
}

}  // namespace

extern "C" {

// Bytes of a packed weight. Panels come in pairs.
int64_t dc_int8_packed_bytes(int64_t out, int64_t in) { return padded(out, 2 * PANEL) * padded(in, STEP); }

int64_t dc_int8_padded_outputs(int64_t out) { return padded(out, 2 * PANEL); }

void dc_int8_pack(const int8_t* weight, int8_t* packed, int32_t* w_sum, int64_t out, int64_t in) {
  const int64_t depth = padded(in, STEP), outputs = padded(out, 2 * PANEL);
#pragma omp parallel for
  for (int64_t o = 0; o < outputs; ++o) {
    int8_t* panel = packed + o / PANEL * PANEL * depth + o % PANEL * GROUP;
    w_sum[o] = 0;
    for (int64_t k = 0; k < depth; ++k) {
      const int8_t value = o < out && k < in ? weight[o * in + k] : int8_t(0);
      panel[k / GROUP * GROUP_BYTES + k % GROUP] = value;
      w_sum[o] += value;
    }
  }
}

void dc_int8_linear(const float* x, const int8_t* packed, const float* w_scale, const int32_t* w_sum, const float* bias,
                    float* y, int64_t rows, int64_t out, int64_t in) {
  const int64_t depth = padded(in, STEP), pairs = padded(out, 2 * PANEL) / (2 * PANEL);
  const Layer l{packed, w_scale, bias, w_sum, out, depth};
  std::vector<Quant> quantized(size_t(rows * depth));
  std::vector<float> scales(static_cast<size_t>(rows));
  Quant* q = quantized.data();
  float* scale = scales.data();
#pragma omp parallel if (rows * out * depth > PARALLEL_MACS)
  {
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; ++r) scale[r] = quantize_row(x + r * in, in, depth, q + r * depth);
#if defined(__AMX_INT8__)
    if (has_amx && rows >= AMX_ROWS) {
#pragma omp for schedule(static) nowait
      for (int64_t p = 0; p < pairs; ++p) amx_pair(l, p, rows, q, scale, y);
    } else
#endif
    {
#pragma omp for schedule(static) nowait
      for (int64_t p = 0; p < pairs; ++p) {
#if defined(__AVX512VNNI__)
        if (2 * p * PANEL + PANEL < out) {
          all_rows<2>(l, 2 * p, rows, q, scale, y);
          continue;
        }
#endif
        for (int64_t panel = 2 * p; panel < 2 * p + 2 && panel * PANEL < out; ++panel)
          all_rows<1>(l, panel, rows, q, scale, y);
      }
    }
  }
}

}  // extern "C"
