// Radial weights from splines. A table holds, for each interval and vector of weights, the
// coefficients of powers of t = -1/2..1/2 within the interval one after the other. Intervals have one
// length within a segment of distances, and each layer has segments of its own. Kinds of bonds have
// functions of their own, one after the other.

#pragma once
#include "edges.h"
#include "envelope.h"

namespace {

struct Segment {
  double start, per_length;     // Å, intervals per Å
  I first, count;               // intervals
};

struct Radial {
  const T *table;
  I stride, kind_stride;     // of an interval, of a kind of bonds in it
  const int *kinds;          // of slots; none: one
  const double *r;           // of slots
  const Segment *segments, *last;

  struct Cursor {
    const T *coefficients;
    T t, scale;     // scale: dt/dr

    V value(I weight) const
    {
      const T *c = coefficients + weight * (DEGREE + 1);
      V sum = load(c + DEGREE * L);
#pragma GCC unroll 16
      for (int d = DEGREE - 1; d >= 0; d--) sum = sum * t + load(c + d * L);
      return sum;
    }
    void value_and_slope(I weight, V &value, V &slope) const
    {
      const T *c = coefficients + weight * (DEGREE + 1);
      value = load(c + DEGREE * L);
      slope = value;
      value = value * t + load(c + (DEGREE - 1) * L);
#pragma GCC unroll 16
      for (int d = DEGREE - 2; d >= 0; d--) {
        slope = slope * t + value;
        value = value * t + load(c + d * L);
      }
    }
  };
  Cursor at(I slot) const
  {
    const Segment *s = last;
    while (s != segments && r[slot] < s->start) s--;
    const double x = (r[slot] - s->start) * s->per_length;
    // in this order a distance that is not a number gets an interval that exists, and a t of NaN
    const I interval = static_cast<I>(std::min<double>(static_cast<double>(s->count - 1), x));
    const I kind = kinds ? kinds[slot] * kind_stride : 0;
    return {table + (s->first + interval) * stride + kind,
            static_cast<T>(x - static_cast<double>(interval) - 0.5), static_cast<T>(s->per_length)};
  }
};

class RadialBasis {
 public:
  COLD void read(const Record &, double cutoff) { cutoff_ = cutoff; }
  void begin(const Edges &, int) {}
  double cutoff() const { return cutoff_; }
  I bytes() const { return 0; }

 private:
  double cutoff_ = 0.0;
};

class RadialFunctions {
 public:
  COLD void read(const Record &from, I num_weights, const RadialBasis &basis)
  {
    kind_stride_ = num_weights * (DEGREE + 1);
    I intervals = 0;
    for (const Record &segment : from.records("segments")) {
      const I count = segment.integer("intervals");
      segments_.push_back({segment.number("start"), 0.0, intervals, count});
      intervals += count;
    }
    for (std::size_t n = 0; n < segments_.size(); n++) {
      const bool last = n + 1 == segments_.size();
      const double end = last ? basis.cutoff() : segments_[n + 1].start;
      segments_[n].per_length = static_cast<double>(segments_[n].count) /
          (end - segments_[n].start);
    }
    const Array &coefficients = from.array("coefficients");
    const I every = coefficients.length(2);     // of all kinds
    stride_ = every * (DEGREE + 1);
    T *table = table_.get(intervals * stride_);
    I next = 0;
    for (I k = 0; k < intervals; k++)
      for (I d = 0; d <= DEGREE; d++)
        for (I w = 0; w < every; w++)
          table[k * stride_ + (w / L * (DEGREE + 1) + d) * L + w % L] =
              static_cast<T>(coefficients[next++]);
  }

  Radial weights(RadialBasis &, const Edges &edges, int, bool) const
  {
    return {table_.get(),      stride_,          kind_stride_,     edges.kinds(),
            edges.distances(), segments_.data(), &segments_.back()};
  }

  I bytes() const { return table_.bytes(); }

 private:
  I stride_ = 0, kind_stride_ = 0;
  std::vector<Segment> segments_;
  Buffer<T> table_;
};

}     // namespace
