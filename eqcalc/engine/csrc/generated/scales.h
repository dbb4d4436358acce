// What generated sources multiply activations by: see eqcalc.engine.dense.

#pragma once

namespace {
constexpr double SILU = 1.0, TANH = 1.0, SIGMOID = 1.0;
}     // namespace
