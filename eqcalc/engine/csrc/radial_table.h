// Radial weights from splines. A table holds, for each interval and vector of weights, the
// coefficients of powers of t = 0..1 within the interval one after the other.

namespace {

struct Radial {
  const T *table;
  I stride;              // of an interval
  const int *interval;
  const T *t;

  struct Cursor {
    const T *coefficients;
    T t;

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
  Cursor at(I slot) const { return {table + interval[slot] * stride, t[slot]}; }
};

class RadialBasis {
 public:
  void read(Reader &in, double cutoff)
  {
    intervals_ = in.integer();
    per_length_ = intervals_ / cutoff;
  }

  void begin(const Edges &edges, int threads)
  {
    const I slots = edges.num_slots();
    const double *r = edges.distances();
    int *interval = interval_.get(slots);
    T *t = t_.get(slots);
    in_ranges(slots, threads, [&](I begin, I end) {
      for (I slot = begin; slot < end; slot++) {
        const double x = r[slot] * per_length_;
        // in this order a distance that is not a number gets an interval that exists, and a t of NaN
        interval[slot] = static_cast<int>(std::min<double>(intervals_ - 1, x));
        t[slot] = static_cast<T>(x - interval[slot]);
      }
    });
  }

  // dE/dr for a gradient in t
  double slope_scale() const { return per_length_; }
  I intervals() const { return intervals_; }
  const int *interval() const { return interval_.get(); }
  const T *t() const { return t_.get(); }
  I bytes() const { return interval_.bytes() + t_.bytes(); }

 private:
  I intervals_ = 0;
  double per_length_ = 0.0;
  Buffer<int> interval_;
  Buffer<T> t_;
};

class RadialFunctions {
 public:
  void read(Reader &in, I num_weights, I intervals)
  {
    stride_ = num_weights * (DEGREE + 1);
    T *table = table_.get(intervals * stride_);
    for (I k = 0; k < intervals; k++)
      for (I d = 0; d <= DEGREE; d++)
        for (I w = 0; w < num_weights; w++)
          table[k * stride_ + (w / L * (DEGREE + 1) + d) * L + w % L] =
              static_cast<T>(in.number());
  }

  Radial weights(RadialBasis &basis, const Edges &, int, bool) const
  {
    return {table_.get(), stride_, basis.interval(), basis.t()};
  }

  I bytes() const { return table_.bytes(); }

 private:
  I stride_ = 0;
  Buffer<T> table_;
};

}    // namespace
