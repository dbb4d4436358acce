// Edges in slots: those of a centre fill whole vectors, lane n of a group being its n-th edge, so
// that what depends on directions only is computed for L edges at once. Spare lanes hold zeros.
//
// Generated: harmonics(), harmonics_gradient() (see eqcalc.engine.kernels).

#pragma once
#include "generated/sizes.h"

namespace {

struct EdgeGradient {
  T *y;     // dE/dY, laid out like Edges::y
  T *r;     // dE/dr, per slot
  T *u;     // dE/du of messages in frames, groups [3][L]; none without them
};

struct Centre {
  I slot;         // of its first edge
  int count;      // edges
  const T *y;     // groups [NUM_Y][L] of harmonics, without Y_0
};

class Edges {
 public:
  // from which distances [species, species] on the network is told no shorter ones
  void limit(I num_species, std::vector<double> limits)
  {
    num_species_ = num_species;
    limits_ = std::move(limits);
  }

  // what distances are multiplied by [species, species] for the network, which sees nothing beyond
  // the cutoff
  void stretch(I num_species, std::vector<double> factors, double cutoff)
  {
    num_species_ = num_species;
    factors_ = std::move(factors);
    cutoff_ = cutoff;
  }

  // which kind of bond a pair of species [species, species] has, for radial functions of each
  void distinguish(I num_species, std::vector<int> kinds)
  {
    num_species_ = num_species;
    kinds_ = std::move(kinds);
  }

  // whether messages owe anything to directions beside harmonics
  void in_frames(bool yes) { in_frames_ = yes; }

  void begin(I num_local, const I *first_edge)
  {
    first_slot_.resize(num_local + 1);
    first_edge_ = first_edge;
    first_slot_[0] = 0;
    for (I i = 0; i < num_local; i++)
      first_slot_[i + 1] = first_slot_[i] + (first_edge[i + 1] - first_edge[i] + L - 1) / L * L;
    const I slots = num_slots();
    y_.get(slots * NUM_Y + 1);
    dy_.get(slots * NUM_Y + 1);
    u_.get(slots * 3);
    if (in_frames_) du_.get(slots * 3);
    inverse_r_.get(slots);
    dr_.get(slots);
    told_slope_.get(slots);
    r_.get(slots);
    row_.get(slots);
    species_.get(slots);
    if (!kinds_.empty()) kind_.get(slots);
  }

  // geometry of the edges of centre i, the first of which is `edge`
  void place(I i, I edge, const I *edge_src, const double *edge_vec, const int *species)
  {
    const int count = of(i).count;
    for (I slot = first_slot_[i], n = 0; slot < first_slot_[i + 1]; slot++, n++) {
      T *u = u_.data() + slot / L * L * 3 + slot % L;
      if (n < count) {
        const double *v = edge_vec + 3 * (edge + n);
        const double r = root(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
        for (int d = 0; d < 3; d++) u[d * L] = static_cast<T>(v[d] / r);
        inverse_r_.data()[slot] = static_cast<T>(1.0 / r);
        told_slope_.data()[slot] = T(1);
        const int other = species[edge_src[edge + n]];
        const double limited = limits_.empty() ? r : told(slot, r, species[i], other);
        r_.data()[slot] = factors_.empty() ? limited : stretched(slot, limited, species[i], other);
        row_.data()[slot] = static_cast<int>(edge_src[edge + n]);
        species_.data()[slot] = other;
        if (!kinds_.empty()) kind_.data()[slot] = kinds_[species[i] * num_species_ + other];
      } else {
        for (int d = 0; d < 3; d++) u[d * L] = T(0);
        inverse_r_.data()[slot] = T(0);
        told_slope_.data()[slot] = T(0);
        r_.data()[slot] = 0.0;
        row_.data()[slot] = species_.data()[slot] = 0;
        if (!kinds_.empty()) kind_.data()[slot] = 0;
      }
    }
    for (I slot = first_slot_[i]; slot < first_slot_[i + 1]; slot += L)
      harmonics(u_.data() + slot * 3, y_.data() + slot * NUM_Y);
  }

  void clear_gradient(int threads)
  {
    const I slots = num_slots();
    T *dy = dy_.data(), *dr = dr_.data();
    in_ranges(slots, threads, [&](I begin, I end) {
      std::fill_n(dy + begin * NUM_Y, (end - begin) * NUM_Y, T(0));
      std::fill_n(dr + begin, end - begin, T(0));
      if (in_frames_) std::fill_n(du_.data() + begin * 3, (end - begin) * 3, T(0));
    });
  }

  // adds dE/dr_ij of the edges of centre i
  void add_gradient(I i, double *gradient)
  {
    const int count = of(i).count;
    alignas(64) T du[3 * L];
    int n = 0;
    for (I slot = first_slot_[i]; slot < first_slot_[i + 1]; slot += L) {
      const T *u = u_.data() + slot * 3;
      harmonics_gradient(u, y_.data() + slot * NUM_Y, dy_.data() + slot * NUM_Y, du);
      for (int d = 0; d < 3 && in_frames_; d++)
        store(du + d * L, load(du + d * L) + load(du_.data() + slot * 3 + d * L));
      const V ux = load(u), uy = load(u + L), uz = load(u + 2 * L);
      const V along = ux * load(du) + uy * load(du + L) + uz * load(du + 2 * L);
      store(dr_.data() + slot, load(dr_.data() + slot) * load(told_slope_.data() + slot));
      const V inverse = load(inverse_r_.data() + slot);
      store(du, (load(du) - along * ux) * inverse);
      store(du + L, (load(du + L) - along * uy) * inverse);
      store(du + 2 * L, (load(du + 2 * L) - along * uz) * inverse);
      for (int lane = 0; lane < L && n < count; lane++, n++)
        for (int d = 0; d < 3; d++)
          gradient[3 * n + d] += static_cast<double>(du[d * L + lane]) +
              static_cast<double>(dr_.data()[slot + lane]) * u[d * L + lane];
    }
  }

  Centre of(I i) const
  {
    return {first_slot_[i], static_cast<int>(first_edge_[i + 1] - first_edge_[i]),
            y_.get() + first_slot_[i] * NUM_Y};
  }
  EdgeGradient gradient() { return {dy_.data(), dr_.data(), du_.data()}; }
  // what an edge reads features of: the neighbour, or before the first layer its species
  const int *rows(bool first) const { return first ? species_.get() : row_.get(); }
  I num_centres() const { return static_cast<I>(first_slot_.size()) - 1; }
  I num_slots() const { return first_slot_.back(); }
  I first_slot(I i) const { return first_slot_[i]; }
  // kinds of bonds of slots; none if they are all alike
  const int *kinds() const { return kinds_.empty() ? nullptr : kind_.get(); }
  // those that the network is told
  const double *distances() const { return r_.get(); }
  const T *directions(I slot) const { return u_.get() + slot / L * L * 3 + slot % L; }

  I bytes() const
  {
    return y_.bytes() + dy_.bytes() + u_.bytes() + du_.bytes() + inverse_r_.bytes() + dr_.bytes() +
        told_slope_.bytes() + r_.bytes() + row_.bytes() + species_.bytes() + kind_.bytes();
  }

 private:
  // eqcalc.nn.radial.InnerLimit
  double told(I slot, double r, int a, int b)
  {
    const double limit = limits_[a * num_species_ + b], width = 0.05 * limit;
    if (r >= limit) return r;
    const double s = std::max(0.0, 1.0 - (limit - r) / width), s3 = s * s * s;
    told_slope_.data()[slot] = static_cast<T>(s3 * (s * (6.0 * s - 15.0) + 10.0));
    return limit + width * (s3 * s * (s * (s - 3.0) + 2.5) - 0.5);
  }

  // eqcalc.nn.radial.PairCutoffs
  double stretched(I slot, double r, int a, int b)
  {
    const double factor = factors_[a * num_species_ + b];
    const bool seen = r * factor < cutoff_;
    told_slope_.data()[slot] *= seen ? static_cast<T>(factor) : T(0);
    return seen ? r * factor : cutoff_;
  }

  I num_species_ = 0;
  std::vector<double> limits_;      // empty: none
  std::vector<double> factors_;     // empty: none
  double cutoff_ = 0.0;
  std::vector<I> first_slot_;
  const I *first_edge_ = nullptr;
  Buffer<T> y_, dy_;     // groups [NUM_Y][L]
  Buffer<T> u_, du_;     // groups [3][L], unit vectors
  bool in_frames_ = false;
  Buffer<T> inverse_r_, dr_;
  Buffer<T> told_slope_;     // of the distance that the network is told
  Buffer<double> r_;
  std::vector<int> kinds_;     // empty: one
  Buffer<int> row_, species_, kind_;
};

}     // namespace
