// The network: edges in, atomic energies and their gradient in every edge vector out.
//
// Layer k of an atom i, between features x_k that all processes have exchanged and x_{k+1}:
//
//     m_i  = s_i sum_j R_k(r_ij) (x_j (x) Y(r_ij))   generated kernels, see eqcalc.engine.kernels;
//                                                    s_i = 1 but for crowded atoms
//     x'_i = steps(m_i, rows of this atom that earlier layers left), energies, too (steps.h)
//
// Atoms are worked on in blocks, from messages to the next layer's features while they are in the
// cache. What a row begins with, how long it lives and where its gradient is, is decided by
// eqcalc.engine.rows. Sums over neighbours are made in the order of the edges, those of gradients
// over the shares of the work in the order of the shares, of which there are as many as threads are
// asked for (see threads.h).

#pragma once
#include "counts.h"
#include "density.h"
#include "generated/kernels.h"
#include "generated/steps.h"
#include "graph.h"
#include "messages.h"
#include "pair_terms.h"
#include "uncertainty.h"

namespace {

// Rows [width] of numbers of each atom, by name.
struct Row {
  I width;
  bool of_neighbours;     // read by a convolution: all atoms' rows, gradients in Network::dx_
  bool kept;              // values of all own atoms, not of a block only
  enum { IN_BLOCK, KEPT, AS_VALUES } gradient;
  I tables = 0;        // of species, or one; none: sums begin with zeros
  Buffer<T> begin;     // [tables, width]
  Buffer<T> values, gradients;
  I slot = 0;     // in a share's memory

  COLD explicit Row(const Record &from) :
      width(from.integer("width")), of_neighbours(from.integer("of_neighbours")),
      kept(from.integer("kept"))
  {
    const std::string_view place = from.text("gradient");
    gradient = place == "kept" ? KEPT : place == "as values" ? AS_VALUES : IN_BLOCK;
    if (!from.has("begin")) return;
    tables = from.array("begin").length(0);
    from.array("begin").copy(begin.get(tables * width));
  }

  void start(const Span &rows, int count, const int *species) const
  {
    for (int b = 0; b < count; b++)
      if (tables)
        std::copy_n(begin.get() + (tables > 1 ? species[b] : 0) * width, width, rows[b]);
      else
        std::fill_n(rows[b], width, T(0));
  }

  I bytes() const { return begin.bytes() + values.bytes() + gradients.bytes(); }
};

struct Layer {
  const Kernels *kernels = nullptr;     // or a density, or operations on edges
  std::unique_ptr<Density> density;
  std::unique_ptr<Message> message;
  int centre = -1;     // row of the centre that those read; -1: its features
  RadialFunctions radial;
  int features, messages;     // rows
  I count = -1;               // of neighbours, which messages are divided by; -1: none
  std::vector<std::unique_ptr<Step>> steps;
  std::vector<int> starts, gradient_starts;     // rows whose sums begin in this layer
  std::vector<int> rows;                        // all
  I scratch_at = 0, scratch = 0;                // numbers that one of its steps needs
};

class Network {
 public:
  COLD explicit Network(const Record &from) :
      num_species_(from.integer("num_species")), cutoff_(from.number("cutoff"))
  {
    basis_.read(from, cutoff_);
    envelope_.read(from.record("basis"), cutoff_);
    edges_.in_frames(from.has("frames"));
    if (from.has("frames")) frames_.read(from.record("frames"));
    std::vector<std::string_view> names;
    for (const Record &row : from.records("rows")) {
      names.push_back(row.text("name"));
      rows_.emplace_back(row);
    }
    const auto row = [&](std::string_view name) {
      const auto found = std::find(names.begin(), names.end(), name);
      if (found == names.end()) refuse("row", name);
      return static_cast<int>(found - names.begin());
    };
    for (const Record &layer : from.records("layers")) read_layer(layer, row);
    shift_ = from.numbers("shift");
    if (from.has("core")) core_.read(from.record("core"), num_species_);
    if (from.has("pair")) pair_.read(from.record("pair"), num_species_);
    if (from.has("inner_limits")) edges_.limit(num_species_, from.numbers("inner_limits"));
    if (from.has("stretch")) edges_.stretch(num_species_, from.numbers("stretch"), cutoff_);
    if (from.has("agnesi"))
      edges_.distinguish(num_species_, from.record("agnesi").indices("kinds"));
    if (from.has("counts")) counts_.read(from.record("counts"), basis_);
    if (from.has("crowding")) crowding_.read(from.record("crowding"), num_species_, cutoff_);
    num_features_ = from.integer("num_features");
    if (from.has("uncertainty")) uncertainty_.read(from.record("uncertainty"), num_species_);
  }

  I num_layers() const { return static_cast<I>(layers_.size()); }
  I width(I layer) const { return rows_[layers_[layer].features].width; }
  I num_features() const { return num_features_; }
  bool has_uncertainty() const { return uncertainty_.known(); }

  I bytes() const
  {
    I sum = edges_.bytes() + counts_.bytes() + dx_.bytes() + dx_next_.bytes() + basis_.bytes();
    for (const Row &row : rows_) sum += row.bytes();
    for (const Layer &layer : layers_)
      sum += layer.radial.bytes() + (layer.message ? layer.message->bytes() : 0);
    for (const Share &s : shares_) sum += s.memory.bytes() + s.dx.bytes();
    return sum + uncertainty_.bytes() + features_.bytes();
  }

  APART void evaluate(const eqcalc_graph &graph, const eqcalc_exchange *exchange, int threads,
                double *energies, double *gradient, const eqcalc_uncertainty &uncertainty)
  {
    const bool of_training = uncertainty.variances || uncertainty.grades;
    if (of_training && !uncertainty_.known())
      throw std::runtime_error(
          "the file has no uncertainty: run 'eqcalc calibrate MODEL "
          "frames.xyz' with its training frames");
    threads_ = std::max(1, threads);
    if (static_cast<int>(shares_.size()) < threads_) shares_.resize(threads_);
    place_edges(graph);
    basis_.begin(edges_, threads_);
    counts_.begin(edges_, basis_, graph.num_local, threads_);
    wanted_ = uncertainty.features;
    if (of_training && !wanted_) wanted_ = features_.get(graph.num_local * num_features_);
    add_references(graph, energies, gradient);
    for (I k = 0; k < num_layers(); k++) {
      if (k > 0 && exchange)
        exchange->forward(exchange->context, rows_[layers_[k].features].values.data(),
                          static_cast<int>(width(k)));
      forward(k, graph, energies, gradient != nullptr || exchange != nullptr);
    }
    if (of_training)
      in_ranges(graph.num_local, threads_, [&](I begin, I end) {
        uncertainty_.of_atoms(begin, end, node_species_.data(), wanted_, uncertainty);
      });
    // a process without edges has no gradient to give, but the others wait for its exchanges
    if (!gradient && !exchange) return;
    edges_.clear_gradient(threads_);
    for (I k = num_layers() - 1; k >= 0; k--) {
      backward(k, graph);
      if (k > 0 && exchange)
        exchange->reverse(exchange->context, dx_.data(), static_cast<int>(width(k)));
    }
    counts_.add_gradient(edges_, basis_, graph.num_local, threads_);
    add_edge_gradients(graph, gradient);
  }

 private:
  // of one share of the work
  struct Share {
    Buffer<T> memory;                        // rows of a block, what steps need, a message
    Buffer<T> dx;                            // [rows, width]: gradients of neighbours' features
    I first_row = 0, end_row = 0;            // that this share's centres refer to
    std::vector<Span> values, gradients;     // by row, of the block in work
  };

  I num_species_;
  double cutoff_;
  std::vector<Row> rows_;
  std::vector<Layer> layers_;
  RadialBasis basis_;
  Envelope envelope_;
  Frames frames_;
  std::vector<double> shift_;
  CoreRepulsion core_;
  PairEnergy pair_;
  Crowding crowding_;
  Counts counts_;
  Uncertainty uncertainty_;
  bool own_features_ = false;     // whether messages read those of the centre, too
  I num_features_ = 0;
  Buffer<double> features_;      // where they are wanted for the uncertainty alone
  double *wanted_ = nullptr;     // features [own, num_features_] of this evaluation, or null
  int threads_ = 1;              // asked for, and shares
  Edges edges_;
  std::vector<I> first_edge_;     // [own + 1]
  std::vector<int> node_species_;
  std::vector<int> present_;     // species of this structure
  std::vector<int> place_;       // of species among them
  std::vector<I> share_;         // first centre of each share
  std::vector<Share> shares_;
  Buffer<T> dx_, dx_next_;     // gradients of features of the layer in work, and of those after

  APART void place_edges(const eqcalc_graph &graph)
  {
    check_graph(graph, num_species_);
    first_edge_.assign(graph.num_local + 1, 0);
    for (I e = 0; e < graph.num_edges; e++) first_edge_[graph.edge_dst[e] + 1]++;
    for (I i = 0; i < graph.num_local; i++) first_edge_[i + 1] += first_edge_[i];
    node_species_.assign(graph.species, graph.species + graph.num_nodes);
    present_.clear();
    place_.assign(num_species_, -1);
    for (const int s : node_species_) {
      if (place_[s] >= 0) continue;
      place_[s] = static_cast<int>(present_.size());
      present_.push_back(s);
    }
    edges_.begin(graph.num_local, first_edge_.data());
    share_ = shares(threads_, graph.num_local, first_edge_.back() + 8 * graph.num_local,
                    [&](I i) { return first_edge_[i + 1] + 8 * (i + 1); });
    in_parallel(threads_, threads_, [&](I t) {
      I lowest = graph.num_nodes, highest = -1;
      if (own_features_ && share_[t] < share_[t + 1]) {
        lowest = share_[t];
        highest = share_[t + 1] - 1;
      }
      for (I i = share_[t]; i < share_[t + 1]; i++) {
        edges_.place(i, first_edge_[i], graph.edge_src, graph.edge_vec, node_species_.data());
        for (I e = first_edge_[i]; e < first_edge_[i + 1]; e++) {
          lowest = std::min(lowest, graph.edge_src[e]);
          highest = std::max(highest, graph.edge_src[e]);
        }
      }
      shares_[t].first_row = lowest;
      shares_[t].end_row = highest + 1;
    });
  }

  // shift, core repulsion, pairs; the gradient, if wanted, begins with that of the latter two;
  // and how crowded the atoms are
  APART void add_references(const eqcalc_graph &graph, double *energies, double *gradient)
  {
    crowding_.begin(graph.num_local);
    in_ranges(graph.num_local, threads_, [&](I begin, I end) {
      for (I i = begin; i < end; i++) {
        const int a = node_species_[i];
        energies[i] = shift_[a];
        Crowding::Measure crowd;
        for (I e = first_edge_[i]; e < first_edge_[i + 1]; e++) {
          const double *v = graph.edge_vec + 3 * e;
          const double r = root(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
          const int b = node_species_[graph.edge_src[e]];
          double slope = 0.0;
          if (!crowding_.none()) crowding_.add(a, b, r, crowd);
          core_.add(a, b, r, energies[i], slope);
          pair_.add(a, b, r, energies[i], slope);
          if (!gradient) continue;
          for (int d = 0; d < 3; d++) gradient[3 * e + d] = slope * v[d] / r;
        }
        energies[i] += crowding_.settle(i, a, crowd);
      }
    });
  }

  template <class Number> COLD void read_layer(const Record &from, const Number &number)
  {
    Layer layer;
    layer.features = number(from.text("features"));
    layer.messages = number(from.text("messages"));
    layer.rows = {layer.messages};
    if (from.has("functions")) {
      layer.density = std::make_unique<Density>(from.integer("functions"));
    } else if (from.has("message")) {
      const Record message = from.record("message");
      layer.message = std::make_unique<Message>(message, rows_[layer.features].width,
                                                rows_[layer.messages].width, frames_, envelope_);
      const int centre = number(message.text("centre"));
      if (centre == layer.features)
        own_features_ = true;
      else
        layer.rows.push_back(layer.centre = centre);
    } else {
      layer.kernels = &KERNELS[from.integer("kernels")];
    }
    layer.radial.read(from.record("radial"), from.integer("num_weights"), basis_);
    if (from.has("count")) layer.count = from.integer("count");
    for (const Record &step : from.records("steps")) {
      const int source = number(step.text("source"));
      const int target = step.has("target") ? number(step.text("target")) : source;
      layer.steps.push_back(make_step(step, source, target));     // generated
      layer.scratch = std::max(layer.scratch, layer.steps.back()->scratch());
      layer.rows.push_back(layer.steps.back()->source());
      layer.rows.push_back(layer.steps.back()->target());
    }
    std::sort(layer.rows.begin(), layer.rows.end());
    layer.rows.erase(std::unique(layer.rows.begin(), layer.rows.end()), layer.rows.end());
    for (const std::string_view name : from.texts("starts")) layer.starts.push_back(number(name));
    for (const std::string_view name : from.texts("gradient_starts"))
      layer.gradient_starts.push_back(number(name));
    // rows of a block lie one after the other, then comes what steps need
    I slot = 0;
    for (const int r : layer.rows) {
      Row &row = rows_[r];
      if (row.of_neighbours || (row.kept && row.gradient != Row::IN_BLOCK)) continue;
      row.slot = slot;
      slot += BLOCK * row.width;
    }
    layer.scratch_at = slot;
    layers_.push_back(std::move(layer));
  }

  // before threads start: running out of memory can be reported only there
  APART void reserve(const Layer &layer, const eqcalc_graph &graph, bool back)
  {
    for (const int r : layer.rows) {
      Row &row = rows_[r];
      if (row.of_neighbours)
        row.values.get(graph.num_rows * row.width);
      else if (row.kept)
        row.values.get(graph.num_local * row.width);
      if (row.gradient == Row::KEPT) row.gradients.get(graph.num_local * row.width);
    }
    if (layer.message) layer.message->reserve(graph.num_local, edges_.num_slots(), back);
    const I of_message = layer.message ? layer.message->scratch() : 0;
    for (int t = 0; t < threads_; t++) {
      Share &share = shares_[t];
      share.memory.get(layer.scratch_at + layer.scratch + rows_[layer.messages].width + of_message);
      share.values.resize(rows_.size());
      share.gradients.resize(rows_.size());
    }
  }

  // the block of atoms that begins with `first`
  Block block_at(I first, const Layer &layer, Share &share, I end, double *energies)
  {
    const bool back = energies == nullptr;
    for (const int r : layer.rows) {
      Row &row = rows_[r];
      T *here = share.memory.data() + row.slot;
      const auto kept = [&](Buffer<T> &rows) { return rows.data() + first * row.width; };
      T *values = row.kept ? kept(row.values) : here, *gradients = here;
      if (row.of_neighbours)
        gradients = back ? kept(dx_next_) : nullptr;
      else if (row.gradient == Row::KEPT)
        gradients = kept(row.gradients);
      else if (row.gradient == Row::AS_VALUES)
        gradients = values;
      share.values[r] = {values, row.width};
      share.gradients[r] = {gradients, row.width};
    }
    return {static_cast<int>(std::min<I>(BLOCK, end - first)),
            node_species_.data() + first,
            &present_,
            energies ? energies + first : nullptr,
            wanted_ && energies ? wanted_ + first * num_features_ : nullptr,
            num_features_,
            share.values.data(),
            share.gradients.data(),
            share.memory.data() + layer.scratch_at};
  }

  // columns of a layer's messages that are in use
  I message_width(const Layer &layer) const
  {
    return layer.density ? layer.density->width(static_cast<I>(present_.size()))
                         : rows_[layer.messages].width;
  }

  static void multiply(T *row, I width, T factor)
  {
    for (I c = 0; c < width; c += L) store(row + c, factor * load(row + c));
  }

  // what the messages of a layer read, and where their gradients go
  struct Source {
    const Layer &layer;
    const Radial &radial;
    const int *neighbours;
    const T *x;
    T *dx;               // null: nobody wants them
    bool by_species;     // rows of x are of species, not of atoms
  };

  Message::Own own(I i, const Source &from, const Block &block, int atom) const
  {
    const Layer &layer = from.layer;
    if (layer.centre >= 0)
      return {i, block.values[layer.centre][atom], block.gradients[layer.centre][atom]};
    const I width = rows_[layer.features].width;
    return {i, from.x + (from.by_species ? node_species_[i] : i) * width,
            from.dx ? from.dx + i * width : nullptr};
  }

  // to own atom i, an atom of the block
  void make_messages(I i, const Source &from, const Block &block, int atom, T *to) const
  {
    const Layer &layer = from.layer;
    const Centre centre = edges_.of(i);
    if (layer.density)
      layer.density->forward(from.radial, centre, from.neighbours, place_.data(),
                             static_cast<I>(present_.size()), to);
    else if (layer.message)
      layer.message->forward({edges_, from.radial, from.neighbours, from.x, from.dx},
                             own(i, from, block, atom), to, message_scratch(layer, block));
    else
      layer.kernels->forward(from.radial, centre, from.neighbours, from.x, to);
    if (layer.count >= 0) multiply(to, message_width(layer), counts_.scale(i, layer.count));
  }

  void pull_messages(I i, const Source &from, const Block &block, int atom)
  {
    const Layer &layer = from.layer;
    const Centre centre = edges_.of(i);
    T *gradient = block.gradients[layer.messages][atom];
    if (layer.message) {
      layer.message->backward({edges_, from.radial, from.neighbours, from.x, from.dx},
                              own(i, from, block, atom), block.values[layer.messages][atom],
                              gradient, edges_.gradient(), message_scratch(layer, block));
      return;
    }
    if (layer.count >= 0) multiply(gradient, message_width(layer), counts_.scale(i, layer.count));
    const T product = layer.density
        ? layer.density->backward(from.radial, centre, from.neighbours, place_.data(),
                                  static_cast<I>(present_.size()), gradient, edges_.gradient())
        : layer.kernels->backward(from.radial, centre, from.neighbours, from.x, gradient, from.dx,
                                  edges_.gradient());
    if (layer.count >= 0) counts_.pull(i, layer.count, product);
  }

  T *message_scratch(const Layer &layer, const Block &block) const
  {
    return block.scratch + layer.scratch + rows_[layer.messages].width;
  }

  // of the features that the convolution of layer k reads: before the first by species
  const T *features(I k) const
  {
    const Row &row = rows_[layers_[k].features];
    return k == 0 ? row.begin.get() : row.values.get();
  }

  // back: whether the way back follows
  APART void forward(I k, const eqcalc_graph &graph, double *energies, bool back)
  {
    Layer &layer = layers_[k];
    reserve(layer, graph, back);
    const Radial radial = layer.radial.weights(basis_, edges_, threads_, false);
    const Source from = {layer, radial, edges_.rows(k == 0), features(k), nullptr, k == 0};
    const I width = message_width(layer);
    in_parallel(threads_, threads_, [&](I t) {
      for (I first = share_[t]; first < share_[t + 1]; first += BLOCK) {
        const Block block = block_at(first, layer, shares_[t], share_[t + 1], energies);
        for (const int r : layer.starts)
          rows_[r].start(block.values[r], block.count, block.species);
        const Span messages = block.values[layer.messages];
        for (int b = 0; b < block.count; b++) {
          make_messages(first + b, from, block, b, messages[b]);
          if (crowding_.acts(first + b)) crowding_.calm(first + b, messages[b], width);
        }
        for (const auto &step : layer.steps) step->forward(block);
      }
    });
  }

  APART void backward(I k, const eqcalc_graph &graph)
  {
    Layer &layer = layers_[k];
    std::swap(dx_, dx_next_);     // what was computed for the layer above
    const I used = message_width(layer);
    const I width = rows_[layer.features].width, num_rows = k > 0 ? graph.num_rows : 0;
    T *dx = dx_.get(num_rows * width);
    for (int t = 1; t < threads_; t++) shares_[t].dx.get(num_rows * width);
    const Radial radial = layer.radial.weights(basis_, edges_, threads_, true);
    const int *neighbours = edges_.rows(k == 0);
    in_parallel(threads_, threads_, [&](I t) {
      Share &mine = shares_[t];
      T *to = k == 0 ? nullptr : (t == 0 ? dx : mine.dx.data());
      if (k > 0 && t == 0)
        std::fill_n(to, num_rows * width, T(0));
      else if (k > 0 && mine.first_row < mine.end_row)
        std::fill_n(to + mine.first_row * width, (mine.end_row - mine.first_row) * width, T(0));

      for (I first = share_[t]; first < share_[t + 1]; first += BLOCK) {
        const Block block = block_at(first, layer, mine, share_[t + 1], nullptr);
        for (const int r : layer.gradient_starts)
          for (int b = 0; b < block.count; b++)
            std::fill_n(block.gradients[r][b], r == layer.messages ? used : rows_[r].width, T(0));
        for (auto step = layer.steps.rbegin(); step != layer.steps.rend(); ++step)
          (*step)->backward(block);
        const Span dm = block.gradients[layer.messages];
        const Source from = {layer, radial, neighbours, features(k), to, k == 0};
        for (int b = 0; b < block.count; b++) {
          if (crowding_.acts(first + b)) {
            T *message = block.scratch + layer.scratch;     // it was not kept
            make_messages(first + b, from, block, b, message);
            crowding_.pull(first + b, dm[b], message, used);
            crowding_.calm(first + b, dm[b], used);
          }
          pull_messages(first + b, from, block, b);
        }
      }
    });
    if (k == 0 || threads_ == 1) return;
    in_ranges(num_rows, threads_, [&](I begin, I end) {
      for (int t = 1; t < threads_; t++) {
        const Share &theirs = shares_[t];
        const I low = std::max(begin, theirs.first_row) * width;
        const I high = std::min(end, theirs.end_row) * width;
        const T *from = theirs.dx.get();
        for (I c = low; c < high; c += L) store(dx + c, load(dx + c) + load(from + c));
      }
    });
  }

  void add_crowding_gradient(I i, const eqcalc_graph &graph, double *gradient) const
  {
    for (I e = first_edge_[i]; e < first_edge_[i + 1]; e++) {
      const double *v = graph.edge_vec + 3 * e;
      const double r = root(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
      const int a = node_species_[i], b = node_species_[graph.edge_src[e]];
      const double slope = crowding_.gradient(i, a, b, r);
      for (int d = 0; d < 3; d++) gradient[3 * e + d] += slope * v[d] / r;
    }
  }

  void add_edge_gradients(const eqcalc_graph &graph, double *gradient)
  {
    in_ranges(graph.num_local, threads_, [&](I begin, I end) {
      for (I i = begin; i < end; i++) {
        edges_.add_gradient(i, gradient + 3 * first_edge_[i]);
        if (crowding_.acts(i)) add_crowding_gradient(i, graph, gradient);
      }
    });
  }
};

}     // namespace
