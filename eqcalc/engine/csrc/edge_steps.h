// Operations on messages of edges (eqcalc.engine.message_plan), for a TILE of a centre's edges whose
// values are in the cache. Those of the way back are operations of their own, the transposes of
// eqcalc.program.transpose. An operation sets its target, but for linear maps, which add to it where
// they are not the first, and what goes to atoms.

#pragma once
#include "frames.h"
#include "packed.h"
#include "radial_table.h"
#include "sphere.h"

namespace {

// what the way back adds up for every edge, a vector of terms each
enum Owed { TORQUE = 0, LENGTH = 3, ENVELOPE = 4, OWED = 5 };

struct Tile {
  int count;                // edges
  const int *rows;          // of neighbours, in x
  const T *x, *own;         // features of neighbours [rows, width]; of the centre
  T *dx, *own_gradient;     // likewise, to be added to; null: nobody wants them
  I width;
  const Radial::Cursor *radial;     // of edges
  const T *y;                       // groups [NUM_Y][L] of harmonics
  T *dy;                            // and their gradient, likewise; on the way back only
  const T *frames;                  // groups [elements][L] of Wigner matrices
  I elements;
  const T *envelope;     // of edges
  T *const *values;      // by number [TILE, width of the value]
  const I *widths;
  T *sum;      // of the centre; on the way back its gradient
  T *owed;     // [OWED, TILE, L]
  T *room;     // what operations need of it for themselves
  // of attention, by head: largest exponent, sum of all shares, <sum, its gradient>
  T *top, *total;
  const T *product;
  bool known;     // whether top and total are final

  T *value(int number, int edge) const { return values[number] + edge * widths[number]; }
  const T *matrix(int edge, I first) const
  {
    return frames + (edge / L * elements + first) * L + edge % L;
  }
  const T *harmonics(int edge) const { return y + edge / L * L * NUM_Y + edge % L; }
  void owe(int what, int edge, V term) const
  {
    T *at = owed + (what * TILE + edge) * L;
    store(at, load(at) + term);
  }
};

class EdgeStep {
 public:
  virtual ~EdgeStep() = default;
  virtual void apply(const Tile &tile) const = 0;
  virtual I room() const { return 0; }     // numbers
};

// rows [dim, stride_in] of each edge times a matrix
class EdgeLinear final : public EdgeStep {
 public:
  EdgeLinear(const Record &from, int source, int target) :
      source_(source), target_(target), starts_(from.integer("starts"))
  {
    for (const Record &b : from.records("blocks")) {
      Buffer<T> matrix;
      b.array("matrix").copy(matrix.get(b.array("matrix").size()));
      const I inputs = b.integer("stride_in"), outputs = b.integer("stride_out");
      blocks_.push_back({b.integer("at_in"), inputs, b.integer("dim"), b.integer("at_out"), outputs,
                         PackedMatrix(inputs, outputs, matrix.get())});
      const I first = blocks_.back().at_out;
      reached_ = first == reached_ ? first + blocks_.back().dim * outputs : -1;
    }
  }

  void apply(const Tile &tile) const override
  {
    const I width = tile.widths[target_];
    const bool set = starts_ && reached_ == width;
    if (starts_ && !set) std::fill_n(tile.value(target_, 0), tile.count * width, T(0));
    const T *x[TILE * MOST_EDGE_ROWS];
    T *y[TILE * MOST_EDGE_ROWS];
    for (const Piece &p : blocks_) {
      int rows = 0;
      for (int e = 0; e < tile.count; e++)
        for (I m = 0; m < p.dim; m++, rows++) {
          x[rows] = tile.value(source_, e) + p.at_in + m * p.stride_in;
          y[rows] = tile.value(target_, e) + p.at_out + m * p.stride_out;
        }
      if (set)
        p.matrix.apply<true>(rows, x, y, tile.room);
      else
        p.matrix.apply<false>(rows, x, y, tile.room);
    }
  }

  I room() const override
  {
    I most = 0;
    for (const Piece &p : blocks_) most = std::max(most, p.matrix.room(TILE * p.dim));
    return most;
  }

 private:
  struct Piece {
    I at_in, stride_in, dim, at_out, stride_out;
    PackedMatrix matrix;
  };
  int source_, target_;
  bool starts_;
  I reached_ = 0;     // columns of the target, where blocks follow each other without gaps; else -1
  std::vector<Piece> blocks_;
};

// rows times radial functions, and the way back
class Modulate final : public EdgeStep {
 public:
  // value: what was modulated; -1: this is the way forward
  Modulate(const Record &from, int source, int target, int value) :
      source_(source), target_(target), value_(value)
  {
    for (const Record &b : from.records("blocks"))
      blocks_.push_back(
          {b.integer("weight"), b.integer("at"), b.integer("dim"), b.integer("stride")});
  }

  void apply(const Tile &tile) const override
  {
    for (int e = 0; e < tile.count; e++) {
      const Radial::Cursor &radial = tile.radial[e];
      const T *x = tile.value(source_, e);
      T *y = tile.value(target_, e);
      if (value_ < 0) {
        for (const Piece &p : blocks_)
          for (I c = 0; c < p.stride; c += L) {
            const V w = radial.value(p.weight + c);
            for (I at = p.at + c; at < p.at + p.dim * p.stride; at += p.stride)
              store(y + at, w * load(x + at));
          }
        continue;
      }
      const T *before = tile.value(value_, e);
      V slope = {};
      for (const Piece &p : blocks_)
        for (I c = 0; c < p.stride; c += L) {
          V w, dw, sum = {};
          radial.value_and_slope(p.weight + c, w, dw);
          for (I at = p.at + c; at < p.at + p.dim * p.stride; at += p.stride) {
            const V g = load(x + at);
            sum += g * load(before + at);
            store(y + at, w * g);
          }
          slope += dw * sum;
        }
      tile.owe(LENGTH, e, slope * radial.scale);
    }
  }

 private:
  struct Piece {
    I weight, at, dim, stride;
  };
  int source_, target_, value_;
  std::vector<Piece> blocks_;
};

// scalars through an activation, other rows times activated scalars, and the way back
class EdgeGate final : public EdgeStep {
 public:
  // value: what went through; -1: this is the way forward
  EdgeGate(const Record &from, int source, int target, int value) :
      source_(source), target_(target), value_(value)
  {
    for (const Record &b : from.records("blocks"))
      blocks_.push_back({Activation(b.text("activation"), b.number("scale")), b.integer("mul"),
                         b.has("gate") ? b.integer("gate") : -1, b.indices("rows_in"),
                         b.indices("rows_out")});
  }

  void apply(const Tile &tile) const override
  {
    for (int e = 0; e < tile.count; e++)
      for (const Piece &p : blocks_)
        if (value_ < 0)
          forward(p, tile.value(source_, e), tile.value(target_, e));
        else
          backward(p, tile.value(value_, e), tile.value(source_, e), tile.value(target_, e));
  }

 private:
  struct Piece {
    Activation activation;
    I mul, gate;     // gate: -1 for scalars
    std::vector<int> rows_in, rows_out;
  };
  int source_, target_, value_;
  std::vector<Piece> blocks_;

  static void forward(const Piece &p, const T *x, T *y)
  {
    for (I c = 0; c < p.mul; c += L) {
      if (p.gate < 0) {
        store(y + p.rows_out[0] + c, p.activation.value(load(x + p.rows_in[0] + c)));
        continue;
      }
      const V gate = p.activation.value(load(x + p.gate + c));
      for (std::size_t r = 0; r < p.rows_in.size(); r++)
        store(y + p.rows_out[r] + c, gate * load(x + p.rows_in[r] + c));
    }
  }

  static void backward(const Piece &p, const T *x, const T *g, T *dx)
  {
    for (I c = 0; c < p.mul; c += L) {
      V value, slope, sum = {};
      p.activation.value_and_slope(load(x + (p.gate < 0 ? p.rows_in[0] : p.gate) + c), value,
                                   slope);
      if (p.gate < 0) {
        store(dx + p.rows_in[0] + c, load(g + p.rows_out[0] + c) * slope);
        continue;
      }
      for (std::size_t r = 0; r < p.rows_in.size(); r++) {
        const V gr = load(g + p.rows_out[r] + c);
        sum += gr * load(x + p.rows_in[r] + c);
        store(dx + p.rows_in[r] + c, gr * value);
      }
      store(dx + p.gate + c, sum * slope);
    }
  }
};

// a function on the sphere, and the way back (sphere.h)
class EdgeSphere final : public EdgeStep {
 public:
  // value: what went through; -1: this is the way forward
  EdgeSphere(const Record &from, int source, int target, int value) :
      source_(source), target_(target), value_(value), sphere_(from.record("sphere"))
  {
  }

  void apply(const Tile &tile) const override
  {
    for (int e = 0; e < tile.count; e++)
      if (value_ < 0)
        sphere_.forward(tile.value(source_, e), tile.value(target_, e));
      else
        sphere_.backward(tile.value(value_, e), tile.value(source_, e), tile.value(target_, e),
                         true);
  }

 private:
  int source_, target_, value_;
  SphereFunction sphere_;
};

// a degree of features in frames: its channels in a row of an atom, and its rows in one of an edge
struct Degree {
  int degree, order;
  I at, stride;
  std::vector<int> rows;

  explicit Degree(const Record &from) :
      degree(static_cast<int>(from.integer("degree"))),
      order(static_cast<int>(from.integer("order"))), at(from.integer("at")),
      stride(from.integer("stride")), rows(from.indices("rows"))
  {
  }
  static std::vector<Degree> all(const Record &from)
  {
    std::vector<Degree> found;
    for (const Record &record : from.records("degrees")) found.emplace_back(record);
    return found;
  }
};

// features of both atoms in the edge's frame: D x, the neighbour's channels, then the centre's
class ToFrames final : public EdgeStep {
 public:
  ToFrames(const Record &from, const Frames &frames, int target) :
      frames_(frames), target_(target), degrees_(Degree::all(from))
  {
  }

  void apply(const Tile &tile) const override
  {
    for (const Degree &d : degrees_)
      with_frame<FRAME_DEGREE>(d.degree, d.order, [&](auto rows, auto columns) {
        constexpr int R = rows, C = columns;
        for (int e = 0; e < tile.count; e++) {
          const T *matrix = tile.matrix(e, frames_.first(d.degree));
          for (int side = 0; side < 2; side++) {
            const T *x = (side ? tile.own : tile.x + tile.rows[e] * tile.width) + d.at;
            T *y = tile.value(target_, e) + side * d.stride;
            for (I c = 0; c < d.stride; c += L) {
              V in[C], out[R];
              for (int n = 0; n < C; n++) in[n] = load(x + n * d.stride + c);
              turn<R, C>(matrix, in, out);
              for (int r = 0; r < R; r++) store(y + d.rows[r] + c, out[r]);
            }
          }
        }
      });
  }

 private:
  const Frames &frames_;
  int target_;
  std::vector<Degree> degrees_;
};

// its transpose: D^T g to both atoms, and -<D^T g, J x> to the torque
class FromFrames final : public EdgeStep {
 public:
  FromFrames(const Record &from, const Frames &frames, int source) :
      frames_(frames), source_(source), degrees_(Degree::all(from))
  {
  }

  void apply(const Tile &tile) const override
  {
    for (const Degree &d : degrees_) {
      if (d.degree == 0 && !tile.dx) continue;
      with_frame<FRAME_DEGREE>(d.degree, d.order, [&](auto rows, auto columns) {
        constexpr int R = rows, C = columns;
        for (int e = 0; e < tile.count; e++) {
          const T *matrix = tile.matrix(e, frames_.first(d.degree));
          V torques[3] = {};
          for (int side = 0; side < 2; side++) {
            const I row = side ? 0 : tile.rows[e] * tile.width;
            const T *x = (side ? tile.own : tile.x + row) + d.at;
            const T *g = tile.value(source_, e) + side * d.stride;
            T *to = side ? tile.own_gradient : tile.dx ? tile.dx + row : nullptr;
            for (I c = 0; c < d.stride; c += L) {
              V in[C], back[C] = {}, turned[R];
              for (int r = 0; r < R; r++) turned[r] = load(g + d.rows[r] + c);
              turn_back<R, C>(matrix, turned, back);
              for (int n = 0; n < C; n++) in[n] = load(x + n * d.stride + c);
              torque(columns, in, back, torques);
              if (!to) continue;
              for (int n = 0; n < C; n++) {
                T *at = to + d.at + n * d.stride + c;
                store(at, load(at) + back[n]);
              }
            }
          }
          for (int k = 0; k < 3 && C > 1; k++) tile.owe(TORQUE + k, e, torques[k]);
        }
      });
    }
  }

 private:
  const Frames &frames_;
  int source_;
  std::vector<Degree> degrees_;
};

// sum_e a_e D^T z_e to the centre; a: the envelope, or weights of channels
class FrameSum final : public EdgeStep {
 public:
  FrameSum(const Record &from, const Frames &frames, int source, int weights) :
      frames_(frames), source_(source), weights_(weights), degrees_(Degree::all(from))
  {
  }

  void apply(const Tile &tile) const override
  {
    for (const Degree &d : degrees_)
      with_frame<FRAME_DEGREE>(d.degree, d.order, [&](auto rows, auto columns) {
        constexpr int R = rows, C = columns;
        for (I c = 0; c < d.stride; c += L) {
          V sums[C];
          T *to = tile.sum + d.at + c;
          for (int n = 0; n < C; n++) sums[n] = load(to + n * d.stride);
          for (int e = 0; e < tile.count; e++) {
            const V a = weights_ < 0 ? all(tile.envelope[e]) : load(tile.value(weights_, e) + c);
            const T *z = tile.value(source_, e) + c;
            V weighted[R];
            for (int r = 0; r < R; r++) weighted[r] = a * load(z + d.rows[r]);
            turn_back<R, C>(tile.matrix(e, frames_.first(d.degree)), weighted, sums);
          }
          for (int n = 0; n < C; n++) store(to + n * d.stride, sums[n]);
        }
      });
  }

 private:
  const Frames &frames_;
  int source_, weights_;
  std::vector<Degree> degrees_;
};

// its transpose: a D g to the edges, <z, D g> to the weights or the envelope, <g, J a D^T z> to the
// torque
class FrameSpread final : public EdgeStep {
 public:
  // value: z; weight_gradient: -1 where the envelope is the weight
  FrameSpread(const Record &from, const Frames &frames, int target, int value, int weights,
              int weight_gradient) :
      frames_(frames), target_(target), value_(value), weights_(weights),
      weight_gradient_(weight_gradient), degrees_(Degree::all(from))
  {
  }

  void apply(const Tile &tile) const override
  {
    if (weight_gradient_ >= 0)
      std::fill_n(tile.value(weight_gradient_, 0), tile.count * tile.widths[weight_gradient_],
                  T(0));
    for (const Degree &d : degrees_)
      with_frame<FRAME_DEGREE>(d.degree, d.order, [&](auto rows, auto columns) {
        constexpr int R = rows, C = columns;
        for (int e = 0; e < tile.count; e++) {
          const T *matrix = tile.matrix(e, frames_.first(d.degree)), *z = tile.value(value_, e);
          T *to = tile.value(target_, e);
          V torques[3] = {}, product = {};
          for (I c = 0; c < d.stride; c += L) {
            const V a = weights_ < 0 ? all(tile.envelope[e]) : load(tile.value(weights_, e) + c);
            V g[C], turned[R], weighted[R], back[C] = {}, sum = {};
            for (int n = 0; n < C; n++) g[n] = load(tile.sum + d.at + n * d.stride + c);
            turn<R, C>(matrix, g, turned);
            for (int r = 0; r < R; r++) {
              const V zr = load(z + d.rows[r] + c);
              sum += zr * turned[r];
              weighted[r] = a * zr;
              store(to + d.rows[r] + c, a * turned[r]);
            }
            if (C > 1) {
              turn_back<R, C>(matrix, weighted, back);
              torque(columns, g, back, torques);
            }
            product += sum;
            if (weight_gradient_ < 0) continue;
            T *at = tile.value(weight_gradient_, e) + c;
            store(at, load(at) + sum);
          }
          for (int k = 0; k < 3 && C > 1; k++) tile.owe(TORQUE + k, e, torques[k]);
          if (weight_gradient_ < 0) tile.owe(ENVELOPE, e, product);
        }
      });
  }

 private:
  const Frames &frames_;
  int target_, value_, weights_, weight_gradient_;
  std::vector<Degree> degrees_;
};

}     // namespace
