// float32 CPU kernels behind a C ABI; built and called by cpu_kernels.py. What each computes is defined, and tested,
// against runtime/ops/reference.py. Shapes: T tokens, H hidden, N query heads, K key-value heads, D head size.
//
// Vectors are 16 floats of GCC's vector extension: one AVX-512 register, two AVX2 ones, four NEON ones.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int W = 16;
typedef float vec __attribute__((vector_size(W * sizeof(float))));
typedef int32_t ivec __attribute__((vector_size(W * sizeof(int32_t))));

// Below so many floats a parallel region costs more than it saves.
constexpr int64_t PARALLEL_FLOATS = 1 << 15;

inline vec load(const float* p) {
  vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
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

// Scores of `rows` queries against up to W keys: score[row][key]. `keys_t` is the key block transposed, [D][W].
void scores_transposed(const float* q, const float* keys_t, float* score, int64_t rows, int64_t dim) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    vec s0{}, s1{}, s2{}, s3{};
    const float* a = q + r * dim;
    for (int64_t d = 0; d < dim; ++d) {
      const vec k = load(keys_t + d * W);
      s0 += k * a[d];
      s1 += k * a[dim + d];
      s2 += k * a[2 * dim + d];
      s3 += k * a[3 * dim + d];
    }
    store(score + r * W, s0);
    store(score + (r + 1) * W, s1);
    store(score + (r + 2) * W, s2);
    store(score + (r + 3) * W, s3);
  }
  for (; r < rows; ++r) {
    vec s{};
    for (int64_t d = 0; d < dim; ++d) s += load(keys_t + d * W) * q[r * dim + d];
    store(score + r * W, s);
  }
}

// acc[row] += Σ_key p[row][key] · value[key]
void accumulate(const float* p, const float* values, int64_t stride, float* acc, int64_t rows, int64_t keys, int64_t dim) {
  for (int64_t r = 0; r < rows; ++r) {
    float* out = acc + r * dim;
    int64_t d = 0;
    for (; d + W <= dim; d += W) {
      vec a = load(out + d);
      for (int64_t k = 0; k < keys; ++k) a += load(values + k * stride + d) * p[r * W + k];
      store(out + d, a);
    }
    for (; d < dim; ++d)
      for (int64_t k = 0; k < keys; ++k) out[d] += p[r * W + k] * values[k * stride + d];
  }
}

struct Attention {
  const float *query, *keys, *values;  // [T, N, D], [slots, K, D], [slots, K, D]
  const int32_t *starts, *contexts, *tables;
  float* out;
  int64_t max_blocks, block_size, heads, kv_heads, dim;
  float scale;
};

// The queries that share one key-value head, `count` tokens from `first` on: rows = count · N/K, online softmax.
void attend(const Attention& a, int64_t request, int64_t kv_head, int64_t first, int64_t count) {
  const int64_t group = a.heads / a.kv_heads, rows = count * group, dim = a.dim, stride = a.kv_heads * dim;
  const int64_t begin = a.starts[request], total = a.starts[request + 1] - begin;
  const int64_t earlier = a.contexts[request] - total;  // keys before this step's first token
  std::vector<float> buffer(size_t(rows * (2 * dim + W + 2) + dim * W));
  float *q = buffer.data(), *acc = q + rows * dim, *score = acc + rows * dim, *top = score + rows * W;
  float *mass = top + rows, *keys_t = mass + rows;
  std::fill(top, top + rows, -INFINITY);
  for (int64_t t = 0; t < count; ++t)
    for (int64_t g = 0; g < group; ++g) {
      const float* from = a.query + ((begin + first + t) * a.heads + kv_head * group + g) * dim;
      float* to = q + (t * group + g) * dim;
      for (int64_t d = 0; d < dim; ++d) to[d] = from[d] * a.scale;
    }
  const int64_t seen = earlier + first + count;  // keys that the last of these tokens sees
  for (int64_t key = 0; key < seen;) {
    const int64_t offset = key % a.block_size;
    const int64_t n = std::min({int64_t(W), a.block_size - offset, seen - key});
    const int64_t slot = int64_t(a.tables[request * a.max_blocks + key / a.block_size]) * a.block_size + offset;
    const float* k = a.keys + slot * stride + kv_head * dim;
    const float* v = a.values + slot * stride + kv_head * dim;
    if (rows >= 8) {
      for (int64_t j = 0; j < n; ++j)
        for (int64_t d = 0; d < dim; ++d) keys_t[d * W + j] = k[j * stride + d];
      scores_transposed(q, keys_t, score, rows, dim);
    } else {
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < n; ++j) score[r * W + j] = dot(q + r * dim, k + j * stride, dim);
    }
    for (int64_t r = 0; r < rows; ++r) {
      // the token of row r sees the keys up to and including its own position
      const int64_t visible = std::min(n, earlier + first + r / group + 1 - key);
      float* s = score + r * W;
      for (int64_t j = std::max<int64_t>(visible, 0); j < W; ++j) s[j] = -INFINITY;
      const float peak = std::max(top[r], largest(load(s)));
      if (peak == -INFINITY) {
        store(s, vec{});
        continue;
      }
      const float decay = top[r] == -INFINITY ? 0.0f : exp_one(top[r] - peak);
      vec p = exp_vec(load(s) - peak);
      for (int64_t j = std::max<int64_t>(visible, 0); j < W; ++j) p[j] = 0.0f;
      store(s, p);
      top[r] = peak;
      mass[r] = mass[r] * decay + sum(p);
      if (decay != 1.0f)
        for (int64_t d = 0; d < dim; ++d) acc[r * dim + d] *= decay;
    }
    accumulate(score, v, stride, acc, rows, n, dim);
    key += n;
  }
  for (int64_t r = 0; r < rows; ++r) {
    float* to = a.out + ((begin + first + r / group) * a.heads + kv_head * group + r % group) * dim;
    for (int64_t d = 0; d < dim; ++d) to[d] = acc[r * dim + d] / mass[r];
  }
}

struct Tile {
  int32_t request, kv_head, first, count;
};

constexpr int64_t TILE_TOKENS = 32;

}  // namespace

extern "C" {

void dc_rms_norm(const float* x, const float* weight, float eps, float* out, int64_t tokens, int64_t hidden) {
#pragma omp parallel for if (tokens * hidden > PARALLEL_FLOATS)
  for (int64_t t = 0; t < tokens; ++t) norm_row(x + t * hidden, weight, eps, out + t * hidden, hidden);
}

void dc_add_rms_norm(const float* x, const float* residual, const float* weight, float eps, float* out, float* total,
                     int64_t tokens, int64_t hidden) {
#pragma omp parallel for if (tokens * hidden > PARALLEL_FLOATS)
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t at = t * hidden;
    for (int64_t i = 0; i < hidden; ++i) total[at + i] = x[at + i] + residual[at + i];
    norm_row(total + at, weight, eps, out + at, hidden);
  }
}

void dc_silu_mul(const float* gate_up, float* out, int64_t tokens, int64_t inner) {
#pragma omp parallel for if (tokens * inner > PARALLEL_FLOATS)
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
                   const int64_t* positions, const int64_t* slots, float* keys, float* values, float* query,
                   int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim) {
  const int64_t width = (heads + 2 * kv_heads) * dim, half = dim / 2;
#pragma omp parallel for if (tokens * width > PARALLEL_FLOATS)
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<float> normed(size_t(dim), 0.0f);
    const float *row = qkv + t * width, *cos = table + positions[t] * dim, *sin = cos + half;
    for (int64_t h = 0; h < heads + kv_heads; ++h) {
      const float* x = row + h * dim;
      const bool is_key = h >= heads;
      float* to = is_key ? keys + (slots[t] * kv_heads + h - heads) * dim : query + (t * heads + h) * dim;
      if (q_norm != nullptr) {
        norm_row(x, is_key ? k_norm : q_norm, eps, normed.data(), dim);
        x = normed.data();
      }
      rotate(x, cos, sin, to, half);
    }
    std::memcpy(values + slots[t] * kv_heads * dim, row + (heads + kv_heads) * dim, size_t(kv_heads * dim) * sizeof(float));
  }
}

void dc_attention(const float* query, const float* keys, const float* values, const int32_t* starts,
                  const int32_t* contexts, const int32_t* tables, float* out, int64_t requests, int64_t max_blocks,
                  int64_t block_size, int64_t heads, int64_t kv_heads, int64_t dim, float scale) {
  const Attention a{query, keys, values, starts, contexts, tables, out, max_blocks, block_size, heads, kv_heads, dim, scale};
  std::vector<Tile> tiles;
  int64_t pairs = 0;
  for (int64_t r = 0; r < requests; ++r) {
    const int64_t count = starts[r + 1] - starts[r];
    pairs += count * contexts[r];
    for (int64_t first = 0; first < count; first += TILE_TOKENS)
      for (int64_t head = 0; head < kv_heads; ++head)
        tiles.push_back({int32_t(r), int32_t(head), int32_t(first), int32_t(std::min(TILE_TOKENS, count - first))});
  }
#pragma omp parallel for schedule(dynamic) if (pairs * heads * dim > PARALLEL_FLOATS)
  for (size_t i = 0; i < tiles.size(); ++i)
    attend(a, tiles[i].request, tiles[i].kv_head, tiles[i].first, tiles[i].count);
}

}  // extern "C"
