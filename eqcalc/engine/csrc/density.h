// The first layer as a density of species (eqcalc.engine.density): for each harmonic, each species in
// the structure and each function of distance
//
//     D_{lm z k} = sum_{j of z} B_k(r_ij) Y_lm(r_ij),   [NUM_Y + 1, species, functions]

#pragma once
#include "radial_table.h"

namespace {

class Density {
 public:
  explicit Density(I functions) : functions_(functions) {}

  I width(I present) const { return (NUM_Y + 1) * present * functions_; }

  // rows: of slots, the neighbour's species; place: of species, among those present
  void forward(const Radial &radials, const Centre &centre, const int *rows, const int *place,
               I present, T *out) const
  {
    const I step = present * functions_;
    std::fill_n(out, width(present), T(0));
    for (int e = 0; e < centre.count; e++) {
      const Radial::Cursor radial = radials.at(centre.slot + e);
      const T *y = centre.y + e / L * L * NUM_Y + e % L;
      T *to = out + place[rows[centre.slot + e]] * functions_;
      for (I k = 0; k < functions_; k += L) {
        const V w = radial.value(k);
        store(to + k, load(to + k) + w);
        for (int m = 0; m < NUM_Y; m++) {
          T *at = to + (m + 1) * step + k;
          store(at, load(at) + y[m * L] * w);
        }
      }
    }
  }

  // returns the product of the density and its gradient
  T backward(const Radial &radials, const Centre &centre, const int *rows, const int *place,
             I present, const T *g, const EdgeGradient &gradient) const
  {
    const I step = present * functions_;
    alignas(64) T sums[(NUM_Y + 1) * L * L];
    V product = {};
    for (int first = 0; first < centre.count; first += L) {
      const int lanes = std::min(L, centre.count - first);
      const I slot = centre.slot + first;
      for (int lane = 0; lane < lanes; lane++) {
        const Radial::Cursor radial = radials.at(slot + lane);
        const T *y = centre.y + first * NUM_Y + lane;
        const T *from = g + place[rows[slot + lane]] * functions_;
        V s[NUM_Y + 1] = {}, slope = {};
        for (I k = 0; k < functions_; k += L) {
          V w, dw;
          radial.value_and_slope(k, w, dw);
          V along = load(from + k);
#pragma GCC unroll 32
          for (int m = 0; m < NUM_Y; m++) {
            const V gm = load(from + (m + 1) * step + k);
            s[m] += gm * w;
            along += y[m * L] * gm;
          }
          slope += along * dw;
          product += along * w;
        }
#pragma GCC unroll 32
        for (int m = 0; m < NUM_Y; m++) store(sums + (m * L + lane) * L, s[m]);
        store(sums + (NUM_Y * L + lane) * L, slope * radial.scale);
      }
      for (int lane = lanes; lane < L; lane++)
        for (int m = 0; m <= NUM_Y; m++) store(sums + (m * L + lane) * L, V{});
      T *dy = gradient.y + slot * NUM_Y;
      for (int m = 0; m < NUM_Y; m++)
        store(dy + m * L, load(dy + m * L) + row_sums(sums + m * L * L));
      store(gradient.r + slot, load(gradient.r + slot) + row_sums(sums + NUM_Y * L * L));
    }
    return lane_sum(product);
  }

 private:
  I functions_;
};

}     // namespace
