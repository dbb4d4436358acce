// Messages that operations on edges make (eqcalc.engine.message_plan): a centre's edges go through all
// of them in tiles that stay in the cache. Values of linear maps that the way back needs are kept for
// as many edges as there is memory for; it makes the others again, tile by tile.

#pragma once
#include "attention.h"
#include "edge_products.h"

namespace {

class Message {
 public:
  // what of an evaluation a message reads
  struct Surroundings {
    const Edges &edges;
    const Radial &radial;
    const int *rows;     // of slots, the rows of features
    const T *features;
    T *dx;     // gradients of features; null: nobody wants them
  };
  // of one centre: its number, its row where it is not among the features, and that row's gradient
  struct Own {
    I number;
    const T *row;
    T *gradient;
  };

  Message(const Record &from, I width, I out_width, const Frames &frames,
          const Envelope &envelope) :
      frames_(frames), envelope_(envelope), width_(width), out_width_(out_width)
  {
    std::vector<std::string_view> names;
    for (const Record &value : from.records("values")) {
      names.push_back(value.text("name"));
      widths_.push_back(value.integer("width"));
    }
    if (names.size() > MOST_VALUES) throw std::runtime_error("a message has too many values");
    const auto number = [&](const Record &step, const char *field) {
      if (!step.has(field)) return -1;
      const auto found = std::find(names.begin(), names.end(), step.text(field));
      if (found == names.end()) throw std::runtime_error("a message lacks the value it reads");
      return static_cast<int>(found - names.begin());
    };
    for (const Record &step : from.records("forward")) forward_.push_back(read(step, number));
    for (const Record &step : from.records("again")) again_.push_back(read(step, number));
    for (const Record &step : from.records("missing")) missing_.push_back(read(step, number));
    for (const std::string_view name : from.texts("kept")) {
      kept_.push_back(
          static_cast<int>(std::find(names.begin(), names.end(), name) - names.begin()));
      kept_width_ += widths_.at(kept_.back());
    }
    kept_bytes_ = from.integer("kept_bytes");
    for (const Record &step : from.records("backward")) backward_.push_back(read(step, number));
    for (const auto *steps : {&forward_, &again_, &missing_, &backward_})
      for (const auto &step : *steps) room_ = std::max(room_, step->room());
    room_ = (room_ + PADDING - 1) / PADDING * PADDING;
    from.array("norms").copy(norms_.get(out_width_));
    if (!from.has("heads")) return;
    num_heads_ = from.record("heads").integer("heads");
    head_ = from.record("heads").indices("of_column");
  }

  // numbers that a share of the work needs
  I scratch() const
  {
    I sum = frames_.elements() * TILE + OWED * TILE * L + out_width_ + 3 * padded_heads() + room_;
    for (const I width : widths_) sum += width * TILE;
    return sum;
  }

  // slots: of all edges; back: whether gradients are wanted
  void reserve(I num_local, I slots, bool back)
  {
    softmax_.get(num_local * 2 * num_heads_ + 1);
    kept_slots_ = 0;
    if (!back || kept_.empty()) return;
    kept_slots_ = std::min<I>(slots, kept_bytes_ / static_cast<I>(kept_width_ * sizeof(T)));
    memory_.get(kept_slots_ * kept_width_);
  }
  I bytes() const { return softmax_.bytes() + memory_.bytes(); }

  void forward(const Surroundings &around, const Own &own, T *sum, T *scratch)
  {
    Work work(*this, around, own, scratch);
    std::fill_n(sum, out_width_, T(0));
    work.tile.sum = sum;
    work.tile.known = false;
    std::fill_n(work.tile.top, num_heads_, T(0));
    std::fill_n(work.tile.total, num_heads_, T(1));
    for (int first = 0; first < work.centre.count; first += TILE) {
      work.place(first);
      for (const auto &step : forward_) step->apply(work.tile);
    }
    for (I c = 0; c < out_width_; c++) {
      const bool shared = num_heads_ && head_[c] >= 0;
      sum[c] *= shared ? norms_.get()[c] / work.tile.total[head_[c]] : norms_.get()[c];
    }
    if (!num_heads_) return;
    T *kept = softmax_.data() + own.number * 2 * num_heads_;
    std::copy_n(work.tile.top, num_heads_, kept);
    std::copy_n(work.tile.total, num_heads_, kept + num_heads_);
  }

  // message: that of the way forward, read where there is attention; g: its gradient
  void backward(const Surroundings &around, const Own &own, const T *message, const T *g,
                const EdgeGradient &gradient, T *scratch)
  {
    Work work(*this, around, own, scratch);
    if (num_heads_) {
      const T *kept = softmax_.get() + own.number * 2 * num_heads_;
      std::copy_n(kept, num_heads_, work.tile.top);
      std::copy_n(kept + num_heads_, num_heads_, work.tile.total);
      std::fill_n(work.product, num_heads_, T(0));
      for (I c = 0; c < out_width_; c++)
        if (head_[c] >= 0) work.product[head_[c]] += g[c] * message[c];
    }
    work.tile.sum = work.scaled;
    for (I c = 0; c < out_width_; c += L)
      store(work.scaled + c, load(g + c) * load(norms_.get() + c));
    work.tile.known = true;
    for (int first = 0; first < work.centre.count; first += TILE) {
      work.place(first);
      work.tile.dy = gradient.y + (work.centre.slot + first) * NUM_Y;
      std::fill_n(work.tile.owed, OWED * TILE * L, T(0));
      for (const auto &step : work.kept ? missing_ : again_) step->apply(work.tile);
      for (const auto &step : backward_) step->apply(work.tile);
      work.give(first, gradient);
    }
  }

 private:
  static constexpr std::size_t MOST_VALUES = 64;

  const Frames &frames_;
  const Envelope &envelope_;
  I width_, out_width_;     // of features and sums
  I room_ = 0;              // numbers that operations need for themselves
  I num_heads_ = 0;         // of attention
  std::vector<I> widths_;
  std::vector<std::unique_ptr<EdgeStep>> forward_, again_, missing_, backward_;
  Buffer<T> norms_;           // [out_width_], what sums are multiplied by
  std::vector<int> head_;     // of columns of the sum; -1: none
  Buffer<T> softmax_;         // [own, 2, heads]: largest exponents and sums of shares
  std::vector<int> kept_;     // values of edges, [slots, width] one after the other in memory_
  I kept_width_ = 0, kept_bytes_ = 0;     // of all; what they may take
  I kept_slots_ = 0;                      // edges whose values are kept, the first ones
  Buffer<T> memory_;

  I padded_heads() const { return (num_heads_ + PADDING - 1) / PADDING * PADDING; }

  template <class Number>
  std::unique_ptr<EdgeStep> read(const Record &from, const Number &number) const
  {
    const int source = number(from, "source"), target = number(from, "target");
    const int value = number(from, "value"), weights = number(from, "weights");
    const std::string_view kind = from.kind();
    if (kind == "ToFramesStep") return std::make_unique<ToFrames>(from, frames_, target);
    if (kind == "FromFramesStep") return std::make_unique<FromFrames>(from, frames_, source);
    if (kind == "ModulateStep") return std::make_unique<Modulate>(from, source, target, value);
    if (kind == "EdgeLinearStep") return std::make_unique<EdgeLinear>(from, source, target);
    if (kind == "EdgeGateStep") return std::make_unique<EdgeGate>(from, source, target, value);
    if (kind == "EdgeSphereStep") return std::make_unique<EdgeSphere>(from, source, target, value);
    if (kind == "PairSumStep") return std::make_unique<PairSum>(target);
    if (kind == "PairBackStep") return std::make_unique<PairBack>(source);
    if (kind == "EdgeProductStep")
      return std::make_unique<EdgeProduct>(from, source, target, value);
    if (kind == "EdgeSumStep") return std::make_unique<EdgeSum>(from, source, weights);
    if (kind == "EdgeSpreadStep")
      return std::make_unique<EdgeSpread>(from, target, value, weights,
                                          number(from, "weight_gradient"));
    if (kind == "AttentionStep")
      return std::make_unique<Attention>(from, source, target, number(from, "exponents"));
    if (kind == "AttentionBackStep")
      return std::make_unique<AttentionBack>(from, source, target, value,
                                             number(from, "exponents"));
    if (kind == "FrameSumStep") return std::make_unique<FrameSum>(from, frames_, source, weights);
    if (kind == "FrameSpreadStep")
      return std::make_unique<FrameSpread>(from, frames_, target, value, weights,
                                           number(from, "weight_gradient"));
    refuse("operation", kind);
  }

  // one centre's edges, a tile at a time
  struct Work {
    const Message &message;
    const Surroundings &around;
    Centre centre;
    Tile tile;
    Radial::Cursor radial[TILE];
    T envelope[TILE], envelope_slope[TILE];
    T *values[MOST_VALUES];
    T *frames, *scaled, *product;
    T *spare[MOST_VALUES];     // where values that are kept are otherwise
    bool kept;                 // whether those of this tile are

    Work(const Message &m, const Surroundings &s, const Own &own, T *memory) :
        message(m), around(s), centre(s.edges.of(own.number))
    {
      const auto take = [&](I count) {
        T *here = memory;
        memory += count;
        return here;
      };
      for (std::size_t n = 0; n < m.widths_.size(); n++) values[n] = take(m.widths_[n] * TILE);
      std::copy_n(values, m.widths_.size(), spare);
      frames = take(m.frames_.elements() * TILE);
      scaled = take(m.out_width_);
      tile.owed = take(OWED * TILE * L);
      tile.room = take(m.room_);
      tile.top = take(m.padded_heads());
      tile.total = take(m.padded_heads());
      tile.product = product = take(m.padded_heads());
      tile.x = s.features;
      tile.own = own.row;
      tile.dx = s.dx;
      tile.own_gradient = own.gradient;
      tile.width = m.width_;
      tile.radial = radial;
      tile.frames = frames;
      tile.elements = m.frames_.elements();
      tile.envelope = envelope;
      tile.values = values;
      tile.widths = m.widths_.data();
    }

    void place(int first)
    {
      tile.count = std::min(TILE, centre.count - first);
      const I slot = centre.slot + first;
      kept = slot + tile.count <= message.kept_slots_;
      T *place = message.memory_.get();
      for (const int n : message.kept_) {
        values[n] = kept ? place + slot * message.widths_[n] : spare[n];
        place += message.kept_slots_ * message.widths_[n];
      }
      tile.rows = around.rows + slot;
      tile.y = centre.y + first * NUM_Y;
      for (int e = 0; e < tile.count; e++) {
        radial[e] = around.radial.at(slot + e);
        double u, du;
        message.envelope_(around.edges.distances()[slot + e], u, du);
        envelope[e] = static_cast<T>(u);
        envelope_slope[e] = static_cast<T>(du);
      }
      if (message.frames_.none()) return;
      for (int e = 0; e < tile.count; e += L)
        message.frames_.of(around.edges.directions(slot + e), frames + e * tile.elements);
    }

    // what has been owed to lengths and directions; a torque t owes t x u to the direction u
    void give(int first, const EdgeGradient &gradient) const
    {
      for (int e = 0; e < tile.count; e += L) {
        const I slot = centre.slot + first + e;
        V sums[OWED];
        for (int what = 0; what < OWED; what++)
          sums[what] = row_sums(tile.owed + (what * TILE + e) * L);
        V slope = {};
        for (int lane = 0; lane < L && e + lane < tile.count; lane++)
          slope[lane] = envelope_slope[e + lane];
        T *r = gradient.r + slot;
        store(r, load(r) + sums[LENGTH] + sums[ENVELOPE] * slope);
        if (message.frames_.none()) continue;
        const T *u = around.edges.directions(slot);
        const V x = load(u), y = load(u + L), z = load(u + 2 * L);
        T *n = gradient.u + slot * 3;
        store(n, load(n) + sums[TORQUE + 1] * z - sums[TORQUE + 2] * y);
        store(n + L, load(n + L) + sums[TORQUE + 2] * x - sums[TORQUE] * z);
        store(n + 2 * L, load(n + 2 * L) + sums[TORQUE] * y - sums[TORQUE + 1] * x);
      }
    }
  };
};

}     // namespace
