// A list of pairs on the GPU (eqcalc_place), and the same edges by neighbour. The list of a small
// system is filled up with edges that are none (dst < 0), so that the next one has the same length:
// what is queued for a step can then be queued again as it is.

#pragma once
#include "../../csrc/gpu_interface.h"
#include "../../csrc/graph.h"
#include "device.h"
#include "task.h"

namespace {

// own atoms that are worked on at once, and rows of their edges by neighbour
struct Chunk {
  I begin, end, first_row, end_row;
};

class PairList {
 public:
  explicit PairList(const Device &device) : device_(device) {}

  I num_local = 0, num_nodes = 0, num_rows = 0, num_edges = 0;
  I num_places = 0;     // positions
  I num_sent = 0;       // own rows of an exchange
  I capacity = 0;       // edges with those that are none
  // the first own atoms, none of which has a ghost among its neighbours: they need no exchange
  I num_inner = 0;
  std::vector<Chunk> chunks;

  // own atoms that are worked on `size` at a time; inner ones apart, where an exchange is worth that
  void cut(I size)
  {
    const I inner = LEAST_INNER * num_inner < num_local ? 0 : num_inner;
    chunks.clear();
    for (I begin = 0, end; begin < num_local; begin = end) {
      end = std::min(begin + size, begin < inner ? inner : num_local);
      chunks.push_back({begin, end, 0, 0});
    }
  }

  // of the chunks, those of inner atoms, which come first
  I num_inner_chunks() const
  {
    return std::count_if(chunks.begin(), chunks.end(),
                         [this](const Chunk &chunk) { return chunk.end <= num_inner; });
  }

  bool shifted() const { return shifted_; }

  // ghosts in an exchange
  I num_ghosts() const { return num_rows - num_local; }

  void give(const eqcalc_graph &graph, const eqcalc_list &list, I num_species)
  {
    check(graph, list, num_species);
    num_local = graph.num_local;
    num_nodes = graph.num_nodes;
    num_rows = graph.num_rows;
    num_edges = graph.num_edges;
    num_places = list.edge_place ? list.num_places : num_nodes;
    if (num_local > SMALL)
      capacity = num_edges;
    else if (num_edges > capacity || capacity > 2 * num_edges + ROUND)
      capacity = (num_edges + num_edges / 8 + ROUND) / ROUND * ROUND;
    const auto filled = [&](const std::int64_t *from, int with) {
      std::vector<int> values(capacity, with);
      std::copy_n(from, num_edges, values.begin());
      return values;
    };
    const std::vector<int> species(graph.species, graph.species + num_nodes);
    const std::vector<int> dst = filled(graph.edge_dst, -1);
    const std::vector<int> place = filled(list.edge_place ? list.edge_place : graph.edge_src, 0);
    host_src_ = filled(graph.edge_src, 0);
    host_first_.assign(num_local + 1, 0);
    for (I e = 0; e < num_edges; e++) host_first_[dst[e] + 1]++;
    for (I i = 0; i < num_local; i++) host_first_[i + 1] += host_first_[i];
    num_inner = num_local;
    for (I e = 0; e < num_edges; e++)
      if (host_src_[e] >= num_local) num_inner = std::min<I>(num_inner, dst[e]);
    std::vector<int> sent;
    if (list.sent) sent.assign(list.sent, list.sent + list.num_sent);
    for (int i = 0; !list.sent && num_rows > num_local && i < num_local; i++) sent.push_back(i);
    num_sent = static_cast<I>(sent.size());
    const Waits waits(device_);
    species_.give(species);
    src_.give(host_src_);
    dst_.give(dst);
    place_.give(place);
    first_edge_.give(host_first_);
    sent_.give(sent);
    shifted_ = list.shifts != nullptr;
    if (shifted_)
      device_.up(shifts_.get(3 * capacity), list.shifts, 3 * num_edges * sizeof(double));
  }

  // edges of each chunk by neighbour, in their order. A single chunk has all nodes for its rows
  void by_neighbour()
  {
    const bool all = chunks.size() == 1;
    std::vector<int> rows, row_first, row_edge(capacity), count(num_nodes, 0), at(num_nodes);
    for (Chunk &chunk : chunks) {
      chunk.first_row = static_cast<I>(rows.size());
      const int begin = host_first_[chunk.begin], end = host_first_[chunk.end];
      for (int e = begin; e < end; e++)
        if (count[host_src_[e]]++ == 0 && !all) rows.push_back(host_src_[e]);
      for (int node = 0; all && node < num_nodes; node++) rows.push_back(node);
      std::sort(rows.begin() + chunk.first_row, rows.end());
      int next = begin;
      for (std::size_t n = chunk.first_row; n < rows.size(); n++) {
        row_first.push_back(next);
        at[rows[n]] = next;
        next += count[rows[n]];
        count[rows[n]] = 0;
      }
      for (int e = begin; e < end; e++) row_edge[at[host_src_[e]]++] = e;
      chunk.end_row = static_cast<I>(rows.size());
    }
    row_first.push_back(static_cast<int>(num_edges));
    const Waits waits(device_);
    row_.give(rows);
    row_first_.give(row_first);
    row_edge_.give(row_edge);
    device_.wait();
  }

  void fill(Task &t) const
  {
    t.num_local = static_cast<int>(num_local);
    t.num_nodes = static_cast<int>(num_nodes);
    t.num_edges = static_cast<int>(capacity);
    t.species = species_.data();
    t.first_edge = first_edge_.data();
    t.src = src_.data();
    t.dst = dst_.data();
    t.place = place_.data();
    t.shifts = shifted_ ? shifts_.data() : nullptr;
    t.rows = row_.data();
    t.row_first = row_first_.data();
    t.row_edge = row_edge_.data();
    t.sent = sent_.data();
  }

  I bytes() const
  {
    I sum = shifts_.bytes();
    for (const auto *b :
         {&species_, &first_edge_, &src_, &dst_, &place_, &sent_, &row_, &row_first_, &row_edge_})
      sum += b->bytes();
    return sum;
  }

  // bytes that edges by neighbour will take at most, beside those that they have
  I more_by_neighbour() const
  {
    const I rows = std::max(num_nodes, num_edges);     // of chunks: a row has an edge
    return row_.more(rows) + row_first_.more(rows + 1) + row_edge_.more(capacity);
  }

  // nothing is left of the list
  void give_back()
  {
    num_local = num_nodes = num_rows = num_edges = num_places = num_sent = capacity = num_inner = 0;
    chunks.clear();
    shifts_.give_back();
    for (auto *b :
         {&species_, &first_edge_, &src_, &dst_, &place_, &sent_, &row_, &row_first_, &row_edge_})
      b->give_back();
  }

  // own atoms up to which a system is small
  static constexpr I SMALL = 20000;

 private:
  // one of how many own atoms is inner, at least, if they are to be worked on during exchanges
  static constexpr I LEAST_INNER = 8;
  static constexpr I MOST = 2'000'000'000, ROUND = 64;

  const Device &device_;
  bool shifted_ = false;
  std::vector<int> host_src_, host_first_;
  OnDevice<int> species_{device_}, first_edge_{device_}, src_{device_}, dst_{device_},
      place_{device_}, sent_{device_}, row_{device_}, row_first_{device_}, row_edge_{device_};
  OnDevice<double> shifts_{device_};

  static void check(const eqcalc_graph &graph, const eqcalc_list &list, I num_species)
  {
    check_graph(graph, num_species);
    if (std::max(graph.num_rows, graph.num_edges) > MOST)
      throw std::runtime_error("there are too many atoms or edges for one GPU: use more processes");
    const auto inside = [](const std::int64_t *values, I count, I end) {
      return std::all_of(values, values + count, [end](I n) { return 0 <= n && n < end; });
    };
    if ((list.edge_place &&
         (list.num_places < graph.num_nodes || list.num_places > MOST ||
          !inside(list.edge_place, graph.num_edges, list.num_places))) ||
        (list.sent && !inside(list.sent, list.num_sent, graph.num_local)))
      throw std::runtime_error("images of atoms or rows of an exchange are out of range");
  }
};

}     // namespace
