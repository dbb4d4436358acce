// Linear maps and gates of training: rows of features times matrices, and what their first and
// second derivatives need. All sums have the same order with any number of threads.
//
// A map has blocks (irreps): y[n, m, o] = alpha sum_i x[n, m, i] w[species(n), i, o]. It is linear
// in x and in w, so that three kernels are closed under differentiation:
//   apply      y    = x w
//   transposed dx   = g w^T
//   outer      dw   = x^T g     (summed over the atoms of a species and over m)

#pragma once
#include "gemm.h"
#include "generated/scales.h"

namespace {

typedef T VU __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T)), may_alias));

inline V load_any(const T *p)
{
  return *reinterpret_cast<const VU *>(p);
}
inline void store_any(T *p, V v)
{
  *reinterpret_cast<VU *>(p) = v;
}

inline V load_part(const T *p, int lanes)
{
  if (lanes == L) return load_any(p);
  V v = {};
  std::memcpy(&v, p, lanes * sizeof(T));
  return v;
}

inline void store_part(T *p, V v, int lanes)
{
  if (lanes == L)
    store_any(p, v);
  else
    std::memcpy(p, &v, lanes * sizeof(T));
}

inline int padded(I count)
{
  return (count + L - 1) / L * L;
}

// A tile's vectors to rows that begin anywhere: `lanes` of the last one.
template <int R, int N, class Row>
INLINED inline void store_tile(T alpha, const V (&sum)[R][N], int lanes, const Row &row)
{
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    T *out = row(r);
#pragma GCC unroll 4
    for (int n = 0; n + 1 < N; n++) store_any(out + n * L, alpha * sum[r][n]);
    store_part(out + (N - 1) * L, alpha * sum[r][N - 1], lanes);
  }
}

// y[r] = alpha x[r] w, w [inputs, width] with zeros beyond `outputs`
inline void apply_rows(int rows, int inputs, const T *const *x, const T *w, int width, int outputs,
                       T alpha, T *const *y)
{
  over_rows(rows, [&](int first, auto count) INLINED {
    constexpr int R = count;
    over_columns(0, outputs, [&](int at, auto vectors, int lanes) INLINED {
      constexpr int N = vectors;
      V sum[R][N] = {};
      const T *row = w + at;
      accumulate(
          inputs, sum, [&](int k, int r) INLINED { return x[first + r][k]; },
          [&](int, int n) INLINED { return load_any(row + n * L); },
          [&]() INLINED { row += width; });
      store_tile(alpha, sum, lanes, [&](int r) INLINED { return y[first + r] + at; });
    });
  });
}

// w[i, o] = alpha sum_r x[r][i] g[r][o] for i = first .. first + count - 1 and
// o = column .. outputs - 1
inline void outer_rows(int rows, const T *const *x, const T *const *g, int first, int count,
                       int outputs, T alpha, T *w, int column = 0)
{
  with_rows<GEMM_ROWS>(count, [&](auto constant) {
    constexpr int R = constant;
    over_columns(column, outputs, [&](int at, auto vectors, int lanes) {
      constexpr int N = vectors;
      V sum[R][N] = {};
      accumulate(
          rows, sum, [&](int k, int r) INLINED { return x[k][first + r]; },
          [&](int k, int n) INLINED {
            const T *row = g[k] + at + n * L;
            return n + 1 < N ? load_any(row) : load_part(row, lanes);
          },
          []() INLINED {});
      store_tile(alpha, sum, lanes,
                 [&](int r) INLINED { return w + static_cast<I>(first + r) * outputs + at; });
    });
  });
}

// What Python describes: [blocks, 6] first column in, rows, channels in, channels out, first
// weight, first column out; no channels in: the block comes out zero.
struct LinearMap {
  I blocks;
  const I *block;
  I width_in, width_out, weights, species;
};

struct Block {
  I in, rows, inputs, outputs, weight, out;
  explicit Block(const LinearMap &map, I n) { std::memcpy(this, map.block + 6 * n, sizeof(*this)); }
  T alpha() const { return T(1) / root(T(inputs)); }
};

// atoms by species: those of s are order[start[s]] .. order[start[s + 1] - 1]
struct Groups {
  std::vector<I> order, start;
  Groups(const LinearMap &map, I atoms, const I *species) : order(atoms), start(map.species + 1, 0)
  {
    if (map.species == 1) {
      for (I n = 0; n < atoms; n++) order[n] = n;
      start[1] = atoms;
      return;
    }
    for (I n = 0; n < atoms; n++) {
      if (species[n] < 0 || species[n] >= map.species) throw std::invalid_argument("species");
      start[species[n] + 1]++;
    }
    for (I s = 0; s < map.species; s++) start[s + 1] += start[s];
    std::vector<I> next(start.begin(), start.end() - 1);
    for (I n = 0; n < atoms; n++) order[next[species[n]]++] = n;
  }
};

// the rows of one block and species
template <class U>
std::vector<U> rows_of(const Groups &groups, I s, U data, I width, I column, I rows, I channels)
{
  std::vector<U> pointers;
  pointers.reserve((groups.start[s + 1] - groups.start[s]) * rows);
  for (I k = groups.start[s]; k < groups.start[s + 1]; k++)
    for (I m = 0; m < rows; m++)
      pointers.push_back(data + groups.order[k] * width + column + m * channels);
  return pointers;
}

constexpr I WORTH = 1 << 20;     // products for which threads are woken

inline int threads_for(I products)
{
  return products > WORTH ? most_threads() : 1;
}

inline I products_of(const LinearMap &map, I atoms)
{
  I products = 0;
  for (I n = 0; n < map.blocks; n++) {
    const Block b(map, n);
    products += atoms * b.rows * b.inputs * b.outputs;
  }
  return products;
}

// y = x w or, with `transpose`, dx = g w^T
void apply_map(const LinearMap &map, I atoms, const I *species, const T *from, const T *w, T *to,
               bool transpose)
{
  const Groups groups(map, atoms, species);
  const auto one = [&](I item) {
    const I n = item / map.species, s = item % map.species;
    const Block b(map, n);
    const I taken = transpose ? b.outputs : b.inputs, made = transpose ? b.inputs : b.outputs;
    const I width_from = transpose ? map.width_out : map.width_in;
    const I width_to = transpose ? map.width_in : map.width_out;
    const I at_from = transpose ? b.out : b.in, at_to = transpose ? b.in : b.out;
    const auto x = rows_of(groups, s, from, width_from, at_from, b.rows, taken);
    const auto y = rows_of(groups, s, to, width_to, at_to, b.rows, made);
    if (x.empty()) return;
    if (b.inputs == 0) {
      if (!transpose)
        for (T *row : y) std::fill_n(row, made, T(0));
      return;
    }
    const T *matrix = w + s * map.weights + b.weight;
    static thread_local Buffer<T> memory;
    int width = made;
    if (transpose || made % L) {
      width = padded(made);
      T *packed = memory.get(taken * width);
      if (transpose) {
        for (I k = 0; k < taken; k += L)     // tiles that stay in the cache
          for (I o = 0; o < made; o++)
            for (I i = k; i < std::min<I>(k + L, taken); i++)
              packed[i * width + o] = matrix[o * taken + i];
        for (I i = 0; i < taken; i++)
          std::fill(packed + i * width + made, packed + (i + 1) * width, T(0));
      } else {
        for (I i = 0; i < taken; i++) {
          std::copy_n(matrix + i * made, made, packed + i * width);
          std::fill(packed + i * width + made, packed + (i + 1) * width, T(0));
        }
      }
      matrix = packed;
    }
    apply_rows(x.size(), taken, x.data(), matrix, width, made, b.alpha(), y.data());
  };
  in_parallel(map.blocks * map.species, threads_for(products_of(map, atoms)), one);
}

// sizes: what LinearMap holds beside the blocks
inline LinearMap map_of(const I *sizes, const I *block)
{
  return {sizes[0], block, sizes[1], sizes[2], sizes[3], sizes[4]};
}

}     // namespace

extern "C" int linear_apply(I atoms, const I *sizes, const I *block, const I *species, const T *x,
                            const T *w, T *y)
{
  return guarded([&] { apply_map(map_of(sizes, block), atoms, species, x, w, y, false); });
}

extern "C" int linear_transposed(I atoms, const I *sizes, const I *block, const I *species,
                                 const T *g, const T *w, T *dx)
{
  return guarded([&] { apply_map(map_of(sizes, block), atoms, species, g, w, dx, true); });
}

extern "C" int linear_outer(I atoms, const I *sizes, const I *block, const I *species, const T *x,
                            const T *g, T *dw)
{
  return guarded([&] {
    const LinearMap map = map_of(sizes, block);
    const Groups groups(map, atoms, species);
    in_parallel(map.blocks * map.species, threads_for(products_of(map, atoms)), [&](I item) {
      const I n = item / map.species, s = item % map.species;
      const Block b(map, n);
      const auto xs = rows_of(groups, s, x, map.width_in, b.in, b.rows, b.inputs);
      const auto gs = rows_of(groups, s, g, map.width_out, b.out, b.rows, b.outputs);
      T *out = dw + s * map.weights + b.weight;
      for (I i = 0; i < b.inputs; i += GEMM_ROWS)
        outer_rows(xs.size(), xs.data(), gs.data(), i, std::min<I>(GEMM_ROWS, b.inputs - i),
                   b.outputs, b.alpha(), out);
    });
  });
}

// ---- gates

namespace {

// value, slope and curvature of c f(x); kind 0: SiLU, 1: tanh, 2: sigmoid (eqcalc.nn.activations)
struct Activation {
  V value, slope, curvature;
};

inline Activation activation(I kind, V x)
{
  const V s = sigmoid(kind == 1 ? T(2) * x : x);
  const V d = s * (T(1) - s);
  if (kind == 0) {
    const T c = T(SILU);
    return {c * x * s, c * (s + x * d), c * d * (T(2) + x * (T(1) - T(2) * s))};
  }
  if (kind == 1) {
    const T c = T(TANH);
    const V t = T(2) * s - T(1);
    return {c * t, T(4) * c * d, T(-8) * c * t * d};
  }
  const T c = T(SIGMOID);
  return {c * s, c * d, c * d * (T(1) - T(2) * s)};
}

// what multiplies the channels of a gated block
inline Activation gate(I kind, V x)
{
  return activation(kind == 3 ? 0 : kind, x);
}

struct GateBlock {     // first column in, rows, channels, first gate, kind, first column out
  I in, rows, channels, gate, kind, out;
};

// calls f(atom) for all atoms
template <class F> inline int over_atoms(I atoms, I width, const F &f)
{
  return guarded([&] {
    in_ranges(atoms, threads_for(16 * atoms * width), [&](I begin, I end) {
      for (I n = begin; n < end; n++) f(n);
    });
  });
}

// calls f(block, first channel, lanes) for all blocks
template <class F> inline void over_gate(I blocks, const I *block, const F &f)
{
  for (I n = 0; n < blocks; n++) {
    GateBlock b;
    std::memcpy(&b, block + 6 * n, sizeof(b));
    for (I c = 0; c < b.channels; c += L) f(b, c, static_cast<int>(std::min<I>(L, b.channels - c)));
  }
}

}     // namespace

extern "C" int gate_forward(I atoms, const I *sizes, const I *block, const T *x, T *y)
{
  return over_atoms(atoms, sizes[1], [=](I n) {
    const T *xn = x + n * sizes[1];
    T *yn = y + n * sizes[2];
    over_gate(sizes[0], block, [&](const GateBlock &b, I c, int lanes) {
      if (b.kind < 2) {
        const V value = activation(b.kind, load_part(xn + b.in + c, lanes)).value;
        store_part(yn + b.out + c, value, lanes);
        return;
      }
      const V h = gate(b.kind, load_part(xn + b.gate + c, lanes)).value;
      for (I m = 0; m < b.rows; m++) {
        const I at = m * b.channels + c;
        store_part(yn + b.out + at, h * load_part(xn + b.in + at, lanes), lanes);
      }
    });
  });
}

// dx = (dy/dx)^T g
extern "C" int gate_backward(I atoms, const I *sizes, const I *block, const T *x, const T *g, T *dx)
{
  return over_atoms(atoms, sizes[1], [=](I n) {
    const T *xn = x + n * sizes[1], *gn = g + n * sizes[2];
    T *dxn = dx + n * sizes[1];
    over_gate(sizes[0], block, [&](const GateBlock &b, I c, int lanes) {
      if (b.kind < 2) {
        const V slope = activation(b.kind, load_part(xn + b.in + c, lanes)).slope;
        store_part(dxn + b.in + c, slope * load_part(gn + b.out + c, lanes), lanes);
        return;
      }
      const Activation h = gate(b.kind, load_part(xn + b.gate + c, lanes));
      V sum = {};
      for (I m = 0; m < b.rows; m++) {
        const I at = m * b.channels + c;
        const V gm = load_part(gn + b.out + at, lanes);
        sum += gm * load_part(xn + b.in + at, lanes);
        store_part(dxn + b.in + at, h.value * gm, lanes);
      }
      store_part(dxn + b.gate + c, h.slope * sum, lanes);
    });
  });
}

// the gradient of <u, dx> with respect to g and x
extern "C" int gate_second(I atoms, const I *sizes, const I *block, const T *x, const T *g,
                           const T *u, T *dg, T *dx)
{
  return over_atoms(atoms, sizes[1], [=](I n) {
    const T *xn = x + n * sizes[1], *gn = g + n * sizes[2], *un = u + n * sizes[1];
    T *dxn = dx + n * sizes[1], *dgn = dg + n * sizes[2];
    over_gate(sizes[0], block, [&](const GateBlock &b, I c, int lanes) {
      if (b.kind < 2) {
        const Activation f = activation(b.kind, load_part(xn + b.in + c, lanes));
        const V v = load_part(un + b.in + c, lanes);
        store_part(dgn + b.out + c, v * f.slope, lanes);
        store_part(dxn + b.in + c, v * f.curvature * load_part(gn + b.out + c, lanes), lanes);
        return;
      }
      const Activation h = gate(b.kind, load_part(xn + b.gate + c, lanes));
      const V q = load_part(un + b.gate + c, lanes);
      V first = {}, second = {};
      for (I m = 0; m < b.rows; m++) {
        const I at = m * b.channels + c;
        const V gm = load_part(gn + b.out + at, lanes), xm = load_part(xn + b.in + at, lanes);
        const V um = load_part(un + b.in + at, lanes);
        first += um * gm;
        second += xm * gm;
        store_part(dgn + b.out + at, um * h.value + q * xm * h.slope, lanes);
        store_part(dxn + b.in + at, q * gm * h.slope, lanes);
      }
      store_part(dxn + b.gate + c, first * h.slope + q * second * h.curvature, lanes);
    });
  });
}
