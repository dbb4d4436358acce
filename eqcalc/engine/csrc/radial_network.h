// Radial weights from the network itself, once per undirected pair, with their slopes:
//
//     b_n(r) = prefactor sin(q_n r) / r u(r / cutoff),   w = W_k silu(... silu(W_0 b))
//
// u: the polynomial envelope, or XPLOR's from an onset on (eqcalc.nn.radial). The sine and what it is
// divided by may be of the distance in units of the pair's bond (eqcalc.nn.transform).

#pragma once
#include "edges.h"
#include "envelope.h"
#include "gemm.h"

namespace {

struct Radial {
  const T *values, *slopes;
  I stride;
  const int *pair;

  struct Cursor {
    static constexpr T scale = T(1);
    const T *values, *slopes;

    V value(I weight) const { return load(values + weight); }
    void value_and_slope(I weight, V &value, V &slope) const
    {
      value = load(values + weight);
      slope = load(slopes + weight);
    }
  };
  Cursor at(I slot) const { return {values + pair[slot] * stride, slopes + pair[slot] * stride}; }
};

class RadialBasis {
 public:
  COLD void read(const Record &network, double cutoff)
  {
    const Record &from = network.record("basis");
    cutoff_ = cutoff;
    prefactor_ = from.number("prefactor");
    envelope_.read(from, cutoff);
    silu_ = static_cast<T>(from.number("silu"));
    if (network.has("agnesi")) {
      const Record &agnesi = network.record("agnesi");
      bonds_ = agnesi.numbers("bonds");
      a_ = agnesi.number("a");
      q_ = agnesi.number("q");
      p_ = agnesi.number("p");
    }
    orders_ = from.numbers("orders");
    width_ = (static_cast<I>(orders_.size()) + PADDING - 1) / PADDING * PADDING;
  }

  void begin(const Edges &edges, int threads)
  {
    find_pairs(edges);
    T *values = values_.get(num_pairs() * width_), *slopes = slopes_.get(num_pairs() * width_);
    in_ranges(num_pairs(), threads, [&](I begin, I end) {
      for (I p = begin; p < end; p++) {
        const double r = distance_[p];
        double x = r, dx = 1.0;
        if (!bonds_.empty()) transform(r / bonds_[kind_of_[p]], x, dx);
        if (!bonds_.empty()) dx /= bonds_[kind_of_[p]];
        double u = 0.0, du = 0.0;
        envelope_(r, u, du);
        std::fill_n(values + p * width_, width_, T(0));
        std::fill_n(slopes + p * width_, width_, T(0));
        for (std::size_t k = 0; k < orders_.size(); k++) {
          const double s = prefactor_ * sine(orders_[k] * x) / x;
          const double ds = (prefactor_ * orders_[k] * cosine(orders_[k] * x) / x - s / x) * dx;
          values[p * width_ + k] = static_cast<T>(s * u);
          slopes[p * width_ + k] = static_cast<T>(ds * u + s * du);
        }
      }
    });
  }

  I width() const { return width_; }
  I num_pairs() const { return static_cast<I>(distance_.size()); }
  const int *pair() const { return pair_.get(); }
  const T *values() const { return values_.get(); }
  const T *slopes() const { return slopes_.get(); }
  T silu() const { return silu_; }

  // of the layer in work
  Buffer<T> weights, weight_slopes;

  I bytes() const
  {
    return weights.bytes() + weight_slopes.bytes() + pair_.bytes() + values_.bytes() +
        slopes_.bytes() + static_cast<I>(distance_.capacity() * sizeof(double));
  }

 private:
  double cutoff_ = 0.0, prefactor_ = 0.0;
  Envelope envelope_;
  double a_ = 0.0, q_ = 0.0, p_ = 0.0;
  std::vector<double> bonds_;     // Å, of kinds; empty: distances are not transformed
  T silu_ = 0;
  std::vector<double> orders_;
  I width_ = 0;
  std::vector<double> distance_;     // of pairs
  std::vector<int> kind_of_;         // of bond, likewise
  Buffer<int> pair_;                 // of slots
  Buffer<T> values_, slopes_;        // [pairs, width]

  // 1 / (1 + a y^q / (1 + y^(q - p))) and its slope
  void transform(double y, double &x, double &dx) const
  {
    const double top = a_ * power(y, q_), inner = power(y, q_ - p_), bottom = 1.0 + inner;
    const double ratio = top / bottom;
    x = 1.0 / (1.0 + ratio);
    dx = -x * x * ratio / y * (q_ - (q_ - p_) * inner / bottom);
  }

  // An edge and its reverse share a pair; an edge of a ghost may have no reverse.
  void find_pairs(const Edges &edges)
  {
    int *pair = pair_.get(edges.num_slots() + 1);
    std::fill_n(pair, edges.num_slots(), -1);
    distance_.clear();
    kind_of_.clear();
    const int *row = edges.rows(false);
    const double *r = edges.distances();
    for (I i = 0; i < edges.num_centres(); i++) {
      const Centre centre = edges.of(i);
      for (I e = centre.slot; e < centre.slot + centre.count; e++) {
        if (pair[e] >= 0) continue;
        pair[e] = static_cast<int>(distance_.size());
        distance_.push_back(r[e]);
        if (edges.kinds()) kind_of_.push_back(edges.kinds()[e]);
        const I j = row[e];
        if (j >= edges.num_centres()) continue;
        const Centre other = edges.of(j);
        const T *u = edges.directions(e);
        for (I f = other.slot; f < other.slot + other.count; f++) {
          if (row[f] != i || pair[f] >= 0 || std::abs(r[f] - r[e]) > 1e-9) continue;
          const T *v = edges.directions(f);
          const T apart = std::abs(u[0] + v[0]) + std::abs(u[L] + v[L]) +
              std::abs(u[2 * L] + v[2 * L]);
          if (apart > T(1e-5)) continue;
          pair[f] = pair[e];
          break;
        }
      }
    }
    // spare lanes read the first pair
    for (I e = 0; e < edges.num_slots(); e++) pair[e] = std::max(pair[e], 0);
  }
};

class RadialFunctions {
 public:
  COLD void read(const Record &from, I num_weights, const RadialBasis &)
  {
    num_weights_ = num_weights;
    for (const Record &layer : from.records("matrices")) {
      const Array &values = layer.array("matrix");
      Matrix m;
      m.inputs = values.length(0);
      m.outputs = values.length(1);
      values.copy(m.values.get(values.size()));
      matrices_.push_back(std::move(m));
    }
  }

  Radial weights(RadialBasis &basis, const Edges &, int threads, bool with_slopes)
  {
    const I pairs = basis.num_pairs();
    T *values = basis.weights.get(pairs * num_weights_);
    T *slopes = with_slopes ? basis.weight_slopes.get(pairs * num_weights_) : values;
    I widest = 0;
    for (const Matrix &m : matrices_) widest = std::max(widest, std::max(m.inputs, m.outputs));
    if (static_cast<int>(scratch_.size()) < threads) scratch_.resize(threads);
    for (int t = 0; t < threads; t++) scratch_[t].get(4 * PAIRS * widest);
    const I blocks = (pairs + PAIRS - 1) / PAIRS;
    in_parallel(threads, threads, [&](I share) {
      T *memory = scratch_[share].data();
      const I end = std::min(pairs, blocks * (share + 1) / threads * PAIRS);
      for (I first = blocks * share / threads * PAIRS; first < end; first += PAIRS) {
        const int count = static_cast<int>(std::min<I>(PAIRS, pairs - first));
        block(basis, first, count, with_slopes, memory, widest, values + first * num_weights_,
              slopes + first * num_weights_);
      }
    });
    return {values, slopes, num_weights_, basis.pair()};
  }

  I bytes() const { return 0; }

 private:
  static constexpr int PAIRS = 24;
  struct Matrix {
    I inputs, outputs;
    Buffer<T> values;
  };
  std::vector<Matrix> matrices_;
  std::vector<Buffer<T>> scratch_;
  I num_weights_ = 0;

  void block(const RadialBasis &basis, I first, int count, bool with_slopes, T *memory, I widest,
             T *values, T *slopes)
  {
    const T *in = basis.values() + first * basis.width();
    const T *in_slope = basis.slopes() + first * basis.width();
    const I size = PAIRS * widest;
    for (std::size_t n = 0; n < matrices_.size(); n++) {
      const Matrix &m = matrices_[n];
      const bool last = n + 1 == matrices_.size();
      T *out = last ? values : memory + (n % 2) * 2 * size;
      T *out_slope = last ? slopes : out + size;
      multiply(count, m, in, out);
      if (with_slopes) multiply(count, m, in_slope, out_slope);
      if (!last) {
        for (I c = 0; c < count * m.outputs; c += L) {
          const V x = load(out + c), s = sigmoid(x);
          if (with_slopes)
            store(out_slope + c, load(out_slope + c) * basis.silu() * (s + x * s * (T(1) - s)));
          store(out + c, basis.silu() * x * s);
        }
      }
      in = out;
      in_slope = out_slope;
    }
  }

  // out = in m. Columns are outermost, so that their part of the matrix stays in the cache; where
  // there are fewer rows than a tile has, it has the last one again.
  static void multiply(int count, const Matrix &m, const T *in, T *out)
  {
    const T *x[PAIRS];
    T *y[PAIRS];
    for (int p = 0; p < PAIRS; p++) {
      x[p] = in + std::min(p, count - 1) * m.inputs;
      y[p] = out + std::min(p, count - 1) * m.outputs;
    }
    const int inputs = static_cast<int>(m.inputs), outputs = static_cast<int>(m.outputs);
    over_columns(0, outputs, [&](int at, auto vectors, int) {
      constexpr int N = vectors;
      for (int p = 0; p < count; p += GEMM_ROWS)
        gemm_tile<GEMM_ROWS, N, true>(inputs, x + p, m.values.get() + at, outputs, y + p, at);
    });
  }
};

}     // namespace
