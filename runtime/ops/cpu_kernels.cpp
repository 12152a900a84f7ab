// float32 CPU kernels behind a C ABI; built and called by cpu_kernels.py. What each computes is defined, and tested,
// against runtime/ops/reference.py. Shapes: T tokens, H hidden, N query heads, K key-value heads, D head size.
//
// Vectors are GCC's vector extension, of a register's length: longer ones go through memory.
//
// A cache block has the reference's size and another order inside: what one head reads lies together, and keys are
// transposed, so that W neighbouring keys are one vector and a score needs no horizontal sum.
//
//     keys    [blocks][K][D][block_size]        values  [blocks][K][block_size][D]
//
// Their numbers are float32, or bfloat16: a step of many short requests reads more of the cache than of the weights.

#include "cpu_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
typedef float vec __attribute__((vector_size(W * sizeof(float))));
typedef int32_t ivec __attribute__((vector_size(W * sizeof(int32_t))));

// Below so many floats a parallel region costs more than it saves.
constexpr int64_t PARALLEL_FLOATS = 1 << 15;

inline vec load(const float* p) {
  vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

struct Half {  // bfloat16
  uint16_t bits;
};

typedef uint16_t hvec __attribute__((vector_size(W * sizeof(uint16_t))));
typedef uint32_t uvec __attribute__((vector_size(W * sizeof(uint32_t))));

inline vec load(const Half* p) {
  hvec bits;
  std::memcpy(&bits, p, sizeof bits);
  const uvec wide = __builtin_convertvector(bits, uvec) << 16;
  vec v;
  std::memcpy(&v, &wide, sizeof v);
  return v;
}

inline float number(float x) { return x; }

inline float number(Half x) {
  const uint32_t wide = uint32_t(x.bits) << 16;
  float v;
  std::memcpy(&v, &wide, sizeof v);
  return v;
}

inline void put(float* to, float x) { *to = x; }

// To the nearest; a tie to the even one. What is not a number stays so.
inline void put(Half* to, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  to->bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

inline vec splat(float x) { return vec{} + x; }

inline float sum(vec v) {
  float s[W];
  store(s, v);
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) s[i] += s[i + half];
  return s[0];
}

inline float largest(vec v) {
  float s[W];
  store(s, v);
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) s[i] = std::max(s[i], s[i + half]);
  return s[0];
}

// exp with a relative error below 2e-7: x = n·ln2 + r, 2^n from the exponent bits, e^r by its series to r^7.
inline vec exp_vec(vec x) {
  x = x < -87.0f ? splat(-87.0f) : x;
  x = x > 88.0f ? splat(88.0f) : x;
  const vec scaled = x * 1.44269504088896341f;
  const ivec n = __builtin_convertvector(scaled + (scaled < 0.0f ? splat(-0.5f) : splat(0.5f)), ivec);
  const vec f = __builtin_convertvector(n, vec);
  const vec r = (x - f * 0.693359375f) - f * -2.12194440e-4f;
  vec p = splat(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const ivec bits = (n + 127) << 23;
  vec power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

inline float exp_one(float x) { return exp_vec(splat(x))[0]; }

float dot(const float* a, const float* b, int64_t n) {
  vec s0{}, s1{};
  int64_t i = 0;
  for (; i + 2 * W <= n; i += 2 * W) {
    s0 += load(a + i) * load(b + i);
    s1 += load(a + i + W) * load(b + i + W);
  }
  for (; i + W <= n; i += W) s0 += load(a + i) * load(b + i);
  float s = sum(s0 + s1);
  for (; i < n; ++i) s += a[i] * b[i];
  return s;
}

void norm_row(const float* x, const float* weight, float eps, float* out, int64_t n) {
  const float scale = 1.0f / std::sqrt(dot(x, x, n) / float(n) + eps);
  int64_t i = 0;
  for (; i + W <= n; i += W) store(out + i, load(weight + i) * (load(x + i) * scale));
  for (; i < n; ++i) out[i] = weight[i] * (x[i] * scale);
}

void rotate(const float* x, const float* cos, const float* sin, float* out, int64_t half) {
  int64_t i = 0;
  for (; i + W <= half; i += W) {
    const vec l = load(x + i), r = load(x + half + i), c = load(cos + i), s = load(sin + i);
    store(out + i, l * c - r * s);
    store(out + half + i, r * c + l * s);
  }
  for (; i < half; ++i) {
    const float l = x[i], r = x[half + i];
    out[i] = l * cos[i] - r * sin[i];
    out[half + i] = r * cos[i] + l * sin[i];
  }
}

// score[row][0..W) = q[row] · the W keys at `keys`, whose element d lies `stride` floats after element d - 1. The sum is
// taken in the same order for any ROWS: a row's numbers must not depend on which rows happen to be beside it.
template <int ROWS, class Kv>
void scores(const float* q, const Kv* keys, int64_t stride, float* score, int64_t ld, int64_t dim) {
  vec even[ROWS] = {}, odd[ROWS] = {};
  int64_t d = 0;
  for (; d + 2 <= dim; d += 2) {
    const vec k0 = load(keys + d * stride), k1 = load(keys + (d + 1) * stride);
    for (int r = 0; r < ROWS; ++r) {
      even[r] += k0 * q[r * dim + d];
      odd[r] += k1 * q[r * dim + d + 1];
    }
  }
  for (int r = 0; d < dim && r < ROWS; ++r) even[r] += load(keys + d * stride) * q[r * dim + d];
  for (int r = 0; r < ROWS; ++r) store(score + r * ld, even[r] + odd[r]);
}

#if defined(__AVX512F__)
constexpr int COLUMNS = 4;  // vectors of accumulators beside each other: 16 of 32 registers for four rows
#else
constexpr int COLUMNS = 2;
#endif

template <int ROWS, int COUNT, class Kv>
void accumulate_columns(const float* p, int64_t ld, const Kv* values, int64_t stride, float* acc, int64_t keys, int64_t dim) {
  vec a[ROWS][COUNT];
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < COUNT; ++c) a[r][c] = load(acc + r * dim + c * W);
  for (int64_t k = 0; k < keys; ++k)
    for (int c = 0; c < COUNT; ++c) {
      const vec v = load(values + k * stride + c * W);
      for (int r = 0; r < ROWS; ++r) a[r][c] += v * p[r * ld + k];
    }
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < COUNT; ++c) store(acc + r * dim + c * W, a[r][c]);
}

// acc[row] += Σ_key p[row][key] · value[key]
template <int ROWS, class Kv>
void accumulate(const float* p, int64_t ld, const Kv* values, int64_t stride, float* acc, int64_t keys, int64_t dim) {
  int64_t d = 0;
  for (; d + COLUMNS * W <= dim; d += COLUMNS * W)
    accumulate_columns<ROWS, COLUMNS>(p, ld, values + d, stride, acc + d, keys, dim);
  for (; d + W <= dim; d += W) accumulate_columns<ROWS, 1>(p, ld, values + d, stride, acc + d, keys, dim);
  for (; d < dim; ++d)
    for (int r = 0; r < ROWS; ++r)
      for (int64_t k = 0; k < keys; ++k) acc[r * dim + d] += p[r * ld + k] * number(values[k * stride + d]);
}

template <int N>
using Count = std::integral_constant<int, N>;

// Calls tile(first row, Count<rows>) for all rows, four at a time; the rest, one to three, together.
template <class Tile>
void in_fours(int64_t rows, Tile tile) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) tile(r, Count<4>());
  if (rows - r == 3) tile(r, Count<3>());
  if (rows - r == 2) tile(r, Count<2>());
  if (rows - r == 1) tile(r, Count<1>());
}

template <class Kv>
struct Attention {
  const float* query;         // [T, N, D]
  const Kv *keys, *values;  // as above
  const int32_t *starts, *contexts, *tables;
  float* out;
  int64_t max_blocks, block_size, heads, kv_heads, dim;
  float scale;
};

// `count` pieces of `length` numbers, `stride` apart, as float32 side by side: what many rows read is converted
// once. False where it is float32 already.
inline bool widen(const Half* from, int64_t stride, float* to, int64_t count, int64_t length) {
  for (; count > 0; --count, from += stride, to += length) {
    int64_t i = 0;
    for (; i + W <= length; i += W) store(to + i, load(from + i));
    for (; i < length; ++i) to[i] = number(from[i]);
  }
  return true;
}

inline bool widen(const float*, int64_t, float*, int64_t, int64_t) { return false; }

constexpr int64_t CHUNK = 128;  // keys between two updates of the running maximum

// Softmax so far of one row: largest score, and the sum of exponentials lane by lane.
struct Running {
  float top = -INFINITY;
  vec mass{};
};

// Turns a row of `lanes` scores into exponentials; returns the factor on everything accumulated before.
float exponentials(float* score, int64_t lanes, Running& run) {
  vec peak = splat(run.top);
  for (int64_t j = 0; j < lanes; j += W) {
    const vec s = load(score + j);
    peak = s > peak ? s : peak;
  }
  const float top = largest(peak);
  if (top == -INFINITY) {
    std::fill(score, score + lanes, 0.0f);
    return 1.0f;
  }
  const float decay = run.top == -INFINITY ? 0.0f : exp_one(run.top - top);
  run.mass *= decay;
  run.top = top;
  for (int64_t j = 0; j < lanes; j += W) {
    const vec s = load(score + j);
    const vec p = s == -INFINITY ? vec{} : exp_vec(s - top);
    run.mass += p;
    store(score + j, p);
  }
  return decay;
}

template <class Kv>
void prefetch_all(const Kv* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / int64_t(sizeof(Kv))) __builtin_prefetch(from + i);
}

// The queries that share one key-value head, `count` tokens from `first` on: rows = count · N/K, online softmax.
template <class Kv>
void attend(const Attention<Kv>& a, int64_t request, int64_t kv_head, int64_t first, int64_t count) {
  const int64_t group = a.heads / a.kv_heads, rows = count * group, dim = a.dim, head_floats = dim * a.block_size;
  const int64_t begin = a.starts[request], total = a.starts[request + 1] - begin;
  const int64_t earlier = a.contexts[request] - total;  // keys before this step's first token
  const int32_t* table = a.tables + request * a.max_blocks;
  std::vector<float> buffer(size_t(rows * (2 * dim + CHUNK) + W * dim), 0.0f);
  float *q = buffer.data(), *acc = q + rows * dim, *score = acc + rows * dim, *wide = score + rows * CHUNK;
  std::vector<Running> running(size_t(rows), Running{});
  for (int64_t t = 0; t < count; ++t)
    for (int64_t g = 0; g < group; ++g) {
      const float* from = a.query + ((begin + first + t) * a.heads + kv_head * group + g) * dim;
      float* to = q + (t * group + g) * dim;
      for (int64_t d = 0; d < dim; ++d) to[d] = from[d] * a.scale;
    }
  const int64_t seen = earlier + first + count;  // keys that the last of these tokens sees
  struct Piece {  // up to W neighbouring keys of one block: one vector of scores per row
    const Kv* values;
    int64_t key, count;
  };
  Piece pieces[CHUNK / W];
  for (int64_t key = 0; key < seen;) {
    int64_t used = 0;
    while (key < seen && used < CHUNK / W) {
      const int64_t block = table[key / a.block_size], offset = key % a.block_size;
      const int64_t n = std::min({int64_t(W), a.block_size - offset, seen - key});
      const int64_t head = (block * a.kv_heads + kv_head) * head_floats;
      prefetch_all(a.values + head + offset * dim, n * dim);
      if (key + n < seen)
        prefetch_all(a.keys + (table[(key + n) / a.block_size] * a.kv_heads + kv_head) * head_floats, head_floats);
      const Kv* key_vectors = a.keys + head + offset;
      const auto score_all = [&](const auto* keys, int64_t stride) {
        in_fours(rows, [&](int64_t r, auto together) {
          scores<together()>(q + r * dim, keys, stride, score + r * CHUNK + used * W, CHUNK, dim);
        });
      };
      if (rows > 4 && widen(key_vectors, a.block_size, wide, dim, W))
        score_all(wide, W);
      else
        score_all(key_vectors, a.block_size);
      pieces[used++] = {a.values + head + offset * dim, key, n};
      key += n;
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t last = earlier + first + r / group;  // the newest key that this row sees: its own
      float* s = score + r * CHUNK;
      for (int64_t i = 0; i < used; ++i) {
        const int64_t visible = std::clamp<int64_t>(last + 1 - pieces[i].key, 0, pieces[i].count);
        std::fill(s + i * W + visible, s + (i + 1) * W, -INFINITY);
      }
      const float decay = exponentials(s, used * W, running[size_t(r)]);
      if (decay != 1.0f)
        for (int64_t d = 0; d < dim; ++d) acc[r * dim + d] *= decay;
    }
    for (int64_t i = 0; i < used; ++i) {
      const Piece& piece = pieces[i];
      const auto add_all = [&](const auto* values) {
        in_fours(rows, [&](int64_t r, auto together) {
          accumulate<together()>(score + r * CHUNK + i * W, CHUNK, values, dim, acc + r * dim, piece.count, dim);
        });
      };
      if (rows > 4 && widen(piece.values, dim, wide, piece.count, dim))
        add_all(wide);
      else
        add_all(piece.values);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    float* to = a.out + ((begin + first + r / group) * a.heads + kv_head * group + r % group) * dim;
    const float mass = sum(running[size_t(r)].mass);
    for (int64_t d = 0; d < dim; ++d) to[d] = acc[r * dim + d] / mass;
  }
}

struct HeadTile {
  int32_t request, kv_head, first, count;
};

constexpr int64_t TILE_TOKENS = 32;

template <class Kv>
void attend_all(const Attention<Kv>& a, int64_t requests) {
  std::vector<HeadTile> tiles;
  int64_t pairs = 0;
  for (int64_t r = 0; r < requests; ++r) {
    const int64_t count = a.starts[r + 1] - a.starts[r];
    pairs += count * a.contexts[r];
    for (int64_t first = 0; first < count; first += TILE_TOKENS)
      for (int64_t head = 0; head < a.kv_heads; ++head)
        tiles.push_back({int32_t(r), int32_t(head), int32_t(first), int32_t(std::min(TILE_TOKENS, count - first))});
  }
#pragma omp parallel for schedule(dynamic) if (pairs * a.heads * a.dim > PARALLEL_FLOATS)
  for (size_t i = 0; i < tiles.size(); ++i)
    attend(a, tiles[i].request, tiles[i].kv_head, tiles[i].first, tiles[i].count);
}

struct Projected {
  const float *qkv, *q_norm, *k_norm, *table;  // norms may be null
  const int64_t *positions, *slots;
  float eps;
  int64_t tokens, heads, kv_heads, dim, block_size;
};

template <class Kv>
void rope_write(const Projected& in, Kv* keys, Kv* values, float* query) {
  const int64_t heads = in.heads, kv_heads = in.kv_heads, dim = in.dim, block_size = in.block_size;
  const int64_t width = (heads + 2 * kv_heads) * dim, half = dim / 2;
  const bool is_large = in.tokens * width > PARALLEL_FLOATS / 8;  // most of it waits for lines of the cache
#pragma omp parallel for schedule(dynamic, share(in.tokens)) if (is_large)
  for (int64_t t = 0; t < in.tokens; ++t) {
    std::vector<float> scratch(size_t(2 * dim), 0.0f);
    float *normed = scratch.data(), *rotated = normed + dim;
    const float *row = in.qkv + t * width, *cos = in.table + in.positions[t] * dim, *sin = cos + half;
    const int64_t block = in.slots[t] / block_size, offset = in.slots[t] % block_size;
    for (int64_t h = 0; h < heads + kv_heads; ++h) {
      const float* x = row + h * dim;
      const bool is_key = h >= heads;
      if (in.q_norm != nullptr) {
        norm_row(x, is_key ? in.k_norm : in.q_norm, in.eps, normed, dim);
        x = normed;
      }
      rotate(x, cos, sin, is_key ? rotated : query + (t * heads + h) * dim, half);
      if (!is_key) continue;
      Kv* to = keys + (block * kv_heads + h - heads) * dim * block_size + offset;
      for (int64_t d = 0; d < dim; ++d) put(to + d * block_size, rotated[d]);
    }
    for (int64_t h = 0; h < kv_heads; ++h) {
      const float* from = row + (heads + kv_heads + h) * dim;
      Kv* to = values + ((block * kv_heads + h) * block_size + offset) * dim;
      for (int64_t d = 0; d < dim; ++d) put(to + d, from[d]);
    }
  }
}

// Linear layers. The weight [out, in] is packed in panels of PANEL outputs, [out / PANEL][in][PANEL], zero-padded.
//
//     one tile:   x [ROWS, depth] · panel [depth, PANEL]  →  ROWS · 2 accumulators in registers
//
// At most DEPTH rows of a panel stay in L2 while all tiles of a batch pass over them, so memory is read once per step. The
// prefetch is what makes small batches fast: a panel is read once, and the processor's own prefetcher falls behind.
#if defined(__AVX512F__)
constexpr int LANES = 16, MAX_ROWS = 12;  // 24 accumulators of 32 registers
#else
constexpr int LANES = 8, MAX_ROWS = 6;  // 12 of 16
#endif
constexpr int PANEL = 2 * LANES;
constexpr int64_t DEPTH = 640;
constexpr int64_t ROW_BLOCK = 192;  // rows of x that stay in L2 beside the panel while the panels pass
constexpr int64_t AHEAD = 32;  // panel rows; measured: 16 to 128 are within 15 %
typedef float lane_vec __attribute__((vector_size(LANES * sizeof(float))));

inline lane_vec load_lanes(const float* p) {
  lane_vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store_lanes(float* p, lane_vec v) { std::memcpy(p, &v, sizeof v); }

struct Linear {
  const float *x, *packed, *bias;
  float* y;
  int64_t rows, out, in;
};

// y[row .. row + ROWS) of one panel, for inputs [k, k + depth); the first depth starts from the bias.
template <int ROWS>
void tile(const Linear& l, int64_t panel, int64_t row, int64_t k, int64_t depth) {
  const int64_t first = panel * PANEL, columns = std::min<int64_t>(PANEL, l.out - first);
  const float* w = l.packed + (panel * l.in + k) * PANEL;
  const float* x = l.x + row * l.in + k;
  float* y = l.y + row * l.out + first;
  lane_vec acc[ROWS][2] = {};
  for (int r = 0; (k > 0 || l.bias != nullptr) && r < ROWS; ++r) {
    const float* start = k > 0 ? y + r * l.out : l.bias + first;
    float edge[PANEL] = {};
    if (columns < PANEL) start = static_cast<float*>(std::memcpy(edge, start, size_t(columns) * sizeof(float)));
    acc[r][0] = load_lanes(start);
    acc[r][1] = load_lanes(start + LANES);
  }
  for (int64_t i = 0; i < depth; ++i) {
    __builtin_prefetch(w + (i + AHEAD) * PANEL);
    __builtin_prefetch(w + (i + AHEAD) * PANEL + LANES);
    const lane_vec w0 = load_lanes(w + i * PANEL), w1 = load_lanes(w + i * PANEL + LANES);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      const float s = x[r * l.in + i];
      acc[r][0] += w0 * s;
      acc[r][1] += w1 * s;
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    float edge[PANEL];
    float* to = columns < PANEL ? edge : y + r * l.out;
    store_lanes(to, acc[r][0]);
    store_lanes(to + LANES, acc[r][1]);
    if (columns < PANEL) std::memcpy(y + r * l.out, edge, size_t(columns) * sizeof(float));
  }
}

using TileFunction = void (*)(const Linear&, int64_t, int64_t, int64_t, int64_t);
constexpr TileFunction TILES[] = {
    nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>,
#if defined(__AVX512F__)
    tile<7>, tile<8>, tile<9>, tile<10>, tile<11>, tile<12>,
#endif
};

}  // namespace

extern "C" {

void dc_rms_norm(const float* x, const float* weight, float eps, float* out, int64_t tokens, int64_t hidden) {
#pragma omp parallel for schedule(dynamic, share(tokens)) if (tokens * hidden > PARALLEL_FLOATS)
  for (int64_t t = 0; t < tokens; ++t) norm_row(x + t * hidden, weight, eps, out + t * hidden, hidden);
}

void dc_add_rms_norm(const float* x, const float* residual, const float* weight, float eps, float* out, float* total,
                     int64_t tokens, int64_t hidden) {
#pragma omp parallel for schedule(dynamic, share(tokens)) if (tokens * hidden > PARALLEL_FLOATS)
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t at = t * hidden;
    for (int64_t i = 0; i < hidden; ++i) total[at + i] = x[at + i] + residual[at + i];
    norm_row(total + at, weight, eps, out + at, hidden);
  }
}

void dc_silu_mul(const float* gate_up, float* out, int64_t tokens, int64_t inner) {
#pragma omp parallel for schedule(dynamic, share(tokens)) if (tokens * inner > PARALLEL_FLOATS)
  for (int64_t t = 0; t < tokens; ++t) {
    const float *gate = gate_up + 2 * t * inner, *up = gate + inner;
    float* to = out + t * inner;
    int64_t i = 0;
    for (; i + W <= inner; i += W) {
      const vec g = load(gate + i);
      store(to + i, g / (1.0f + exp_vec(-g)) * load(up + i));
    }
    for (; i < inner; ++i) to[i] = gate[i] / (1.0f + exp_one(-gate[i])) * up[i];
  }
}

void dc_rope_write(const float* qkv, const float* q_norm, const float* k_norm, float eps, const float* table,
                   const int64_t* positions, const int64_t* slots, void* keys, void* values, float* query, int64_t kv_bytes,
                   int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim, int64_t block_size) {
  const Projected in{qkv, q_norm, k_norm, table, positions, slots, eps, tokens, heads, kv_heads, dim, block_size};
  if (kv_bytes == 2) return rope_write(in, static_cast<Half*>(keys), static_cast<Half*>(values), query);
  rope_write(in, static_cast<float*>(keys), static_cast<float*>(values), query);
}

void dc_attention(const float* query, const void* keys, const void* values, const int32_t* starts, const int32_t* contexts,
                  const int32_t* tables, float* out, int64_t kv_bytes, int64_t requests, int64_t max_blocks,
                  int64_t block_size, int64_t heads, int64_t kv_heads, int64_t dim, float scale) {
  const auto run = [&](const auto* k, const auto* v) {
    using Kv = std::remove_cv_t<std::remove_pointer_t<decltype(k)>>;
    attend_all(Attention<Kv>{query, k, v, starts, contexts, tables, out, max_blocks, block_size, heads, kv_heads, dim, scale},
               requests);
  };
  if (kv_bytes == 2) return run(static_cast<const Half*>(keys), static_cast<const Half*>(values));
  run(static_cast<const float*>(keys), static_cast<const float*>(values));
}

int64_t dc_packed_floats(int64_t out, int64_t in) { return (out + PANEL - 1) / PANEL * PANEL * in; }

void dc_pack(const float* weight, float* packed, int64_t out, int64_t in) {
  const int64_t panels = (out + PANEL - 1) / PANEL;
#pragma omp parallel for
  for (int64_t p = 0; p < panels; ++p)
    for (int64_t k = 0; k < in; ++k)
      for (int64_t c = 0; c < PANEL; ++c) {
        const int64_t o = p * PANEL + c;
        packed[(p * in + k) * PANEL + c] = o < out ? weight[o * in + k] : 0.0f;
      }
}

void dc_linear(const float* x, const float* packed, const float* bias, float* y, int64_t rows, int64_t out, int64_t in) {
  const Linear l{x, packed, bias, y, rows, out, in};
  const int64_t panels = (out + PANEL - 1) / PANEL, depths = (in + DEPTH - 1) / DEPTH, depth = (in + depths - 1) / depths;
  for (int64_t begin = 0; begin < rows; begin += ROW_BLOCK) {
    const int64_t block = std::min(ROW_BLOCK, rows - begin), tiles = (block + MAX_ROWS - 1) / MAX_ROWS;
#pragma omp parallel for schedule(dynamic, share(panels)) if (out * in > PARALLEL_FLOATS)
    for (int64_t p = 0; p < panels; ++p)
      for (int64_t k = 0; k < in; k += depth)
        for (int64_t t = 0, row = 0; t < tiles; ++t) {
          const int64_t count = (block - row + tiles - t - 1) / (tiles - t);  // tiles of nearly equal height
          TILES[count](l, p, begin + row, k, std::min(depth, in - k));
          row += count;
        }
  }
}

}  // extern "C"
